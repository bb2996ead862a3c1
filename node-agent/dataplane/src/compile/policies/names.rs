//! From numbers in maps back to the objects they stand for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use xebec_ebpf_abi::{Addr, Endpoint, Limit, LimitKey, NetnsCookie, direction};

use super::{Claim, Local, Policies};
use crate::compile::input::Key;
use crate::compile::rules::rule_number;

/// A rule of a NetworkPolicy, or of a ClusterNetworkPolicy, whose key has no namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRule {
    /// The policy.
    pub policy: Key,
    /// One of [`direction`]'s.
    pub direction: u8,
    /// Place in `spec.ingress` or `spec.egress`.
    pub index: usize,
}

impl Policies {
    /// The rule that `PolicyVerdict::rule` names.
    pub fn rule_named(&self, number: u32) -> Option<NamedRule> {
        let namespaced = self.policies.iter().map(|(key, policy)| {
            let count = |rules: &Option<Vec<_>>| rules.as_ref().map_or(0, Vec::len);
            (key.clone(), [(direction::INGRESS, count(&policy.ingress)), (direction::EGRESS, count(&policy.egress))])
        });
        let cluster = self.cluster.iter().map(|(name, policy)| {
            (Key::new("", name), [(direction::INGRESS, policy.ingress.len()), (direction::EGRESS, policy.egress.len())])
        });
        namespaced.chain(cluster).find_map(|(key, lists)| {
            let (way, index) = lists.into_iter().find_map(|(way, count)| {
                let index = (0..count).find(|index| rule_number(&key, way, *index) == number)?;
                Some((way, index))
            })?;
            Some(NamedRule { policy: key, direction: way, index })
        })
    }

    /// Policies that isolate a local endpoint in a direction: what denies is that none of their rules allows.
    pub fn isolating(&self, endpoint: u32, way: u8) -> Vec<Key> {
        let Some(local) = self.locals.get(&endpoint).map(|l| &l.endpoint) else {
            return Vec::new();
        };
        let selecting = self.policies.iter().filter(|(key, p)| {
            let rules = if way == direction::INGRESS { &p.ingress } else { &p.egress };
            key.namespace == local.pod.namespace && rules.is_some() && p.selects.matches(&local.last_seen.labels)
        });
        selecting.map(|(key, _)| key.clone()).collect()
    }

    /// The pod at an address, and its endpoint's number if it is here.
    pub fn pod_at(&self, ip: IpAddr) -> Option<(Key, Option<u32>)> {
        match self.claims.get(&ip.to_canonical())?.first()? {
            Claim::Endpoint(id) => Some((self.locals.get(id)?.endpoint.pod.clone(), Some(*id))),
            Claim::Pod(key) => Some((key.clone(), None)),
        }
    }

    /// The pod of a local endpoint.
    pub fn pod_of(&self, endpoint: u32) -> Option<&Key> {
        Some(&self.locals.get(&endpoint)?.endpoint.pod)
    }

    /// What local pods may send and be sent.
    pub fn limits(&self) -> BTreeMap<LimitKey, Limit> {
        let of = |(id, local): (&u32, &Local)| {
            let endpoint = *id;
            local.endpoint.bandwidth().limits().map(move |(way, limit)| (LimitKey { endpoint, direction: u32::from(way) }, limit))
        };
        self.locals.iter().flat_map(of).collect()
    }

    /// The pod whose device has this number.
    pub fn pod_behind(&self, ifindex: u32) -> Option<&Key> {
        self.locals.values().find(|l| l.endpoint.ifindex == ifindex).map(|l| &l.endpoint.pod)
    }

    /// The pod of a network namespace.
    pub fn pod_of_netns(&self, netns: NetnsCookie) -> Option<&Key> {
        let known = self.locals.values().filter(|_| netns.is_known());
        known.map(|l| &l.endpoint).find(|e| NetnsCookie::new(e.netns_cookie) == netns).map(|e| &e.pod)
    }

    /// The local endpoint at an address, as the maps shall have it.
    pub fn endpoint_at(&self, address: &Addr) -> Option<Endpoint> {
        self.tables.endpoints.want().get(address).copied()
    }

    /// Addresses of a pod: of its device if it is here.
    pub fn addresses_of(&self, pod: &Key) -> Vec<IpAddr> {
        let local = self.locals.values().find(|l| l.endpoint.pod == *pod).map(|l| l.endpoint.ips.clone());
        local.or_else(|| self.pods.get(pod).map(|p| p.ips.clone())).unwrap_or_default()
    }
}
