//! `service.kubernetes.io/topology-mode: Auto`: endpoints are shared out to zones as their nodes' processors are, each zone its
//! own first, so that clients stay in their zone and no endpoint gets much more than its part of them.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};
use xebec_loops::meta::label;
use xebec_loops::quantity::amount;

const ZONE: &str = "topology.kubernetes.io/zone";
const MODE: &str = "service.kubernetes.io/topology-mode";
/// Its name before Kubernetes 1.27.
const OLD_MODE: &str = "service.kubernetes.io/topology-aware-hints";
/// What an endpoint may get beyond its part.
const OVERLOAD: f64 = 0.2;

/// What of the nodes the slices depend on.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Topology {
    /// Node to zone.
    pub zones: HashMap<String, String>,
    /// Each zone's part of the processors; none where they cannot be compared.
    pub shares: Option<BTreeMap<String, f64>>,
}

impl Topology {
    /// Of all nodes.
    pub fn of<'a>(nodes: impl Iterator<Item = &'a Node> + Clone) -> Topology {
        let zone = |n: &Node| Some((n.metadata.name.clone()?, label(&n.metadata, ZONE)?.to_owned()));
        Topology { zones: nodes.clone().filter_map(zone).collect(), shares: shares(nodes) }
    }
}

/// What one node adds to it: its zone, and its processors as far as they count.
pub fn part(node: &Node) -> (Option<&str>, Option<i64>) {
    let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True");
    let control = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
    let is_control = control.iter().any(|role| label(&node.metadata, role).is_some());
    let cpu = node.status.as_ref().and_then(|s| s.allocatable.as_ref()?.get("cpu")).map_or(0, |q| amount(q).milli());
    (label(&node.metadata, ZONE).filter(|zone| !zone.is_empty()), (ready && !is_control).then_some(cpu))
}

/// A single node that tells too little makes all of it a guess; one zone has nobody to share with.
fn shares<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<BTreeMap<String, f64>> {
    let mut by_zone: BTreeMap<String, i64> = BTreeMap::new();
    for (zone, cpu) in nodes.map(part) {
        let Some(cpu) = cpu else {
            continue;
        };
        *by_zone.entry(zone.filter(|_| cpu > 0)?.to_owned()).or_default() += cpu;
    }
    let total: i64 = by_zone.values().sum();
    (by_zone.len() > 1).then(|| by_zone.into_iter().map(|(zone, cpu)| (zone, cpu as f64 / total as f64)).collect())
}

/// Whether a Service asks for it. It goes before `trafficDistribution`.
pub fn is_asked(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    let mode = annotations.and_then(|a| a.get(MODE).or_else(|| a.get(OLD_MODE)));
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

/// What a zone may have.
struct Allocation {
    least: usize,
    most: usize,
    desired: f64,
}

fn allocations(shares: Option<&BTreeMap<String, f64>>, endpoints: usize) -> Result<BTreeMap<&str, Allocation>, String> {
    let shares = shares.ok_or("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes")?;
    let told = |what: &str| format!("{what} ({endpoints} endpoints, {} zones)", shares.len());
    if shares.len() > endpoints {
        return Err(told("Insufficient number of endpoints"));
    }
    let part = |share: &f64| {
        let desired = share * endpoints as f64;
        let least = (desired / (1.0 + OVERLOAD)).ceil() as usize;
        (least, desired.max(least as f64))
    };
    let parts: Vec<(usize, f64)> = shares.values().map(part).collect();
    let least: usize = parts.iter().map(|(least, _)| least).sum();
    let Some(rest) = endpoints.checked_sub(least) else {
        return Err(told("Unable to allocate minimum required endpoints to each zone without exceeding overload threshold"));
    };
    let names = shares.keys().map(String::as_str);
    Ok(names.zip(parts).map(|(zone, (least, desired))| (zone, Allocation { least, most: least + rest, desired })).collect())
}

fn is_ready(e: &Endpoint) -> bool {
    e.conditions.as_ref().and_then(|c| c.ready) == Some(true)
}

fn hint(zone: &str) -> Option<EndpointHints> {
    Some(EndpointHints { for_zones: Some(vec![ForZone { name: zone.to_owned() }]), for_nodes: None })
}

/// Gives the ready endpoints of one family their zones. `before`: the zone each had, if one. They keep them while every zone
/// still has its part. An error says why there are no hints.
pub fn assign(endpoints: &mut [&mut Endpoint], before: &[Option<String>], shares: Option<&BTreeMap<String, f64>>) -> Result<(), String> {
    endpoints.iter_mut().for_each(|e| e.hints = None);
    let ready: Vec<usize> = (0..endpoints.len()).filter(|at| is_ready(endpoints[*at])).collect();
    let allocations = allocations(shares, ready.len())?;
    let own = |e: &Endpoint| e.zone.clone().filter(|zone| !zone.is_empty());
    if ready.iter().any(|at| own(endpoints[*at]).is_none()) {
        return Err("One or more endpoints do not have a zone specified".into());
    }
    let count = |zones: &[String]| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        zones.iter().for_each(|zone| *counts.entry(zone.clone()).or_default() += 1);
        counts
    };
    let kept: Option<Vec<String>> = ready.iter().map(|at| before[*at].clone()).collect();
    let fits = |zones: &Vec<String>| {
        let counts = count(zones);
        let in_bounds = |(zone, a): (&&str, &Allocation)| (a.least..=a.most).contains(counts.get(*zone).unwrap_or(&0));
        zones.iter().all(|zone| allocations.contains_key(zone.as_str())) && allocations.iter().all(in_bounds)
    };
    let zones = match kept.filter(fits) {
        Some(kept) => kept,
        None => {
            let mut zones: Vec<String> = ready.iter().filter_map(|at| own(endpoints[*at])).collect();
            let counts = count(&zones);
            share_out(&mut zones, &allocations, &counts);
            zones
        }
    };
    for (at, zone) in ready.into_iter().zip(zones) {
        endpoints[at].hints = hint(&zone);
    }
    Ok(())
}

/// Moves endpoints from zones with too many to zones with too few, until no zone is off by a whole one.
fn share_out(zones: &mut [String], allocations: &BTreeMap<&str, Allocation>, counts: &BTreeMap<String, usize>) {
    let mut off: BTreeMap<&str, f64> =
        allocations.iter().map(|(zone, a)| (*zone, *counts.get(*zone).unwrap_or(&0) as f64 - a.desired)).collect();
    loop {
        let by_size = |a: &(&&str, &f64), b: &(&&str, &f64)| a.1.total_cmp(b.1).then(b.0.cmp(a.0));
        let (Some((giver, more)), Some((taker, less))) = (off.iter().max_by(by_size), off.iter().min_by(by_size)) else {
            return;
        };
        let (giver, more, taker, less) = (*giver, *more, *taker, -*less);
        if (more < 1.0 && less < 1.0) || more < 0.5 || less < 0.5 {
            return;
        }
        let Some(moved) = zones.iter_mut().find(|zone| **zone == giver) else {
            return;
        };
        *moved = taker.to_owned();
        *off.entry(giver).or_default() -= 1.0;
        *off.entry(taker).or_default() += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{from_value, json};

    use super::*;

    fn endpoint(zone: Option<&str>, ready: bool) -> Endpoint {
        Endpoint {
            zone: zone.map(str::to_owned),
            ..from_value(json!({"addresses": ["10.0.0.1"], "conditions": {"ready": ready}})).unwrap()
        }
    }

    fn hinted(endpoints: &[Endpoint]) -> Vec<Option<String>> {
        endpoints.iter().map(|e| Some(e.hints.as_ref()?.for_zones.as_ref()?.first()?.name.clone())).collect()
    }

    fn run(endpoints: &mut [Endpoint], before: &[Option<String>], shares: &[(&str, f64)]) -> Result<BTreeMap<String, usize>, String> {
        let shares: BTreeMap<String, f64> = shares.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect();
        let mut all: Vec<&mut Endpoint> = endpoints.iter_mut().collect();
        assign(&mut all, before, Some(&shares).filter(|s| !s.is_empty()))?;
        let mut counts = BTreeMap::new();
        hinted(endpoints).into_iter().flatten().for_each(|zone| *counts.entry(zone).or_default() += 1);
        Ok(counts)
    }

    fn in_zones(counts: &[(&str, usize)]) -> Vec<Endpoint> {
        counts.iter().flat_map(|(zone, count)| std::iter::repeat_with(|| endpoint(Some(zone), true)).take(*count)).collect()
    }

    const EVEN: [(&str, f64); 3] = [("a", 1.0 / 3.0), ("b", 1.0 / 3.0), ("c", 1.0 / 3.0)];

    #[test]
    fn each_zone_gets_its_own_first_and_then_what_others_have_too_much_of() {
        let of = |counts: &[(&str, usize)], shares: &[(&str, f64)]| {
            let mut endpoints = in_zones(counts);
            let none = vec![None; endpoints.len()];
            run(&mut endpoints, &none, shares).map(|c| c.into_iter().collect::<Vec<_>>())
        };
        let counts = |counts: &[(&str, usize)]| Ok(counts.iter().map(|(zone, count)| ((*zone).to_owned(), *count)).collect::<Vec<_>>());
        assert_eq!(of(&[("a", 3), ("b", 3), ("c", 3)], &EVEN), counts(&[("a", 3), ("b", 3), ("c", 3)]));
        assert_eq!(of(&[("a", 6), ("b", 3)], &EVEN), counts(&[("a", 3), ("b", 3), ("c", 3)]));
        assert_eq!(of(&[("a", 4)], &[("a", 0.5), ("b", 0.5)]), counts(&[("a", 2), ("b", 2)]));
        let refused = of(&[("a", 2)], &EVEN).unwrap_err();
        assert_eq!(refused, "Insufficient number of endpoints (2 endpoints, 3 zones)");
        let refused = of(&[("a", 2), ("b", 1)], &[("a", 0.5), ("b", 0.5)]).unwrap_err();
        assert!(refused.starts_with("Unable to allocate minimum required endpoints"), "{refused}");
        assert!(of(&[("a", 2)], &[]).unwrap_err().starts_with("Insufficient Node information"));
    }

    #[test]
    fn endpoints_that_are_not_ready_have_no_hint_and_one_without_a_zone_takes_everybodys() {
        let mut endpoints = in_zones(&[("a", 2), ("b", 2)]);
        endpoints.push(endpoint(Some("a"), false));
        assert_eq!(run(&mut endpoints, &[None, None, None, None, None], &[("a", 0.5), ("b", 0.5)]).unwrap().len(), 2);
        assert_eq!(hinted(&endpoints)[4], None);
        endpoints.push(endpoint(None, true));
        let before = hinted(&endpoints);
        assert!(run(&mut endpoints, &before, &[("a", 0.5), ("b", 0.5)]).is_err());
        assert!(hinted(&endpoints).iter().all(Option::is_none));
    }

    #[test]
    fn nodes_count_when_they_are_ready_and_no_control_plane() {
        let node = |name: &str, zone: &str, cpu: &str, ready: &str, control: bool| -> Node {
            let mut labels = serde_json::Map::new();
            labels.insert(ZONE.into(), json!(zone));
            if control {
                labels.insert("node-role.kubernetes.io/control-plane".into(), json!(""));
            }
            from_value(json!({"metadata": {"name": name, "labels": labels},
                "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let mut nodes = vec![
            node("1", "a", "1500m", "True", false),
            node("2", "b", "4", "True", false),
            node("3", "a", "500m", "True", false),
            node("4", "c", "8", "False", false),
            node("5", "c", "8", "True", true),
        ];
        let of = |nodes: &[Node]| Topology::of(nodes.iter()).shares.map(|s| s.into_iter().collect::<Vec<_>>());
        assert_eq!(of(&nodes), Some(vec![("a".to_owned(), 1.0 / 3.0), ("b".to_owned(), 2.0 / 3.0)]));
        nodes.push(node("6", "", "2", "True", false));
        assert_eq!(of(&nodes), None, "one that tells no zone");
        assert_eq!(of(&nodes[..1]), None, "one zone has nobody to share with");
    }

    proptest! {
        /// Every zone has what it needs and nobody moves without need.
        #[test]
        fn no_zone_is_overloaded_and_a_second_look_changes_nothing(counts in (0usize..12, 0usize..12, 0usize..12), weights in (1u32..9, 1u32..9, 1u32..9)) {
            let total = f64::from(weights.0 + weights.1 + weights.2);
            let shares = [("a", f64::from(weights.0) / total), ("b", f64::from(weights.1) / total), ("c", f64::from(weights.2) / total)];
            let mut endpoints = in_zones(&[("a", counts.0), ("b", counts.1), ("c", counts.2)]);
            let none = vec![None; endpoints.len()];
            if let Ok(given) = run(&mut endpoints, &none, &shares) {
                prop_assert_eq!(given.values().sum::<usize>(), endpoints.len());
                for (zone, share) in shares {
                    let least = (share * endpoints.len() as f64 / 1.2).floor() as usize;
                    prop_assert!(given.get(zone).copied().unwrap_or(0) + 1 >= least, "{given:?} {shares:?}");
                }
                let before = hinted(&endpoints);
                run(&mut endpoints, &before, &shares).expect("as before");
                prop_assert_eq!(hinted(&endpoints), before);
            }
        }
    }
}
