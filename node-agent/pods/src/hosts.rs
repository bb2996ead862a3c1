//! The `/etc/hosts` file that a pod's containers share.

use k8s_openapi::api::core::v1::Pod;

use crate::spec::{self, HostName};

/// The file's text. `node_hosts` is the node's own file, used by host-network pods.
pub fn hosts_file(pod: &Pod, ips: &[String], host: &HostName, node_hosts: &str) -> String {
    let mut text = String::new();
    if spec::host_network(pod) {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(node_hosts);
    } else {
        text.push_str(concat!(
            "# Kubernetes-managed hosts file.\n",
            "127.0.0.1\tlocalhost\n",
            "::1\tlocalhost ip6-localhost ip6-loopback\n",
            "fe00::0\tip6-localnet\n",
            "fe00::0\tip6-mcastprefix\n",
            "fe00::1\tip6-allnodes\n",
            "fe00::2\tip6-allrouters\n",
        ));
        for ip in ips {
            if host.domain.is_empty() {
                text.push_str(&format!("{ip}\t{}\n", host.host));
            } else {
                text.push_str(&format!("{ip}\t{}.{}\t{}\n", host.host, host.domain, host.host));
            }
        }
    }
    let aliases = spec::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [],
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["foo", "bar"]}]}}))
        .unwrap();
        let host = HostName { host: "h".into(), domain: "s.n.svc.c".into(), kernel: "h".into() };
        let text = hosts_file(&pod, &["10.0.0.2".into()], &host, "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.0.0.2\th.s.n.svc.c\th\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n"));
    }
}
