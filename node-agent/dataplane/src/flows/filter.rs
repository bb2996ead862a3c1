//! Which of what is seen somebody wants to see.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Seen, Verdict};

/// All that is given must hold; of two ends one is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// NAME or NAMESPACE/NAME of the pod at an end.
    pub pod: Option<String>,
    /// Namespace of the pod at an end, or of the Service.
    pub namespace: Option<String>,
    /// NAME or NAMESPACE/NAME.
    pub service: Option<String>,
    /// Address of an end, or of the Service.
    pub ip: Option<IpAddr>,
    /// Port of an end, or of the Service.
    pub port: Option<u16>,
    /// As [`Seen::protocol`] has it.
    pub protocol: Option<String>,
    /// What became of it.
    pub verdict: Option<Verdict>,
    /// As [`Seen::reason`] has it.
    pub reason: Option<String>,
}

impl Filter {
    /// Whether somebody wants to see this.
    pub fn holds(&self, seen: &Seen) -> bool {
        let ends = [&seen.source, &seen.destination];
        let pods = || ends.iter().filter_map(|end| end.pod.as_deref());
        let service = seen.service.as_ref();
        let all = [
            self.pod.as_ref().is_none_or(|wanted| pods().any(|pod| is_named(pod, wanted))),
            self.namespace
                .as_ref()
                .is_none_or(|wanted| pods().chain(service.map(|s| s.name.as_str())).any(|name| namespace(name) == Some(wanted.as_str()))),
            self.service.as_ref().is_none_or(|wanted| service.is_some_and(|s| is_named(&s.name, wanted))),
            self.ip.is_none_or(|wanted| ends.iter().map(|end| end.address).chain(service.map(|s| s.address)).any(|ip| ip == Some(wanted))),
            self.port.is_none_or(|wanted| ends.iter().map(|end| end.port).chain(service.map(|s| s.at_port)).any(|p| p == Some(wanted))),
            self.protocol.as_ref().is_none_or(|wanted| seen.protocol.as_ref().is_some_and(|p| p.eq_ignore_ascii_case(wanted))),
            self.verdict.is_none_or(|wanted| seen.verdict == wanted),
            self.reason.as_ref().is_none_or(|wanted| seen.reason.as_ref() == Some(wanted)),
        ];
        all.into_iter().all(|holds| holds)
    }
}

fn namespace(name: &str) -> Option<&str> {
    name.split_once('/').map(|(namespace, _)| namespace)
}

/// `wanted` with or without a namespace.
fn is_named(name: &str, wanted: &str) -> bool {
    name == wanted || name.split_once('/').is_some_and(|(_, rest)| rest == wanted)
}

#[cfg(test)]
mod tests {
    use super::super::{End, ServiceAt};
    use super::*;

    fn seen() -> Seen {
        let end = |ip: &str, port, pod: Option<&str>| End {
            address: Some(ip.parse().unwrap()),
            port: Some(port),
            pod: pod.map(str::to_owned),
            node: false,
        };
        Seen {
            time: String::new(),
            verdict: Verdict::Dropped,
            reason: Some("policy_ingress".into()),
            at: "from_pod".into(),
            device: None,
            protocol: Some("tcp".into()),
            source: end("10.244.0.5", 40000, Some("shop/cart-1")),
            destination: end("10.244.0.6", 8080, None),
            service: Some(ServiceAt {
                name: "pay/web".into(),
                port: "http".into(),
                address: Some("10.96.0.10".parse().unwrap()),
                at_port: Some(80),
            }),
            policies: Vec::new(),
            bytes: 60,
        }
    }

    /// A filter that asks for one thing.
    fn by(field: &str, value: serde_json::Value) -> Filter {
        serde_json::from_value(serde_json::json!({field: value})).unwrap()
    }

    #[test]
    fn each_filter_holds_for_what_it_names_and_for_nothing_else() {
        let seen = seen();
        assert!(Filter::default().holds(&seen));
        for (field, yes, no) in [
            ("pod", vec!["shop/cart-1", "cart-1"], vec!["cart", "pay/cart-1", "web"]),
            ("namespace", vec!["shop", "pay"], vec!["sho", "default"]),
            ("service", vec!["web", "pay/web"], vec!["shop/web", "cart-1"]),
            ("ip", vec!["10.244.0.5", "10.244.0.6", "10.96.0.10"], vec!["10.96.0.11"]),
            ("protocol", vec!["tcp", "TCP"], vec!["udp"]),
            ("verdict", vec!["dropped"], vec!["forwarded"]),
            ("reason", vec!["policy_ingress"], vec!["policy"]),
        ] {
            assert!(yes.iter().all(|v| by(field, (*v).into()).holds(&seen)), "{field} {yes:?}");
            assert!(!no.iter().any(|v| by(field, (*v).into()).holds(&seen)), "{field} {no:?}");
        }
        assert!([80, 8080, 40000].iter().all(|p| by("port", (*p).into()).holds(&seen)));
        assert!(!by("port", 81.into()).holds(&seen));
        let both = Filter { pod: Some("cart-1".into()), ..by("verdict", "forwarded".into()) };
        assert!(!both.holds(&seen), "all must hold");
    }
}
