//! What is wrong with Services, for their authors: no room in the maps, or an address that is another's.

use std::collections::BTreeMap;

use xebec_ebpf_abi::{Addr, FrontendKey, proto};

use super::{Owner, Services};
use crate::compile::input::Key;

/// A Service, and the reason of the Event it gets.
pub type Subject = (Key, &'static str);

/// There is no room for it.
pub const DOES_NOT_FIT: &str = "ServiceDoesNotFit";
/// Another one has its address and port.
pub const ADDRESS_TAKEN: &str = "ServiceAddressTaken";

impl Services {
    /// What there is to say now.
    pub fn complaints(&self) -> BTreeMap<Subject, String> {
        let of = |(key, text)| ((key, DOES_NOT_FIT), text);
        let mut complaints: BTreeMap<Subject, String> = self.refusals().into_iter().map(of).collect();
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
    use crate::compile::input;
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
