//! Which place in the cluster's zone a name stands for. Pure; knows nothing of what exists.

use std::net::IpAddr;

use hickory_proto::rr::Name;

/// A name below the zone's apex, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The zone itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `ns.dns`: the name server.
    NameServer,
    /// `svc`, `pod` and `dns`: they hold names and nothing else.
    Branch,
    /// `<namespace>.svc` or `<namespace>.pod`.
    Namespace(String),
    /// `<service>.<namespace>.svc`.
    Service { namespace: String, service: String },
    /// `<label>.<service>.<namespace>.svc`.
    Endpoint { namespace: String, service: String, label: String },
    /// `_<protocol>.<service>.<namespace>.svc`: holds the names of ports.
    Protocol { namespace: String, service: String, protocol: String },
    /// `_<port>._<protocol>.<service>.<namespace>.svc`.
    Port { namespace: String, service: String, protocol: String, port: String },
    /// `<a-b-c-d>.<namespace>.pod`.
    Pod { namespace: String, address: IpAddr },
    /// Nothing the schema knows.
    Unknown,
}

/// Takes a name of the zone apart. `name` must end with `zone`.
pub fn place(zone: &Name, name: &Name) -> Place {
    // Not `num_labels`, which leaves a leading asterisk out: here it is a label like any other.
    let depth = name.iter().count().saturating_sub(zone.iter().count());
    // Bytes that are no text are in no object's name.
    let labels: Vec<String> = name.iter().take(depth).map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let owned = |text: &str| text.to_owned();
    match *labels.as_slice() {
        [] => Place::Apex,
        ["dns-version"] => Place::Version,
        ["ns", "dns"] => Place::NameServer,
        ["svc" | "pod" | "dns"] => Place::Branch,
        [namespace, "svc" | "pod"] => Place::Namespace(owned(namespace)),
        [service, namespace, "svc"] => Place::Service { namespace: owned(namespace), service: owned(service) },
        [label, service, namespace, "svc"] => match label.strip_prefix('_') {
            Some(protocol) => Place::Protocol { namespace: owned(namespace), service: owned(service), protocol: owned(protocol) },
            None => Place::Endpoint { namespace: owned(namespace), service: owned(service), label: owned(label) },
        },
        [port, protocol, service, namespace, "svc"] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
            (Some(port), Some(protocol)) => {
                Place::Port { namespace: owned(namespace), service: owned(service), protocol: owned(protocol), port: owned(port) }
            }
            _ => Place::Unknown,
        },
        [label, namespace, "pod"] => match pod_address(label) {
            Some(address) => Place::Pod { namespace: owned(namespace), address },
            None => Place::Unknown,
        },
        _ => Place::Unknown,
    }
}

/// `10-1-0-7` and `fd00-1--7`.
fn pod_address(label: &str) -> Option<IpAddr> {
    let v4 = label.matches('-').count() == 3 && !label.contains("--");
    label.replace('-', if v4 { "." } else { ":" }).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let zone = Name::from_ascii("cluster.local.").unwrap();
        let cases = [
            ("", "Apex"),
            ("DNS-Version.", "Version"),
            ("ns.dns.", "NameServer"),
            ("SVC.", "Branch"),
            ("Default.svc.", "Namespace(\"default\")"),
            ("Web.Default.SVC.", "Service { namespace: \"default\", service: \"web\" }"),
            ("a.web.default.svc.", "Endpoint { namespace: \"default\", service: \"web\", label: \"a\" }"),
            ("_tcp.web.default.svc.", "Protocol { namespace: \"default\", service: \"web\", protocol: \"tcp\" }"),
            ("_http._TCP.web.default.svc.", "Port { namespace: \"default\", service: \"web\", protocol: \"tcp\", port: \"http\" }"),
            ("http._tcp.web.default.svc.", "Unknown"),
            ("x._http._tcp.web.default.svc.", "Unknown"),
            ("10-1-0-7.default.pod.", "Pod { namespace: \"default\", address: 10.1.0.7 }"),
            ("fd00-1--7.default.pod.", "Pod { namespace: \"default\", address: fd00:1::7 }"),
            ("10-1-0.default.pod.", "Unknown"),
            ("x.10-1-0-7.default.pod.", "Unknown"),
            ("web.default.", "Unknown"),
            ("*.", "Unknown"),
            ("*.default.svc.", "Service { namespace: \"default\", service: \"*\" }"),
        ];
        for (name, expected) in cases {
            let full = Name::from_ascii(format!("{name}Cluster.Local.")).unwrap();
            assert_eq!(format!("{:?}", place(&zone, &full)), expected, "{name}");
        }
    }
}
