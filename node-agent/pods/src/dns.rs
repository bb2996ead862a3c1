//! `dnsPolicy` and `dnsConfig`: what goes into a pod's resolv.conf.

use std::net::IpAddr;

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::spec;

/// Reads a resolver configuration the way libc does: last `search` wins, options add up.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.trim();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => config.searches = words.filter(|w| *w != ".").map(str::to_owned).collect(),
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

/// The pod's resolver configuration; `node` is the node's own.
pub fn pod_dns(pod: &Pod, cluster_dns: &[IpAddr], cluster_domain: &str, node: &DnsConfig) -> DnsConfig {
    let spec = spec::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !spec::host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut config = match policy {
        "None" => DnsConfig::default(),
        _ if cluster && !cluster_dns.is_empty() => {
            let own =
                [format!("{}.svc.{cluster_domain}", spec::namespace(pod)), format!("svc.{cluster_domain}"), cluster_domain.to_owned()];
            DnsConfig {
                servers: cluster_dns.iter().map(IpAddr::to_string).collect(),
                searches: unique(own.into_iter().chain(node.searches.iter().cloned())),
                options: vec!["ndots:5".into()],
            }
        }
        _ => node.clone(),
    };
    if let Some(extra) = &spec.dns_config {
        config.servers = unique(config.servers.into_iter().chain(extra.nameservers.iter().flatten().cloned()));
        config.searches = unique(config.searches.into_iter().chain(extra.searches.iter().flatten().cloned()));
        for option in extra.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            config.options.retain(|o| o.split(':').next() != Some(name));
            config.options.push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    // What libc and the API's validation bear.
    config.servers.truncate(3);
    config.searches.truncate(32);
    config
}

fn unique(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for item in items {
        if !out.contains(&item) {
            out.push(item);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies() {
        let node = parse_resolv_conf("# x\nnameserver 192.0.2.53\nsearch old\nsearch corp.example .\noptions edns0 timeout:1\n");
        assert_eq!(node.searches, ["corp.example"]);
        let dns = [IpAddr::from([10, 96, 0, 10])];
        let run = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "n"}, "spec": spec})).unwrap();
            pod_dns(&pod, &dns, "cluster.local", &node)
        };
        let first = run(json!({"containers": []}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]);
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(run(json!({"containers": [], "hostNetwork": true})), node);
        assert_eq!(run(json!({"containers": [], "dnsPolicy": "Default"})), node);
        let none = run(json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]}}));
        assert_eq!((none.servers, none.options), (vec!["1.1.1.1".to_owned()], vec!["ndots:2".to_owned(), "rotate".to_owned()]));
        let merged = run(json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
        assert_eq!(merged.options, ["ndots:1"]);
    }
}
