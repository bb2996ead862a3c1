//! The custom resource `LoadBalancerPool`, and the addresses it stands for.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use xebec_loops::Selector;

/// As the API has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerPool {
    pub metadata: ObjectMeta,
    pub spec: PoolSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PoolStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PoolSpec {
    pub cidrs: Vec<String>,
    pub ranges: Vec<StartStop>,
    pub service_selector: Option<LabelSelector>,
    pub disabled: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartStop {
    pub start: String,
    pub stop: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolStatus {
    pub total: i64,
    pub assigned: i64,
    pub available: i64,
    pub conditions: Vec<Condition>,
}

impl kube::Resource for LoadBalancerPool {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "LoadBalancerPool".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "xebec.dev".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "loadbalancerpools".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Consecutive addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub v4: bool,
    pub first: u128,
    pub last: u128,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

impl Range {
    /// From its ends; none if they are of two families or in the wrong order.
    fn between(start: IpAddr, stop: IpAddr) -> Option<Range> {
        let range = Range { v4: start.is_ipv4(), first: number(start), last: number(stop) };
        (start.is_ipv4() == stop.is_ipv4() && range.first <= range.last).then_some(range)
    }

    /// A network, without the addresses that stand for the network itself and for everybody in it.
    fn inside(net: IpNet) -> Range {
        let (first, last) = (number(net.network()), number(net.broadcast()));
        let ends = u128::from(last - first > 1);
        Range { v4: net.addr().is_ipv4(), first: first + ends, last: last - ends }
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.v4 == ip.is_ipv4() && (self.first..=self.last).contains(&number(ip))
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.v4 == other.v4 && self.first <= other.last && other.first <= self.last
    }

    /// Its addresses in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.v4;
        (self.first..=self.last).map(move |n| match u32::try_from(n) {
            Ok(n) if v4 => IpAddr::V4(Ipv4Addr::from(n)),
            _ => IpAddr::V6(Ipv6Addr::from(n)),
        })
    }

    fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }
}

/// A pool as addresses are given from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub name: String,
    /// Without those that are not understood.
    pub ranges: Vec<Range>,
    pub selector: Selector,
    pub disabled: bool,
    /// What is not understood, in words for its author.
    pub invalid: Vec<String>,
}

impl Pool {
    pub fn of(pool: &LoadBalancerPool) -> Pool {
        let (mut ranges, mut invalid) = (Vec::new(), Vec::new());
        for cidr in &pool.spec.cidrs {
            match cidr.trim().parse::<IpNet>() {
                Ok(net) => ranges.push(Range::inside(net)),
                Err(_) => invalid.push(format!("{cidr:?} is no network: expected ADDRESS/LENGTH")),
            }
        }
        for StartStop { start, stop } in &pool.spec.ranges {
            match start.trim().parse().ok().zip(stop.trim().parse().ok()).and_then(|(a, b)| Range::between(a, b)) {
                Some(range) => ranges.push(range),
                None => invalid.push(format!("{start:?} to {stop:?} is no range: expected two addresses of one family in order")),
            }
        }
        ranges.sort();
        if ranges.windows(2).any(|two| two[0].overlaps(&two[1])) {
            invalid.push("parts of the pool overlap".into());
        }
        let selector = match &pool.spec.service_selector {
            None => Selector::EVERYTHING,
            some => Selector::from_label_selector(some.as_ref()),
        };
        let name = pool.metadata.name.clone().unwrap_or_default();
        Pool { name, ranges, selector, disabled: pool.spec.disabled, invalid }
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(ip))
    }

    pub fn overlaps(&self, other: &Pool) -> bool {
        self.ranges.iter().any(|a| other.ranges.iter().any(|b| a.overlaps(b)))
    }

    /// How many addresses it has; more than fit are as many as fit.
    pub fn total(&self) -> i64 {
        let total = self.ranges.iter().fold(0u128, |sum, r| sum.saturating_add(r.len()));
        i64::try_from(total).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn pool(spec: serde_json::Value) -> Pool {
        Pool::of(&from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())
    }

    #[test]
    fn networks_lose_their_ends_and_ranges_do_not() {
        let count = |spec| pool(spec).total();
        assert_eq!(count(json!({"cidrs": ["192.0.2.0/24"]})), 254);
        assert_eq!(count(json!({"cidrs": ["192.0.2.0/31", "192.0.2.9/32"]})), 3);
        assert_eq!(count(json!({"ranges": [{"start": "192.0.2.10", "stop": "192.0.2.19"}]})), 10);
        assert_eq!(count(json!({"cidrs": ["2001:db8::/32"]})), i64::MAX);
        let p = pool(json!({"cidrs": ["192.0.2.4/30"]}));
        let all: Vec<String> = p.ranges[0].addresses().map(|a| a.to_string()).collect();
        assert_eq!(all, ["192.0.2.5", "192.0.2.6"]);
        assert!(p.contains("192.0.2.5".parse().unwrap()) && !p.contains("192.0.2.4".parse().unwrap()));
        let v6 = pool(json!({"cidrs": ["2001:db8::8/126"]}));
        assert_eq!(v6.ranges[0].addresses().next().unwrap().to_string(), "2001:db8::9");
    }

    #[test]
    fn what_is_not_understood_is_named_and_the_rest_counts() {
        let p = pool(json!({
            "cidrs": ["192.0.2.0", "192.0.2.0/24"],
            "ranges": [{"start": "192.0.3.9", "stop": "192.0.3.1"}, {"start": "192.0.3.1", "stop": "2001:db8::1"}]}));
        assert_eq!((p.total(), p.invalid.len()), (254, 3));
        assert_eq!(pool(json!({"cidrs": ["192.0.2.0/24", "192.0.2.128/25"]})).invalid, ["parts of the pool overlap"]);
        assert!(pool(json!({"cidrs": ["10.0.0.0/8"]})).overlaps(&pool(json!({"cidrs": ["10.9.0.0/16"]}))));
    }
}
