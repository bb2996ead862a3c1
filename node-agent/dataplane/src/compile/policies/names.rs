//! From numbers in maps back to the objects they stand for.

use std::net::IpAddr;

use xebec_ebpf_abi::{Addr, Endpoint, direction};

use super::{Claim, Policies};
use crate::compile::input::Key;
use crate::compile::rules::rule_number;

/// A rule of a NetworkPolicy.
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
        self.policies.iter().find_map(|(key, policy)| {
            let lists = [(direction::INGRESS, &policy.ingress), (direction::EGRESS, &policy.egress)];
            lists.into_iter().find_map(|(way, rules)| {
                let index = (0..rules.as_ref().map_or(0, Vec::len)).find(|index| rule_number(key, way, *index) == number)?;
                Some(NamedRule { policy: key.clone(), direction: way, index })
            })
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
