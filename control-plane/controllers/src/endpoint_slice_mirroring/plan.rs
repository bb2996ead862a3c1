//! Which slices an Endpoints object should have: one for each set of ports in each family.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use xebec_loops::meta::controller_reference;

use crate::endpoint_slice::{MANAGED_BY, SERVICE_NAME};

pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Addresses of one subset that are mirrored.
pub const MAX_ENDPOINTS: usize = 1000;
/// Annotations that speak of the Endpoints object alone.
const NOT_COPIED: [&str; 2] = ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

/// Writes that make the slices right, and what was left out.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
    /// Addresses that are none.
    pub invalid: usize,
    /// Addresses beyond [`MAX_ENDPOINTS`] of their subset.
    pub over_capacity: usize,
}

/// Family, and ports in an order that makes equal sets equal.
type Group = (&'static str, Vec<(Option<String>, Option<i32>, Option<String>, Option<String>)>);

fn group(family: &'static str, ports: &[EndpointPort]) -> Group {
    let mut key: Vec<_> = ports.iter().map(|p| (p.name.clone(), p.port, p.protocol.clone(), p.app_protocol.clone())).collect();
    key.sort();
    (family, key)
}

fn ports_of(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten();
    ports
        .map(|p| EndpointPort {
            name: Some(p.name.clone().unwrap_or_default()),
            port: Some(p.port),
            protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: p.app_protocol.clone(),
        })
        .collect()
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

/// Compares what the Endpoints object says with the slices there are.
pub fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut wanted: BTreeMap<Group, (Vec<EndpointPort>, BTreeMap<String, Endpoint>)> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports_of(subset);
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        let mut mirrored = 0;
        for (address, ready) in ready.chain(not_ready) {
            let Ok(ip) = address.ip.parse::<IpAddr>().map(|ip| ip.to_canonical()) else {
                plan.invalid += 1;
                continue;
            };
            if mirrored == MAX_ENDPOINTS {
                plan.over_capacity += 1;
                continue;
            }
            mirrored += 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let (_, of) = wanted.entry(group(family, &ports)).or_insert_with(|| (ports.clone(), BTreeMap::new()));
            // The same address in two subsets is ready if one of them says so, as ready ones come first in each.
            let id = format!("{ip}/{}", address.target_ref.as_ref().and_then(|t| t.uid.as_deref()).unwrap_or_default());
            let new = endpoint(address, ip, ready);
            of.entry(id)
                .and_modify(|old| {
                    if ready {
                        *old = new.clone()
                    }
                })
                .or_insert(new);
        }
    }
    let mut have: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let family = if slice.address_type == "IPv6" { "IPv6" } else { "IPv4" };
        have.entry(group(family, slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
    }
    for (key, (ports, of)) in wanted {
        let mut slices = have.remove(&key).unwrap_or_default().into_iter();
        let mut wanted = slice(endpoints, key.0, ports, of.into_values().collect());
        match slices.next() {
            Some(first) => {
                wanted.metadata = ObjectMeta {
                    labels: wanted.metadata.labels,
                    annotations: wanted.metadata.annotations,
                    owner_references: wanted.metadata.owner_references,
                    ..first.metadata.clone()
                };
                if wanted != **first {
                    plan.update.push(wanted);
                }
            }
            None => plan.create.push(wanted),
        }
        plan.delete.extend(slices.cloned());
    }
    plan.delete.extend(have.into_values().flatten().cloned());
    plan
}

fn slice(endpoints: &Endpoints, family: &str, ports: Vec<EndpointPort>, of: Vec<Endpoint>) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels.insert(SERVICE_NAME.into(), name.clone());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(of),
        ports: Some(ports),
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..Default::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        from_value(json!({"metadata": {"name": "db", "namespace": "n", "uid": "eu", "labels": {"l": "v"},
            "annotations": {"a": "b", NOT_COPIED[0]: "now"}}, "subsets": subsets}))
        .unwrap()
    }

    fn created(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
        let mut slices = plan.create.clone();
        slices.iter_mut().enumerate().for_each(|(i, s)| s.metadata.name = Some(format!("db-{i}")));
        slices.into_iter().map(Arc::new).collect()
    }

    #[test]
    fn each_set_of_ports_and_family_becomes_a_slice() {
        let e = endpoints(json!([
            {"addresses": [{"ip": "192.0.2.1", "nodeName": "a"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
             "ports": [{"name": "sql", "port": 5432}]},
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "nowhere"}], "ports": [{"port": 53, "protocol": "UDP"}]},
        ]));
        let first = plan(&e, &[]);
        assert_eq!((first.create.len(), first.invalid, first.over_capacity), (3, 1, 0));
        let slices = created(&first);
        let sql = slices.iter().find(|s| s.address_type == "IPv4" && s.ports.as_ref().unwrap()[0].port == Some(5432)).unwrap();
        assert_eq!(
            serde_json::to_value(sql.endpoints.as_ref().unwrap()).unwrap(),
            json!([{"addresses": ["192.0.2.1"], "conditions": {"ready": true}, "nodeName": "a"},
                   {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}])
        );
        let meta = serde_json::to_value(&sql.metadata).unwrap();
        assert_eq!(meta["labels"], json!({"l": "v", MANAGED_BY: MANAGER, SERVICE_NAME: "db"}));
        assert_eq!(meta["annotations"], json!({"a": "b"}));
        assert_eq!((&meta["ownerReferences"][0]["kind"], &meta["ownerReferences"][0]["uid"]), (&json!("Endpoints"), &json!("eu")));
        let again = plan(&e, &slices);
        assert_eq!((again.create.len(), again.update.len(), again.delete.len()), (0, 0, 0), "nothing is left to do");
    }

    #[test]
    fn a_change_is_one_update_and_what_is_gone_goes() {
        let subset = |ip: &str| json!({"addresses": [{"ip": ip}], "ports": [{"port": 80}]});
        let slices = created(&plan(&endpoints(json!([subset("192.0.2.1")])), &[]));
        let moved = plan(&endpoints(json!([subset("192.0.2.9")])), &slices);
        assert_eq!((moved.create.len(), moved.update.len(), moved.delete.len()), (0, 1, 0));
        assert_eq!(moved.update[0].metadata.name, slices[0].metadata.name);
        assert_eq!(moved.update[0].endpoints.as_ref().unwrap()[0].addresses, ["192.0.2.9"]);
        let emptied = plan(&endpoints(json!([])), &slices);
        assert_eq!((emptied.create.len(), emptied.update.len(), emptied.delete.len()), (0, 0, 1));
    }

    #[test]
    fn a_subset_is_cut_off_at_its_limit() {
        let many: Vec<Value> = (0..1003).map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250)})).collect();
        let plan = plan(&endpoints(json!([{"addresses": many, "ports": [{"port": 80}]}])), &[]);
        assert_eq!((plan.create[0].endpoints.as_ref().unwrap().len(), plan.over_capacity), (MAX_ENDPOINTS, 3));
    }
}
