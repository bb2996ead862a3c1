//! What is wrong with Services, for their authors: no room in the maps, or an address that is another's.

use std::collections::BTreeMap;

use xebec_ebpf_abi::{Addr, FrontendKey, proto};

use super::{Owner, Services};
use crate::compile::input::Key;

/// A Service, or one of its EndpointSlices, and the reason of the Event it gets.
pub type Subject = (Key, &'static str);

/// There is no room for it.
pub const DOES_NOT_FIT: &str = "ServiceDoesNotFit";
/// Another one has its address and port.
pub const ADDRESS_TAKEN: &str = "ServiceAddressTaken";

/// There is no room for its ring.
pub const WITHOUT_RING: &str = "ServiceWithoutRing";
/// An annotation of it means nothing.
pub const ANNOTATION_INVALID: &str = "ServiceAnnotationInvalid";
/// An annotation of an EndpointSlice means nothing.
pub const SLICE_ANNOTATION_INVALID: &str = "EndpointSliceAnnotationInvalid";

/// Whether this depends on the node that says it; all else every node sees alike.
pub fn is_nodes_own(reason: &str) -> bool {
    matches!(reason, DOES_NOT_FIT | WITHOUT_RING)
}

impl Services {
    /// Services that are to be hashed consistently and are not.
    fn without_ring(&self) -> impl Iterator<Item = (Subject, String)> {
        // Seldom any, so they are looked for by what is always known.
        let installed = if self.without_ring.is_empty() { None } else { Some(&self.installed) };
        let is_without = |ports: &[(super::PortId, super::Installed)]| {
            ports.iter().any(|(_, port)| [port.ids.cluster, port.ids.local].iter().any(|set| self.without_ring.contains(set)))
        };
        installed.into_iter().flatten().filter_map(move |(owner, ports)| match owner {
            Owner::Service(key) if is_without(ports) => Some(((Key::clone(key), WITHOUT_RING), NO_RING.to_owned())),
            Owner::Service(_) | Owner::Sandbox(_) => None,
        })
    }

    /// What there is to say now.
    pub fn complaints(&self) -> BTreeMap<Subject, String> {
        let of = |(key, text)| ((key, DOES_NOT_FIT), text);
        let mut complaints: BTreeMap<Subject, String> = self.refusals().into_iter().map(of).chain(self.without_ring()).collect();
        for (key, service) in self.mistaken.iter().filter_map(|key| Some((key, self.services.get(key)?))) {
            complaints.insert((Key::clone(key), ANNOTATION_INVALID), service.mistakes.join("; "));
        }
        for (key, slice) in self.mistaken_slices.iter().filter_map(|key| Some((key, self.slices.get(key)?))) {
            complaints.extend(slice.mistake.clone().map(|text| ((Key::clone(key), SLICE_ANNOTATION_INVALID), text)));
        }
        for key in &self.contested {
            let claims = self.claims.get(key).map_or(&[][..], |claims| &claims[..]);
            let Some(((winner, _), losers)) = claims.split_first() else {
                continue;
            };
            let winner = match winner {
                Owner::Service(key) => format!("Service {key}, whose name comes first"),
                Owner::Sandbox(_) => "a host port".to_owned(),
            };
            for (owner, _) in losers {
                if let Owner::Service(loser) = owner {
                    let subject = (Key::clone(loser), ADDRESS_TAKEN);
                    complaints.entry(subject).or_insert_with(|| format!("{} leads to {winner}: give one of them another", place(key)));
                }
            }
        }
        complaints
    }
}

const NO_RING: &str = "its endpoints are chosen without consistent hashing: the map RING_PLACES has no room for its ring (start the agent with a higher --max-map-entries or a smaller --maglev-table-size, or give Services that need none the annotation xebec.dev/lb-algorithm: random)";

fn place(key: &FrontendKey) -> String {
    let protocol = match key.proto {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        _ => "SCTP",
    };
    if key.addr == Addr::ANY_V4 || key.addr == Addr::ANY {
        return format!("{protocol} port {} of the node's addresses", key.port.get());
    }
    if *key == FrontendKey::address(key.addr) {
        return format!("address {}", key.addr.to_ip());
    }
    format!("{protocol} port {} of {}", key.port.get(), key.addr.to_ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::expand::NodeFacts;
    use crate::compile::input::{self, Forwarding};
    use crate::compile::model::Kernel;
    use crate::compile::state::State;

    fn set(state: &mut State, name: &str, spec: serde_json::Value) {
        let service = serde_json::json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
        let service = serde_json::from_value(service).expect("a Service");
        state.services.set_service(Key::new("ns", name), input::service(&service));
    }

    fn told(state: &State) -> Vec<(String, &'static str)> {
        state.services.complaints().into_keys().map(|(key, reason)| (key.to_string(), reason)).collect()
    }

    #[test]
    fn who_comes_second_is_told_and_is_served_when_the_first_has_gone() {
        let (mut state, mut kernel) = (State::default(), Kernel::default());
        state.set_node(NodeFacts { name: "here".into(), ..NodeFacts::default() });
        let of = |ip: &str, node_port: u16| serde_json::json!({"type": "NodePort", "clusterIP": ip, "externalIPs": ["192.0.2.7"], "ports": [{"port": 80, "nodePort": node_port}]});
        set(&mut state, "b", of("10.96.0.2", 30002));
        kernel.follow(&mut state, |_| ());
        assert_eq!(told(&state), vec![]);
        let had = kernel.0.frontends.clone();
        set(&mut state, "a", of("10.96.0.1", 30001));
        kernel.follow(&mut state, |_| ());
        assert_eq!(told(&state), vec![("ns/b".into(), ADDRESS_TAKEN)]);
        let text = state.services.complaints().into_values().next().expect("one");
        assert_eq!(text, "TCP port 80 of 192.0.2.7 leads to Service ns/a, whose name comes first: give one of them another");
        assert_eq!(kernel.0.frontends.len(), had.len() + 3, "what is not contested is served");
        state.services.set_service(Key::new("ns", "a"), None);
        kernel.follow(&mut state, |_| ());
        assert_eq!(told(&state), vec![]);
        assert_eq!(kernel.0.frontends.len(), had.len());
    }

    #[test]
    fn of_two_with_the_same_node_port_the_first_by_name_is_served_and_the_other_told() {
        let (mut state, mut kernel) = (State::default(), Kernel::default());
        state.set_node(NodeFacts { name: "here".into(), ..NodeFacts::default() });
        let of = |ip: &str, protocol: &str| serde_json::json!({"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "protocol": protocol, "nodePort": 30001}]});
        let at = FrontendKey::node_port(true, xebec_ebpf_abi::Port::new(30001), proto::TCP);
        let serving = |kernel: &Kernel, name: &str, state: &State| {
            let number = kernel.0.frontends[&at].service;
            matches!(state.services.named(number), Some(crate::compile::services::names::Named::Service(key, ..)) if key.name == name)
        };
        set(&mut state, "b", of("10.96.0.2", "TCP"));
        set(&mut state, "c", of("10.96.0.3", "UDP"));
        kernel.follow(&mut state, |_| ());
        assert!(serving(&kernel, "b", &state));
        assert_eq!(told(&state), vec![], "another protocol's port is another port");
        set(&mut state, "a", of("10.96.0.1", "TCP"));
        kernel.follow(&mut state, |_| ());
        assert!(serving(&kernel, "a", &state));
        assert_eq!(told(&state), vec![("ns/b".into(), ADDRESS_TAKEN)]);
        let text = state.services.complaints().into_values().next().expect("one");
        assert!(text.starts_with("TCP port 30001 of the node's addresses leads to Service ns/a, whose name comes first"), "{text}");
        state.services.set_service(Key::new("ns", "a"), None);
        kernel.follow(&mut state, |_| ());
        assert!(serving(&kernel, "b", &state));
        assert_eq!(told(&state), vec![]);
    }

    /// As small clusters do, whose load balancer is the node itself; and as no API server should.
    #[test]
    fn a_services_address_that_is_the_nodes_takes_its_own_ports_and_no_others() {
        let (mut state, mut kernel) = (State::default(), Kernel::default());
        let node = "192.0.2.1";
        state.set_node(NodeFacts { name: "here".into(), addresses: [node.parse().expect("an address")].into(), ..NodeFacts::default() });
        let balanced = serde_json::json!({
            "metadata": {"namespace": "ns", "name": "lb"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalIPs": [node], "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": node}]}},
        });
        let balanced = serde_json::from_value(balanced).expect("a Service");
        state.services.set_service(Key::new("ns", "lb"), input::service(&balanced));
        set(&mut state, "odd", serde_json::json!({"clusterIP": node, "ports": [{"port": 81}]}));
        kernel.follow(&mut state, |_| ());
        let at = |port| {
            FrontendKey::new(crate::compile::expand::addr(node.parse().expect("an address")), xebec_ebpf_abi::Port::new(port), proto::TCP)
        };
        assert!(kernel.0.frontends.contains_key(&at(80)) && kernel.0.frontends.contains_key(&at(81)));
        assert!(!kernel.0.frontends.contains_key(&FrontendKey::address(at(0).addr)), "the node's other ports stay its own");
        assert!(kernel.0.node_addrs.contains_key(&at(0).addr), "and it stays the node's address");
        assert_eq!(told(&state), vec![]);
    }

    #[test]
    fn addresses_that_no_service_can_have_are_nobodys() {
        let service = |spec: serde_json::Value| {
            let service = serde_json::json!({"metadata": {"namespace": "ns", "name": "s"}, "spec": spec});
            input::service(&serde_json::from_value(service).expect("a Service"))
        };
        let impossible =
            ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:127.0.0.1", "no address", ""];
        for ip in impossible {
            assert_eq!(service(serde_json::json!({"clusterIP": ip, "ports": [{"port": 80}]})), None, "{ip}");
        }
        let link_local = ["169.254.169.254", "fe80::1"];
        let external: Vec<&str> = impossible.into_iter().chain(link_local).chain(["192.0.2.9"]).collect();
        let seen =
            service(serde_json::json!({"clusterIP": "10.96.0.1", "externalIPs": external, "ports": [{"port": 80}]})).expect("a Service");
        assert_eq!(seen.external_ips, ["192.0.2.9".parse::<std::net::IpAddr>().expect("an address")]);
    }

    #[test]
    fn who_gets_no_ring_is_told_until_there_is_room() {
        let (mut state, mut kernel) = (State::default(), Kernel::default());
        state.services.ring_size = 251;
        state.set_node(NodeFacts { name: "here".into(), ..NodeFacts::default() });
        let parts = u64::from(crate::compile::rings::parts(251));
        state.services.tables.rings.room = Some(2 * parts);
        for (n, name) in ["a", "b"].into_iter().enumerate() {
            let of = serde_json::json!({"type": "NodePort", "clusterIP": format!("10.96.0.{n}"), "ports": [{"port": 80, "nodePort": 30001 + n}]});
            set(&mut state, name, of);
            let endpoints: Vec<_> = (1..4).map(|e| serde_json::json!({"addresses": [format!("10.244.{n}.{e}")]})).collect();
            let slice = serde_json::json!({"metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints});
            let slice = serde_json::from_value(slice).expect("an EndpointSlice");
            state.services.set_slice(Key::new("ns", name), input::slice(slice));
        }
        kernel.follow(&mut state, |_| ());
        assert_eq!(told(&state), vec![("ns/b".into(), WITHOUT_RING)]);
        assert_eq!((kernel.0.rings.len(), kernel.0.sets.len()), (1, 2), "it is served all the same");
        state.services.set_service(Key::new("ns", "a"), None);
        kernel.follow(&mut state, |_| ());
        assert_eq!((told(&state), kernel.0.rings.len()), (vec![], 1), "when a ring has gone it gets one");
    }

    #[test]
    fn an_annotation_that_means_nothing_is_told_and_does_no_harm() {
        let (mut state, mut kernel) = (State::default(), Kernel::default());
        let forwarding = |default| NodeFacts { name: "here".into(), forwarding: default, ..NodeFacts::default() };
        state.set_node(forwarding(Forwarding::Snat));
        let mut annotated = |value: &str, state: &mut State| {
            let spec = serde_json::json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30001}]});
            let meta = serde_json::json!({"namespace": "ns", "name": "a", "annotations": {input::FORWARDING: value}});
            let service = serde_json::from_value(serde_json::json!({"metadata": meta, "spec": spec})).expect("a Service");
            state.services.set_service(Key::new("ns", "a"), input::service(&service));
            kernel.follow(state, |_| ());
            let direct = |f: &&xebec_ebpf_abi::Frontend| f.flags & xebec_ebpf_abi::Frontend::DIRECT != 0;
            kernel.0.frontends.values().filter(direct).count()
        };
        assert_eq!(annotated("DSR", &mut state), 0, "the NodePort is served as without it");
        let complaint = state.services.complaints().into_iter().next().expect("one");
        assert_eq!(complaint.0, (Key::new("ns", "a"), ANNOTATION_INVALID));
        assert_eq!(complaint.1, "the annotation xebec.dev/forwarding-mode is \"DSR\", which means nothing; it may be snat or dsr");
        assert!(!state.services.takes_direct());
        assert_eq!(annotated("dsr", &mut state), 1, "the NodePort, not the ClusterIP");
        assert_eq!((told(&state), state.services.takes_direct()), (vec![], true));
        assert_eq!(state.services.forwarding(), "snat, 1 Services otherwise");
        state.set_node(forwarding(Forwarding::Dsr));
        assert_eq!(annotated("snat", &mut state), 0, "the Service has the last word");
        assert_eq!(annotated("", &mut state), 1);
        assert_eq!(state.services.forwarding(), "dsr");
    }

    #[test]
    fn a_weight_that_means_nothing_is_told_of_its_slice_and_counts_as_none() {
        let (mut state, mut kernel) = (State::default(), Kernel::default());
        state.set_node(NodeFacts { name: "here".into(), ..NodeFacts::default() });
        set(&mut state, "a", serde_json::json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30001}]}));
        let mut weighs = |weight: Option<&str>, state: &mut State| {
            let slice = weight.and_then(|weight| {
                let slice = serde_json::json!({
                    "metadata": {"namespace": "ns", "name": "a-1", "labels": {"kubernetes.io/service-name": "a"}, "annotations": {"xebec.dev/weight": weight}},
                    "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.0.1"]}]});
                input::slice(serde_json::from_value(slice).expect("an EndpointSlice"))
            });
            let weight = slice.as_ref().map(|s| s.endpoints[0].weight);
            state.services.set_slice(Key::new("ns", "a-1"), slice);
            kernel.follow(state, |_| ());
            weight
        };
        for (weight, counts) in [("heavy", 1), ("-3", 1), ("1.5", 1)] {
            assert_eq!(weighs(Some(weight), &mut state), Some(counts), "{weight}");
            let text = format!("the annotation xebec.dev/weight is {weight:?}, which means nothing; it may be a number from 1 to 100");
            assert_eq!(state.services.complaints(), [((Key::new("ns", "a-1"), SLICE_ANNOTATION_INVALID), text)].into());
        }
        for (weight, counts) in [("0", 1), ("7", 7), ("1000", 100)] {
            assert_eq!((weighs(Some(weight), &mut state), told(&state)), (Some(counts), vec![]), "{weight}");
        }
        weighs(Some("heavy"), &mut state);
        assert_eq!((weighs(None, &mut state), told(&state)), (None, vec![]), "it is gone");
    }

    #[test]
    fn the_same_port_twice_in_one_service_is_nobodys_conflict_and_does_no_harm() {
        let (mut state, mut kernel) = (State::default(), Kernel::default());
        state.set_node(NodeFacts { name: "here".into(), ..NodeFacts::default() });
        let ports =
            serde_json::json!([{"name": "x", "port": 80}, {"name": "x", "port": 80}, {"name": "y", "port": 80}, {"name": "z", "port": 0}]);
        set(&mut state, "a", serde_json::json!({"clusterIP": "10.96.0.1", "ports": ports}));
        kernel.follow(&mut state, |_| ());
        assert_eq!((told(&state), kernel.0.frontends.len()), (vec![], 2));
        state.services.set_service(Key::new("ns", "a"), None);
        kernel.follow(&mut state, |_| ());
        assert_eq!((kernel.0.frontends.len(), kernel.0.sets.len()), (0, 0), "nothing is left");
    }
}
