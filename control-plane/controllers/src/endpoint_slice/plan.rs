//! Which EndpointSlices a Service should have, with as few writes as possible.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use xebec_loops::meta::{controller_reference, deleting};
use xebec_loops::pod::{is_ready, node_name};

use super::topology::{self, Topology};
use crate::service_pods::{addresses, hostname, is_headless, target_port};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice.
pub const MAX_ENDPOINTS: usize = 100;

/// Writes that make the slices right.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
    /// What the Service's author is told of topology hints.
    pub notes: Vec<Note>,
}

/// Whether endpoints are shared out to zones as asked.
#[derive(Debug, PartialEq)]
pub enum Note {
    Enabled(String),
    Disabled(String),
}

/// Ports in an order that makes equal sets equal.
type Ports = Vec<(Option<String>, Option<String>, Option<i32>, Option<String>)>;

fn key_of(ports: &[EndpointPort]) -> Ports {
    let mut key: Ports = ports.iter().map(|p| (p.name.clone(), p.protocol.clone(), p.port, p.app_protocol.clone())).collect();
    key.sort();
    key
}

/// The families a Service has addresses of.
pub fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.clone().unwrap_or_default();
    let named: Vec<&'static str> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|f| match f.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    let v6 = spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':'));
    vec![if v6 { "IPv6" } else { "IPv4" }]
}

/// A pod as an endpoint of the Service in one family.
pub fn endpoint(service: &Service, pod: &Pod, family: &str, zone: Option<&str>) -> Option<Endpoint> {
    let address = addresses(pod).into_iter().find(|a| a.contains(':') == (family == "IPv6"))?;
    let publish_all = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let (serving, terminating) = (is_ready(pod), deleting(&pod.metadata));
    let ready = publish_all || (serving && !terminating);
    Some(Endpoint {
        addresses: vec![address.to_owned()],
        hints: hints(service, node_name(pod), zone).filter(|_| ready),
        conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
        node_name: node_name(pod).map(str::to_owned),
        zone: zone.map(str::to_owned),
        hostname: hostname(pod, service),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// Who shall prefer an endpoint (`trafficDistribution`): its own zone, or its own node and then its zone.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let for_zones = zone.map(|name| vec![ForZone { name: name.to_owned() }]);
    if topology::is_asked(service) {
        return None;
    }
    match service.spec.as_ref()?.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => Some(EndpointHints { for_zones: Some(for_zones?), for_nodes: None }),
        "PreferSameNode" => Some(EndpointHints { for_zones, for_nodes: Some(vec![ForNode { name: node?.to_owned() }]) }),
        _ => None,
    }
}

fn ports_for(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .filter_map(|p| {
            Some(EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                port: Some(target_port(pod, p)?),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect()
}

fn labels_for(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

/// Compares what the Service should have with the slices it has.
pub fn plan(service: &Service, pods: &[Arc<Pod>], topology: &Topology, existing: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let families = families(service);
    for family in &families {
        let mut groups: BTreeMap<Ports, (Vec<EndpointPort>, BTreeMap<String, Endpoint>)> = BTreeMap::new();
        for pod in pods {
            let zone = node_name(pod).and_then(|n| topology.zones.get(n)).map(String::as_str);
            if let Some(e) = endpoint(service, pod, family, zone) {
                let ports = ports_for(service, pod);
                let id = identity(&e);
                groups.entry(key_of(&ports)).or_insert_with(|| (ports, BTreeMap::new())).1.insert(id, e);
            }
        }
        if topology::is_asked(service) {
            let all = groups.values_mut().flat_map(|(_, endpoints)| endpoints.iter_mut());
            plan.notes.extend(share_out(all, topology, family, existing));
        }
        if groups.is_empty() {
            // A Service without endpoints still has a slice, so that clients see it is known.
            groups.insert(Ports::new(), (Vec::new(), BTreeMap::new()));
        }
        let mut have: BTreeMap<Ports, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
        for slice in existing.iter().filter(|s| s.address_type == **family) {
            have.entry(key_of(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
        }
        for (key, (ports, wanted)) in groups {
            let slices = have.remove(&key).unwrap_or_default();
            reconcile_group(service, family, &ports, wanted, &slices, &mut plan);
        }
        plan.delete.extend(have.into_values().flatten().cloned());
    }
    let other_family = existing.iter().filter(|s| !families.contains(&s.address_type.as_str()));
    plan.delete.extend(other_family.cloned());
    recycle(&mut plan);
    plan
}

/// Hints for the endpoints of a family, and what is to be said of them: that there are none, and why; that there are now.
fn share_out<'a>(
    endpoints: impl Iterator<Item = (&'a String, &'a mut Endpoint)>,
    topology: &Topology,
    family: &str,
    existing: &[Arc<EndpointSlice>],
) -> Option<Note> {
    let of_family = existing.iter().filter(|s| s.address_type == family).flat_map(|s| s.endpoints.iter().flatten());
    let zone = |e: &Endpoint| Some(e.hints.as_ref()?.for_zones.as_ref()?.first()?.name.clone());
    let had: HashMap<String, String> = of_family.filter_map(|e| Some((identity(e), zone(e)?))).collect();
    let (before, mut endpoints): (Vec<Option<String>>, Vec<&mut Endpoint>) = endpoints.map(|(id, e)| (had.get(id).cloned(), e)).unzip();
    let told = |what: &str| format!("{what}, addressType: {family}");
    match topology::assign(&mut endpoints, &before, topology.shares.as_ref()) {
        Ok(()) => had.is_empty().then(|| Note::Enabled(told("Topology Aware Hints has been enabled"))),
        Err(why) => Some(Note::Disabled(told(&why))),
    }
}

/// A slice that would go takes the contents of one that would be made: one write instead of two.
fn recycle(plan: &mut Plan) {
    for new in std::mem::take(&mut plan.create) {
        match plan.delete.iter().position(|s| s.address_type == new.address_type) {
            Some(i) => {
                let mut slice = (*plan.delete.remove(i)).clone();
                slice.endpoints = new.endpoints;
                slice.ports = new.ports;
                slice.metadata.labels = new.metadata.labels;
                plan.update.push(slice);
            }
            None => plan.create.push(new),
        }
    }
}

/// Endpoints are the same if they are the same pod at the same address.
fn identity(e: &Endpoint) -> String {
    let uid = e.target_ref.as_ref().and_then(|t| t.uid.as_deref()).unwrap_or_default();
    format!("{}/{uid}", e.addresses.join(","))
}

fn reconcile_group(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    mut wanted: BTreeMap<String, Endpoint>,
    slices: &[&Arc<EndpointSlice>],
    plan: &mut Plan,
) {
    let labels = labels_for(service);
    // What is there stays in its slice; changed endpoints are replaced in place, others leave.
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in slices {
        let mut endpoints = Vec::new();
        let mut changed = slice.metadata.labels.as_ref() != Some(&labels);
        for old in slice.endpoints.iter().flatten() {
            match wanted.remove(&identity(old)) {
                Some(new) => {
                    changed |= new != *old;
                    endpoints.push(new);
                }
                None => changed = true,
            }
        }
        kept.push((slice, endpoints, changed));
    }
    let mut new: Vec<Endpoint> = wanted.into_values().collect();
    // New endpoints go into slices that are written anyway, the fullest first.
    kept.sort_by_key(|(_, endpoints, _)| std::cmp::Reverse(endpoints.len()));
    for (_, endpoints, _) in kept.iter_mut().filter(|(_, _, changed)| *changed) {
        fill(endpoints, &mut new);
    }
    // One more write to a slice with room for all of the rest is better than a further slice.
    if !new.is_empty() && new.len() < MAX_ENDPOINTS {
        let room = kept.iter_mut().find(|(_, endpoints, changed)| !changed && endpoints.len() + new.len() <= MAX_ENDPOINTS);
        if let Some((_, endpoints, changed)) = room {
            fill(endpoints, &mut new);
            *changed = true;
        }
    }
    let mut any = !new.is_empty();
    while !new.is_empty() {
        let mut endpoints = Vec::new();
        fill(&mut endpoints, &mut new);
        plan.create.push(new_slice(service, family, ports, endpoints, &labels));
    }
    any |= kept.iter().any(|(_, endpoints, _)| !endpoints.is_empty());
    // The one placeholder of a Service without endpoints is kept; other empty slices go.
    let mut placeholder_needed = !any && ports.is_empty();
    for (slice, endpoints, changed) in kept {
        if endpoints.is_empty() && !std::mem::take(&mut placeholder_needed) {
            plan.delete.push(slice.clone());
        } else if changed {
            let mut updated = (**slice).clone();
            updated.endpoints = Some(endpoints);
            updated.metadata.labels = Some(labels.clone());
            plan.update.push(updated);
        }
    }
    if placeholder_needed {
        plan.create.push(new_slice(service, family, ports, Vec::new(), &labels));
    }
}

fn fill(into: &mut Vec<Endpoint>, from: &mut Vec<Endpoint>) {
    let room = MAX_ENDPOINTS.saturating_sub(into.len()).min(from.len());
    into.extend(from.drain(..room));
}

fn new_slice(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    labels: &BTreeMap<String, String>,
) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![controller_reference(service)]),
            ..Default::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, from_value, json};

    fn service(ports: Value) -> Service {
        from_value(json!({"metadata": {"name": "s", "namespace": "n", "uid": "su", "labels": {"l": "v"}},
            "spec": {"clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "selector": {"a": "b"}, "ports": ports}}))
        .unwrap()
    }

    fn pod(i: usize, ready: bool, port: i32) -> Arc<Pod> {
        Arc::new(
            from_value(json!({"metadata": {"name": format!("p{i}"), "namespace": "n", "uid": format!("u{i}")},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", i / 250, i % 250),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
            .unwrap(),
        )
    }

    /// Applies a plan as the API server would.
    fn apply(plan: Plan, existing: &[Arc<EndpointSlice>], names: &mut usize) -> Vec<Arc<EndpointSlice>> {
        let mut slices: BTreeMap<String, Arc<EndpointSlice>> =
            existing.iter().map(|s| (s.metadata.name.clone().unwrap(), s.clone())).collect();
        for s in plan.delete {
            slices.remove(s.metadata.name.as_ref().unwrap());
        }
        for s in plan.update {
            slices.insert(s.metadata.name.clone().unwrap(), Arc::new(s));
        }
        for mut s in plan.create {
            *names += 1;
            s.metadata.name = Some(format!("s-{names}"));
            slices.insert(format!("s-{names}"), Arc::new(s));
        }
        slices.into_values().collect()
    }

    #[test]
    fn endpoints_carry_conditions_node_zone_and_ports() {
        let s = service(json!([{"name": "http", "port": 80, "targetPort": "web"}, {"name": "gone", "port": 1, "targetPort": "no"}]));
        let topology = Topology { zones: HashMap::from([("node".to_owned(), "z1".to_owned())]), ..Topology::default() };
        let plan = plan(&s, &[pod(1, true, 8080)], &topology, &[]);
        let slice = serde_json::to_value(&plan.create[0]).unwrap();
        assert_eq!(
            slice["endpoints"],
            json!([{"addresses": ["10.1.0.1"], "nodeName": "node", "zone": "z1",
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "n", "name": "p1", "uid": "u1"}}])
        );
        assert_eq!(slice["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        assert_eq!(slice["metadata"]["labels"], json!({"l": "v", SERVICE_NAME: "s", MANAGED_BY: MANAGER}));
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "su");
    }

    #[test]
    fn traffic_distribution_becomes_hints_of_ready_endpoints() {
        let mut s = service(json!([]));
        let mut hints = |distribution: &str, ready: bool, zone: Option<&str>| {
            s.spec.as_mut().unwrap().traffic_distribution = Some(distribution.to_owned());
            serde_json::to_value(endpoint(&s, &pod(1, ready, 80), "IPv4", zone).unwrap()).unwrap()["hints"].clone()
        };
        let zone = json!({"forZones": [{"name": "z1"}]});
        assert_eq!(hints("PreferClose", true, Some("z1")), zone);
        assert_eq!(hints("PreferSameZone", true, Some("z1")), zone);
        assert_eq!(hints("PreferSameNode", true, Some("z1")), json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "node"}]}));
        assert_eq!(hints("PreferSameNode", true, None), json!({"forNodes": [{"name": "node"}]}));
        assert_eq!(hints("PreferClose", true, None), json!(null));
        assert_eq!(hints("PreferClose", false, Some("z1")), json!(null));
        assert_eq!(hints("example.com/other", true, Some("z1")), json!(null));
    }

    #[test]
    fn topology_mode_auto_goes_before_traffic_distribution_and_is_told_of() {
        let mut s = service(json!([{"port": 80}]));
        s.spec.as_mut().unwrap().traffic_distribution = Some("PreferSameNode".into());
        s.metadata.annotations = Some(BTreeMap::from([("service.kubernetes.io/topology-mode".to_owned(), "Auto".to_owned())]));
        let topology = Topology {
            zones: HashMap::from([("node".to_owned(), "z1".to_owned())]),
            shares: Some(BTreeMap::from([("z1".to_owned(), 0.5), ("z2".to_owned(), 0.5)])),
        };
        let pods: Vec<Arc<Pod>> = (0..4).map(|i| pod(i, true, 80)).collect();
        let mut names = 0;
        let first = plan(&s, &pods, &topology, &[]);
        assert_eq!(first.notes, [Note::Enabled("Topology Aware Hints has been enabled, addressType: IPv4".into())]);
        let slices = apply(first, &[], &mut names);
        let hints: Vec<EndpointHints> = slices[0].endpoints.iter().flatten().filter_map(|e| e.hints.clone()).collect();
        let of = |zone: &str| hints.iter().filter(|h| h.for_nodes.is_none() && h.for_zones.as_ref().unwrap()[0].name == zone).count();
        assert_eq!((of("z1"), of("z2")), (2, 2));
        assert_eq!(plan(&s, &pods, &topology, &slices), Plan::default(), "what is there is kept");
        // Too few for two zones: no hints, and the reason.
        let one = plan(&s, &pods[..1], &topology, &slices);
        assert_eq!(one.notes, [Note::Disabled("Insufficient number of endpoints (1 endpoints, 2 zones), addressType: IPv4".into())]);
        assert!(one.update[0].endpoints.iter().flatten().all(|e| e.hints.is_none()));
    }

    #[test]
    fn terminating_pods_still_serve_but_are_not_ready() {
        let mut p = (*pod(1, true, 80)).clone();
        p.metadata.deletion_timestamp = Some(xebec_loops::clock::now());
        let c = endpoint(&service(json!([])), &p, "IPv4", None).unwrap().conditions.unwrap();
        assert_eq!((c.ready, c.serving, c.terminating), (Some(false), Some(true), Some(true)));
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice() {
        let s = service(json!([{"port": 80}]));
        let mut names = 0;
        let first = apply(plan(&s, &[], &Topology::default(), &[]), &[], &mut names);
        assert_eq!(first.len(), 1);
        assert_eq!(plan(&s, &[], &Topology::default(), &first), Plan::default());
        let one = apply(plan(&s, &[pod(1, true, 80)], &Topology::default(), &first), &first, &mut names);
        assert_eq!((one.len(), one[0].endpoints.as_ref().unwrap().len()), (1, 1));
        let none = apply(plan(&s, &[], &Topology::default(), &one), &one, &mut names);
        assert_eq!((none.len(), none[0].endpoints.as_ref().unwrap().len()), (1, 0));
    }

    proptest! {
        #[test]
        fn slices_hold_exactly_the_pods_and_a_second_plan_is_empty(
            rounds in prop::collection::vec(prop::collection::btree_map(0..400_usize, (any::<bool>(), 80..82_i32), 0..350), 1..4),
        ) {
            let s = service(json!([{"name": "http", "port": 80, "targetPort": "web"}]));
            let (mut slices, mut names) = (Vec::new(), 0);
            for round in rounds {
                let pods: Vec<_> = round.iter().map(|(i, (ready, port))| pod(*i, *ready, *port)).collect();
                slices = apply(plan(&s, &pods, &Topology::default(), &slices), &slices, &mut names);
                let mut seen: Vec<(String, bool, i32)> = slices.iter().flat_map(|s| {
                    let port = s.ports.as_ref().unwrap().first().and_then(|p| p.port).unwrap_or(0);
                    s.endpoints.iter().flatten().map(move |e| (e.addresses[0].clone(), e.conditions.as_ref().unwrap().ready.unwrap(), port))
                }).collect();
                let mut want: Vec<_> = round.iter().map(|(i, (ready, port))| (format!("10.1.{}.{}", i / 250, i % 250), *ready, *port)).collect();
                seen.sort();
                want.sort();
                prop_assert_eq!(seen, want);
                prop_assert!(slices.iter().all(|s| s.endpoints.as_ref().unwrap().len() <= MAX_ENDPOINTS));
                prop_assert_eq!(plan(&s, &pods, &Topology::default(), &slices), Plan::default());
            }
        }
    }
}
