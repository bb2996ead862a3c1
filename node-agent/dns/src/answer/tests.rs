//! Tables: a cluster as JSON objects, questions, and what is answered.

use serde_json::{Value, json};

use super::*;
use crate::input;

/// Objects with every kind of Service and endpoint.
fn cluster() -> (Zones, Records) {
    let zones = Zones {
        domain: Name::from_ascii("cluster.local.").unwrap(),
        servers: vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()],
        ranges: ["10.96.0.0/12", "10.244.0.0/16", "fd00:96::/108"].map(|net| net.parse().unwrap()).into(),
    };
    let mut records = Records::default();
    ["default", "kube-system", "empty"].iter().for_each(|name| records.set_namespace(name, true));
    let https = json!([{"name": "https", "port": 443}]);
    let services = [
        ("default", "kubernetes", json!({"clusterIP": "10.96.0.1", "ports": https})),
        (
            "kube-system",
            "kube-dns",
            json!({"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]}),
        ),
        ("default", "unnamed", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]})),
        ("default", "dual", json!({"clusterIP": "10.96.0.3", "clusterIPs": ["10.96.0.3", "fd00:96::3"], "ports": https})),
        ("default", "six", json!({"clusterIP": "fd00:96::4", "ports": https})),
        ("default", "headless", json!({"clusterIP": "None", "ports": https})),
        ("default", "portless", json!({"clusterIP": "None"})),
        ("default", "nobody", json!({"clusterIP": "None", "ports": https})),
        ("default", "pending", json!({"type": "ClusterIP", "ports": https})),
        ("default", "web", json!({"type": "ExternalName", "externalName": "www.example.com"})),
        ("default", "number", json!({"type": "ExternalName", "externalName": "192.0.2.1"})),
        ("default", "inner", json!({"type": "ExternalName", "externalName": "kubernetes.default.svc.cluster.local"})),
        ("default", "twice", json!({"type": "ExternalName", "externalName": "inner.default.svc.cluster.local"})),
        ("default", "outer", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
        ("default", "astray", json!({"type": "ExternalName", "externalName": "none.default.svc.cluster.local"})),
        ("default", "circle", json!({"type": "ExternalName", "externalName": "circle.default.svc.cluster.local"})),
    ];
    for (namespace, name, spec) in services {
        let document = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
        records.set_service(Key::new(namespace, name), Some(input::service(&serde_json::from_value(document).unwrap())));
    }
    let v4 = json!([
        {"addresses": ["10.244.0.5"], "hostname": "my-pet"},
        {"addresses": ["10.244.0.6"], "hostname": "my-pet-2"},
        {"addresses": ["10.244.0.7"]},
        {"addresses": ["10.244.0.8"], "hostname": "late", "conditions": {"ready": false}},
    ]);
    let v6 = json!([{"addresses": ["fd00:244::5"], "hostname": "my-pet"}]);
    let outside = json!([{"addresses": ["192.0.2.77"], "hostname": "far"}]);
    let clustered = json!([{"addresses": ["10.244.0.9"], "hostname": "api"}]);
    let slices = [
        ("headless", "IPv4", v4, https.clone()),
        ("headless", "IPv6", v6, https.clone()),
        ("portless", "IPv4", outside, json!([])),
        ("nobody", "IPv4", json!([{"addresses": ["10.244.0.10"], "conditions": {"ready": false}}]), https.clone()),
        ("kubernetes", "IPv4", clustered, https),
    ];
    for (number, (service, family, endpoints, ports)) in slices.into_iter().enumerate() {
        let name = format!("{service}-{number}");
        let document = json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": family, "endpoints": endpoints, "ports": ports,
        });
        records.set_slice(Key::new("default", &name), input::slice(&serde_json::from_value(document).unwrap()));
    }
    (zones, records)
}

/// `CODE`, then `| answers`, then `+ additionals`, then `(soa ZONE)`; owner names only where they are not the question's.
fn show(question: &Name, answer: &Answer) -> String {
    let record = |r: &Record| {
        let owner = if r.name == *question { String::new() } else { format!("{} ", r.name) };
        let data = match &r.data {
            RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
            RData::SOA(soa) => format!("{} {}", soa.mname, soa.rname),
            data => data.to_string(),
        };
        format!("{owner}{} {data}", r.record_type())
    };
    let list = |records: &[Record]| records.iter().map(record).collect::<Vec<_>>().join(", ");
    match answer {
        Answer::Forward => "FORWARD".to_owned(),
        Answer::Continue { aliases, target } => format!("CONTINUE {target} | {}", list(aliases)),
        Answer::Ours(reply) => {
            let code = match reply.code {
                ResponseCode::NoError => "OK",
                ResponseCode::NXDomain => "NXDOMAIN",
                ResponseCode::ServFail => "SERVFAIL",
                ResponseCode::Refused => "REFUSED",
                _ => "?",
            };
            let mut out = code.to_owned();
            if !reply.answers.is_empty() {
                out += &format!(" | {}", list(&reply.answers));
            }
            if !reply.additionals.is_empty() {
                out += &format!(" + {}", list(&reply.additionals));
            }
            for soa in &reply.authorities {
                out += &format!(" (soa {})", soa.name);
            }
            out
        }
    }
}

fn check(table: &[(&str, RecordType, &str)]) {
    let (zones, records) = cluster();
    for (name, kind, expected) in table {
        let question = Name::from_ascii(name).unwrap();
        assert_eq!(show(&question, &answer(&zones, &records, &question, *kind)), *expected, "{name} {kind}");
    }
}

use RecordType::{A, AAAA, ANY, AXFR, CNAME, MX, NS, PTR, SOA, SRV, TXT};
const NODATA: &str = "OK (soa cluster.local.)";
const NO_NAME: &str = "NXDOMAIN (soa cluster.local.)";

#[test]
fn cluster_addresses() {
    check(&[
        ("kubernetes.default.svc.cluster.local.", A, "OK | A 10.96.0.1"),
        ("Kubernetes.DEFAULT.svc.Cluster.Local.", A, "OK | A 10.96.0.1"),
        ("kubernetes.default.svc.cluster.local.", AAAA, NODATA),
        ("kubernetes.default.svc.cluster.local.", TXT, NODATA),
        ("kubernetes.default.svc.cluster.local.", MX, NODATA),
        ("kubernetes.default.svc.cluster.local.", ANY, NODATA),
        ("dual.default.svc.cluster.local.", A, "OK | A 10.96.0.3"),
        ("dual.default.svc.cluster.local.", AAAA, "OK | AAAA fd00:96::3"),
        ("six.default.svc.cluster.local.", A, NODATA),
        ("six.default.svc.cluster.local.", AAAA, "OK | AAAA fd00:96::4"),
        ("pending.default.svc.cluster.local.", A, NODATA),
        ("none.default.svc.cluster.local.", A, NO_NAME),
        ("kubernetes.empty.svc.cluster.local.", A, NO_NAME),
        ("kubernetes.default.cluster.local.", A, NO_NAME),
        ("*.default.svc.cluster.local.", A, NO_NAME),
        ("api.kubernetes.default.svc.cluster.local.", A, "OK | A 10.244.0.9"),
    ]);
}

#[test]
fn headless_services() {
    check(&[
        ("headless.default.svc.cluster.local.", A, "OK | A 10.244.0.5, A 10.244.0.6, A 10.244.0.7"),
        ("headless.default.svc.cluster.local.", AAAA, "OK | AAAA fd00:244::5"),
        ("my-pet.headless.default.svc.cluster.local.", A, "OK | A 10.244.0.5"),
        ("MY-PET.headless.default.svc.cluster.local.", AAAA, "OK | AAAA fd00:244::5"),
        ("10-244-0-7.headless.default.svc.cluster.local.", A, "OK | A 10.244.0.7"),
        ("my-pet-2.headless.default.svc.cluster.local.", AAAA, NODATA),
        ("10-244-0-5.headless.default.svc.cluster.local.", A, NO_NAME),
        ("late.headless.default.svc.cluster.local.", A, NO_NAME),
        ("nobody.default.svc.cluster.local.", A, NO_NAME),
        ("portless.default.svc.cluster.local.", A, "OK | A 192.0.2.77"),
        ("portless.default.svc.cluster.local.", SRV, NODATA),
    ]);
}

#[test]
fn services_by_port() {
    check(&[
        (
            "_https._tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            "OK | SRV 0 100 443 kubernetes.default.svc.cluster.local. + kubernetes.default.svc.cluster.local. A 10.96.0.1",
        ),
        (
            "_https._tcp.dual.default.svc.cluster.local.",
            SRV,
            "OK | SRV 0 100 443 dual.default.svc.cluster.local. + dual.default.svc.cluster.local. A 10.96.0.3, \
             dual.default.svc.cluster.local. AAAA fd00:96::3",
        ),
        (
            "_HTTPS._TCP.headless.default.svc.cluster.local.",
            SRV,
            "OK | SRV 0 33 443 10-244-0-7.headless.default.svc.cluster.local., SRV 0 33 443 my-pet.headless.default.svc.cluster.local., \
             SRV 0 33 443 my-pet-2.headless.default.svc.cluster.local. + \
             10-244-0-7.headless.default.svc.cluster.local. A 10.244.0.7, my-pet.headless.default.svc.cluster.local. A 10.244.0.5, \
             my-pet.headless.default.svc.cluster.local. AAAA fd00:244::5, my-pet-2.headless.default.svc.cluster.local. A 10.244.0.6",
        ),
        ("_https._tcp.kubernetes.default.svc.cluster.local.", A, NODATA),
        ("_https._udp.kubernetes.default.svc.cluster.local.", SRV, NO_NAME),
        ("_http._tcp.kubernetes.default.svc.cluster.local.", SRV, NO_NAME),
        ("_._tcp.unnamed.default.svc.cluster.local.", SRV, NO_NAME),
        ("_tcp.kubernetes.default.svc.cluster.local.", SRV, NODATA),
        ("_udp.kubernetes.default.svc.cluster.local.", SRV, NO_NAME),
        ("_tcp.unnamed.default.svc.cluster.local.", A, NO_NAME),
        ("_https._tcp.nobody.default.svc.cluster.local.", SRV, NO_NAME),
        ("_https._tcp.web.default.svc.cluster.local.", SRV, NO_NAME),
        ("unnamed.default.svc.cluster.local.", SRV, "OK | SRV 0 100 80 unnamed.default.svc.cluster.local. + A 10.96.0.2"),
    ]);
}

#[test]
fn external_names() {
    check(&[
        ("web.default.svc.cluster.local.", A, "CONTINUE www.example.com. | CNAME www.example.com."),
        ("web.default.svc.cluster.local.", SRV, "CONTINUE www.example.com. | CNAME www.example.com."),
        ("web.default.svc.cluster.local.", CNAME, "OK | CNAME www.example.com."),
        ("x.web.default.svc.cluster.local.", A, NO_NAME),
        ("number.default.svc.cluster.local.", A, NO_NAME),
        (
            "inner.default.svc.cluster.local.",
            A,
            "OK | CNAME kubernetes.default.svc.cluster.local., kubernetes.default.svc.cluster.local. A 10.96.0.1",
        ),
        (
            "twice.default.svc.cluster.local.",
            A,
            "OK | CNAME inner.default.svc.cluster.local., inner.default.svc.cluster.local. CNAME kubernetes.default.svc.cluster.local., \
             kubernetes.default.svc.cluster.local. A 10.96.0.1",
        ),
        ("inner.default.svc.cluster.local.", AAAA, "OK | CNAME kubernetes.default.svc.cluster.local. (soa cluster.local.)"),
        (
            "outer.default.svc.cluster.local.",
            A,
            "CONTINUE www.example.com. | CNAME web.default.svc.cluster.local., web.default.svc.cluster.local. CNAME www.example.com.",
        ),
        ("astray.default.svc.cluster.local.", A, "NXDOMAIN | CNAME none.default.svc.cluster.local. (soa cluster.local.)"),
        ("circle.default.svc.cluster.local.", A, "SERVFAIL"),
    ]);
}

#[test]
fn reverse_names() {
    let no_name = "NXDOMAIN (soa in-addr.arpa.)";
    check(&[
        ("1.0.96.10.in-addr.arpa.", PTR, "OK | PTR kubernetes.default.svc.cluster.local."),
        ("1.0.96.10.IN-ADDR.arpa.", A, "OK (soa in-addr.arpa.)"),
        ("5.0.244.10.in-addr.arpa.", PTR, "OK | PTR my-pet.headless.default.svc.cluster.local."),
        // Only endpoints with a name of their own have one.
        ("7.0.244.10.in-addr.arpa.", PTR, no_name),
        ("8.0.244.10.in-addr.arpa.", PTR, no_name),
        ("99.0.96.10.in-addr.arpa.", PTR, no_name),
        ("0.244.10.in-addr.arpa.", PTR, "OK (soa in-addr.arpa.)"),
        // Outside our ranges: what is known, and nothing else.
        ("77.2.0.192.in-addr.arpa.", PTR, "OK | PTR far.portless.default.svc.cluster.local."),
        ("78.2.0.192.in-addr.arpa.", PTR, "FORWARD"),
        ("10.in-addr.arpa.", PTR, "FORWARD"),
        ("1.1.0.96.10.in-addr.arpa.", PTR, "FORWARD"),
        ("3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", PTR, "OK | PTR dual.default.svc.cluster.local."),
        ("9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", PTR, "NXDOMAIN (soa ip6.arpa.)"),
    ]);
}

#[test]
fn the_zone_itself() {
    let servers = "kube-dns.kube-system.svc.cluster.local. A 10.96.0.10, kube-dns.kube-system.svc.cluster.local. AAAA fd00:96::a";
    check(&[
        ("cluster.local.", SOA, "OK | SOA ns.dns.cluster.local. hostmaster.cluster.local."),
        ("cluster.local.", NS, &format!("OK | NS kube-dns.kube-system.svc.cluster.local. + {servers}")),
        ("cluster.local.", A, NODATA),
        ("svc.cluster.local.", A, NODATA),
        ("pod.cluster.local.", A, NODATA),
        ("default.svc.cluster.local.", A, NODATA),
        ("default.svc.cluster.local.", SOA, NODATA),
        ("default.pod.cluster.local.", A, NODATA),
        ("none.svc.cluster.local.", A, NO_NAME),
        ("none.cluster.local.", NS, NO_NAME),
        ("ns.dns.cluster.local.", A, "OK | A 10.96.0.10"),
        ("ns.dns.cluster.local.", AAAA, "OK | AAAA fd00:96::a"),
        ("dns-version.cluster.local.", TXT, "OK | TXT 1.1.0"),
        ("dns-version.cluster.local.", A, NODATA),
        ("cluster.local.", AXFR, "REFUSED"),
        ("local.", A, "FORWARD"),
        ("notcluster.local.", A, "FORWARD"),
        ("www.example.com.", A, "FORWARD"),
        ("kubernetes.default.svc.", A, "FORWARD"),
        (".", NS, "FORWARD"),
    ]);
}

#[test]
fn pods_by_address() {
    check(&[
        ("10-244-0-5.default.pod.cluster.local.", A, "OK | A 10.244.0.5"),
        ("10-244-0-5.default.pod.cluster.local.", AAAA, NODATA),
        ("fd00-244--5.default.pod.cluster.local.", AAAA, "OK | AAAA fd00:244::5"),
        ("10-244-0-5.none.pod.cluster.local.", A, NO_NAME),
        ("10-244-0-500.default.pod.cluster.local.", A, NO_NAME),
        ("web.default.pod.cluster.local.", A, NO_NAME),
    ]);
}

/// The examples of the specification, on its own objects.
#[test]
fn examples_of_the_specification() {
    let zones = Zones { domain: Name::from_ascii("cluster.local.").unwrap(), servers: Vec::new(), ranges: Vec::new() };
    let mut records = Records::default();
    records.set_namespace("default", true);
    let mut service = |name: &str, spec: Value| {
        let document = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        records.set_service(Key::new("default", name), Some(input::service(&serde_json::from_value(document).unwrap())));
    };
    let https = json!([{"name": "https", "port": 443}]);
    service("kubernetes", json!({"clusterIP": "10.3.0.1", "ports": https}));
    service("headless", json!({"clusterIP": "None", "ports": https}));
    service("foo", json!({"type": "ExternalName", "externalName": "www.example.com"}));
    let document = json!({
        "metadata": {"namespace": "default", "name": "headless-1", "labels": {"kubernetes.io/service-name": "headless"}},
        "addressType": "IPv4", "ports": https, "endpoints": [{"addresses": ["10.3.0.100"], "hostname": "my-pet"}],
    });
    records.set_slice(Key::new("default", "headless-1"), input::slice(&serde_json::from_value(document).unwrap()));
    let table = [
        ("dns-version.cluster.local.", TXT, "OK | TXT 1.1.0"),
        ("kubernetes.default.svc.cluster.local.", A, "OK | A 10.3.0.1"),
        (
            "_https._tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            "OK | SRV 0 100 443 kubernetes.default.svc.cluster.local. + kubernetes.default.svc.cluster.local. A 10.3.0.1",
        ),
        ("1.0.3.10.in-addr.arpa.", PTR, "OK | PTR kubernetes.default.svc.cluster.local."),
        ("headless.default.svc.cluster.local.", A, "OK | A 10.3.0.100"),
        ("my-pet.headless.default.svc.cluster.local.", A, "OK | A 10.3.0.100"),
        (
            "_https._tcp.headless.default.svc.cluster.local.",
            SRV,
            "OK | SRV 0 100 443 my-pet.headless.default.svc.cluster.local. + my-pet.headless.default.svc.cluster.local. A 10.3.0.100",
        ),
        ("100.0.3.10.in-addr.arpa.", PTR, "OK | PTR my-pet.headless.default.svc.cluster.local."),
        ("foo.default.svc.cluster.local.", A, "CONTINUE www.example.com. | CNAME www.example.com."),
        ("10-3-0-100.default.pod.cluster.local.", A, "OK | A 10.3.0.100"),
    ];
    for (name, kind, expected) in table {
        let question = Name::from_ascii(name).unwrap();
        assert_eq!(show(&question, &answer(&zones, &records, &question, kind)), expected, "{name} {kind}");
    }
}

#[test]
fn the_case_of_the_question_is_kept_and_lives_are_short() {
    let (zones, records) = cluster();
    let question = Name::from_ascii("KuberNetes.default.svc.cluster.local.").unwrap();
    let Answer::Ours(reply) = answer(&zones, &records, &question, A) else { panic!("ours") };
    assert!(reply.authoritative);
    assert_eq!(reply.answers[0].name.to_ascii(), "KuberNetes.default.svc.cluster.local.");
    assert_eq!(reply.answers[0].ttl, TTL);
}
