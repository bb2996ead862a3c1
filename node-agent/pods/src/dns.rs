//! `dnsPolicy` and `dnsConfig`: what goes into a pod's resolv.conf.

use std::net::IpAddr;

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::spec;

/// What libc bears, and the API's validation allows.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;
/// Longest name of a domain to search in.
const MAX_SEARCH: usize = 253;

/// A pod's resolver configuration, and what of it had to be left out, in kubelet's words for an event.
#[derive(Debug, Default, PartialEq)]
pub struct PodDns {
    pub config: DnsConfig,
    pub problems: Vec<String>,
}

/// Reads a resolver configuration as kubelet does: the last `search` wins, options add up, the last of a name counts.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                let searches = words.filter(|w| *w != ".").map(|w| w.strip_suffix('.').unwrap_or(w));
                config.searches = searches.map(str::to_owned).collect();
            }
            Some("options") => words.for_each(|option| set_option(&mut config.options, option.to_owned())),
            _ => {}
        }
    }
    config
}

/// An option of the same name is replaced.
fn set_option(options: &mut Vec<String>, option: String) {
    let name = option.split(':').next().unwrap_or_default().to_owned();
    match options.iter_mut().find(|o| o.split(':').next() == Some(&name)) {
        Some(same) => *same = option,
        None => options.push(option),
    }
}

/// The pod's resolver configuration; `node` is the node's own.
pub fn pod_dns(pod: &Pod, cluster_dns: &[IpAddr], cluster_domain: &str, node: &DnsConfig) -> PodDns {
    let spec = spec::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !spec::host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut problems = Vec::new();
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
            let value = option.value.as_deref().filter(|value| !value.is_empty());
            set_option(&mut config.options, value.map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    limit_searches(&mut config.searches, &mut problems);
    if config.servers.len() > MAX_SERVERS {
        config.servers.truncate(MAX_SERVERS);
        problems.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            config.servers.join(" ")
        ));
    }
    PodDns { config, problems }
}

fn limit_searches(searches: &mut Vec<String>, problems: &mut Vec<String>) {
    let before = searches.len();
    searches.truncate(MAX_SEARCHES);
    searches.retain(|search| search.len() <= MAX_SEARCH);
    while searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        searches.pop();
    }
    if searches.len() < before {
        problems.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            searches.join(" ")
        ));
    }
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

    const DNS: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10))];

    fn node() -> DnsConfig {
        parse_resolv_conf("nameserver 192.0.2.53\nsearch corp.example\noptions edns0 timeout:1\n")
    }

    fn on(node: &DnsConfig, dns: &[IpAddr], spec: serde_json::Value) -> PodDns {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "n"}, "spec": spec})).unwrap();
        pod_dns(&pod, dns, "cluster.local", node)
    }

    fn run(spec: serde_json::Value) -> DnsConfig {
        let dns = on(&node(), &DNS, spec);
        assert_eq!(dns.problems, Vec::<String>::new());
        dns.config
    }

    #[test]
    fn resolver_configurations_are_read() {
        let text = "# nameserver 192.0.2.9\n  nameserver\t192.0.2.53 x\ndomain old\nsearch old\nsearch corp.example. . b\n\
                    options edns0 timeout:1\noptions timeout:2 rotate\nnameserver";
        let config = parse_resolv_conf(text);
        assert_eq!(config.servers, ["192.0.2.53"]);
        assert_eq!(config.searches, ["corp.example", "b"]);
        assert_eq!(config.options, ["edns0", "timeout:2", "rotate"]);
        assert_eq!(parse_resolv_conf("search ."), DnsConfig::default());
    }

    #[test]
    fn policies() {
        let cluster = DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"].map(Into::into).into(),
            options: vec!["ndots:5".into()],
        };
        assert_eq!(run(json!({"containers": []})), cluster);
        assert_eq!(run(json!({"containers": [], "dnsPolicy": "ClusterFirst", "hostNetwork": false})), cluster);
        assert_eq!(run(json!({"containers": [], "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})), cluster);
        assert_eq!(run(json!({"containers": [], "dnsPolicy": "ClusterFirst", "hostNetwork": true})), node());
        assert_eq!(run(json!({"containers": [], "dnsPolicy": "Default"})), node());
        assert_eq!(on(&node(), &[], json!({"containers": []})).config, node(), "without cluster DNS the node's own");
        let none = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["a"]}});
        assert_eq!(run(none), DnsConfig { servers: vec!["192.0.2.1".into()], searches: vec!["a".into()], options: vec![] });
    }

    #[test]
    fn a_pods_own_settings_come_on_top() {
        let merged = run(json!({"containers": [], "dnsConfig": {
            "nameservers": ["192.0.2.1", "10.96.0.10"],
            "searches": ["a.example", "svc.cluster.local"],
            "options": [{"name": "ndots", "value": "1"}, {"name": "rotate"}, {"name": "edns0", "value": ""}],
        }}));
        assert_eq!(merged.servers, ["10.96.0.10", "192.0.2.1"]);
        assert_eq!(merged.searches, ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "a.example"]);
        assert_eq!(merged.options, ["ndots:1", "rotate", "edns0"]);
        let default = run(json!({"containers": [], "dnsPolicy": "Default", "dnsConfig": {"options": [{"name": "timeout", "value": "3"}]}}));
        assert_eq!(default.options, ["edns0", "timeout:3"]);
    }

    #[test]
    fn limits() {
        let node = parse_resolv_conf("nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n");
        let cut = on(&node, &DNS, json!({"containers": [], "dnsPolicy": "Default"}));
        assert_eq!(cut.config.servers, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert!(cut.problems[0].starts_with("Nameserver limits were exceeded, "), "{:?}", cut.problems);

        let searches: Vec<String> = (0..32).map(|n| format!("s{n}.example")).collect();
        let cut = on(&node, &DNS, json!({"containers": [], "dnsConfig": {"searches": searches}}));
        assert_eq!(cut.config.searches.len(), 32);
        assert!(cut.problems[0].ends_with(" s27.example s28.example"), "{:?}", cut.problems);

        let long: Vec<String> = (0..20).map(|n| format!("{n}.{}", "x".repeat(200))).collect();
        let cut = on(&node, &DNS, json!({"containers": [], "dnsConfig": {"searches": long}}));
        assert!(cut.config.searches.join(" ").len() <= 2048 && cut.config.searches.len() > 10);
        let too_long = on(&node, &DNS, json!({"containers": [], "dnsConfig": {"searches": ["x".repeat(254), "a"]}}));
        assert_eq!(too_long.config.searches.last().map(String::as_str), Some("a"));
        assert_eq!(too_long.problems.len(), 1);
    }
}
