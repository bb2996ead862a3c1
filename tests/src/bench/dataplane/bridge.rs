//! What xebec is measured beside: a node with a bridge for its pods and nftables rules in kube-proxy's shape.

use std::{
    fmt::Write,
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context, Result, bail};

use super::{
    node::{node_ip, pod_range},
    place::{Place, enter},
};
use crate::netns::net::Netns;

/// A Service in the rules.
#[derive(Debug, Clone)]
pub struct Rule {
    pub proto: &'static str,
    pub ip: Ipv4Addr,
    pub port: u16,
    /// At every address of the node too.
    pub node_port: Option<u16>,
    pub backend: Ipv4Addr,
    pub target: u16,
}

/// Everything for `nft -f`: maps from addresses and ports to verdicts, a chain for each Service, a chain for each endpoint.
pub fn rules(services: &[Rule], node: Ipv4Addr, pods: &str) -> String {
    let mut chains = String::new();
    let (mut ips, mut node_ports, mut cluster_ips) = (Vec::new(), Vec::new(), std::collections::BTreeSet::new());
    for (number, Rule { proto, ip, port, node_port, backend, target }) in services.iter().enumerate() {
        cluster_ips.insert(ip.to_string());
        ips.push(format!("{ip} . {proto} . {port} : goto service-{number}"));
        let mut text = String::new();
        let line = format!(
            "chain endpoint-{number} {{ ip saddr {backend} jump mark-for-masquerade; meta l4proto {proto} dnat to {backend}:{target}; }}\n\
             chain service-{number} {{ ip daddr {ip} {proto} dport {port} ip saddr != {pods} jump mark-for-masquerade; \
             numgen random mod 1 vmap {{ 0 : goto endpoint-{number} }}; }}\n"
        );
        text.push_str(&line);
        if let Some(node_port) = node_port {
            node_ports.push(format!("{proto} . {node_port} : goto external-{number}"));
            let _ = writeln!(text, "chain external-{number} {{ jump mark-for-masquerade; goto service-{number}; }}");
        }
        chains.push_str(&text);
    }
    let elements = |list: &[String]| if list.is_empty() { String::new() } else { format!("elements = {{ {} }};", list.join(",\n")) };
    let cluster_ips: Vec<String> = cluster_ips.into_iter().collect();
    format!(
        "table ip bench {{
map no-endpoints {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {ips} }}
map service-nodeports {{ type inet_proto . inet_service : verdict; {node_ports} }}
set nodeport-ips {{ type ipv4_addr; elements = {{ {node} }}; }}
set cluster-ips {{ type ipv4_addr; {cluster_ips} }}
chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
chain masquerading {{ meta mark and 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }}
{chains}
chain services {{
 ip daddr . meta l4proto . th dport vmap @service-ips;
 ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports;
}}
chain endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoints; }}
chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
chain filter-input {{ type filter hook input priority -110; ct state new jump endpoints-check; }}
chain filter-forward {{ type filter hook forward priority -110; ct state new jump endpoints-check; ct state new jump cluster-ips-check; }}
chain filter-output {{ type filter hook output priority -110; ct state new jump endpoints-check; }}
chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
chain nat-output {{ type nat hook output priority -100; jump services; }}
chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
",
        ips = elements(&ips),
        node_ports = elements(&node_ports),
        cluster_ips = elements(&cluster_ips),
    )
}

/// The node; its rules go with its namespace.
pub struct BridgeNode {
    pub netns: Netns,
    number: u8,
    pods: AtomicU8,
}

impl BridgeNode {
    /// A bridge with the range's first address, behind the uplink `up0`.
    pub fn new(number: u8, netns: Netns) -> Result<BridgeNode> {
        netns.ip(&format!("addr add {}/24 dev up0", node_ip(number)));
        netns.ip("link add br0 type bridge");
        netns.ip(&format!("addr add {}/21 dev br0", gateway(number)));
        netns.ip("link set br0 up");
        netns.run(|| -> Result<()> {
            for (name, value) in [
                ("net/ipv4/ip_forward", "1"),
                ("net/bridge/bridge-nf-call-iptables", "1"),
                // What leaves where it came in is answered with nothing, as with xebec.
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/up0/send_redirects", "0"),
            ] {
                std::fs::write(format!("/proc/sys/{name}"), value)
                    .with_context(|| format!("cannot set {name}; is br_netfilter loaded?"))?;
            }
            Ok(())
        })?;
        Ok(BridgeNode { netns, number, pods: AtomicU8::new(0) })
    }

    /// The way to another such node's pods.
    pub fn route_to(&self, other: u8) {
        self.netns.ip(&format!("route add {} via {}", pod_range(other), node_ip(other)));
    }

    /// A pod on the bridge.
    pub fn pod(&self) -> Place {
        let (netns, number) = (Netns::new(), self.pods.fetch_add(1, Ordering::SeqCst) + 1);
        let ip = Ipv4Addr::new(10, 244, self.number * 8, 1 + number);
        self.netns.join(&format!("pod{number}"), &netns, "eth0");
        self.netns.ip(&format!("link set pod{number} master br0"));
        netns.ip(&format!("addr add {ip}/21 dev eth0"));
        netns.ip(&format!("route add default via {}", gateway(self.number)));
        Place { netns, ip, procs: Vec::new() }
    }

    /// Writes the rules.
    pub fn load(&self, services: &[Rule]) -> Result<()> {
        let file = tempfile::NamedTempFile::new().context("no temporary file")?;
        std::fs::write(file.path(), rules(services, node_ip(self.number), "10.244.0.0/16")).context("cannot write the rules")?;
        let mut nft = Command::new("nft");
        enter(nft.arg("-f").arg(file.path()), &self.netns, &[])?;
        let output = nft.output().context("cannot run nft (package nftables)")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("nft refused the rules: {}", said.chars().take(2000).collect::<String>());
        }
        Ok(())
    }
}

fn gateway(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number * 8, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_an_element_and_a_chain_of_its_own() {
        let rule = |n: u8, node_port| Rule {
            proto: "tcp",
            ip: Ipv4Addr::new(10, 97, 0, n),
            port: 80,
            node_port,
            backend: Ipv4Addr::new(10, 245, 0, n),
            target: 8080,
        };
        let text = rules(&[rule(1, None), rule(2, Some(30080))], Ipv4Addr::new(192, 0, 2, 1), "10.244.0.0/16");
        for part in [
            "10.97.0.1 . tcp . 80 : goto service-0",
            "10.97.0.2 . tcp . 80 : goto service-1",
            "tcp . 30080 : goto external-1",
            "chain endpoint-1 {",
            "dnat to 10.245.0.2:8080",
            "elements = { 10.97.0.1,\n10.97.0.2 }",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("external-0"));
    }
}
