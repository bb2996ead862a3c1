//! Another network for the node's pods, as small as one can be: a device pair and a route for each, by a shell script.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::json;
use xebec_tests::cluster::{IMAGE, until};

use crate::cluster::Cluster;

const POD: &str = "10.99.0.2";

const PAIR: &str = r#"#!/bin/sh
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
host=other$(printf %s "$CNI_CONTAINERID" | cut -c1-8)
case $CNI_COMMAND in
ADD)
  ip link add "$host" type veth peer name "$CNI_IFNAME" netns "$CNI_NETNS"
  nsenter --net="$CNI_NETNS" sh -ec "ip addr add 10.99.0.2/32 dev $CNI_IFNAME; ip link set $CNI_IFNAME up
    ip route add 10.99.0.1 dev $CNI_IFNAME; ip route add default via 10.99.0.1 dev $CNI_IFNAME"
  ip addr add 10.99.0.1/32 dev "$host"; ip link set "$host" up; ip route add 10.99.0.2 dev "$host"
  printf '{"cniVersion": "1.0.0", "interfaces": [{"name": "%s", "sandbox": "%s"}],' "$CNI_IFNAME" "$CNI_NETNS"
  printf ' "ips": [{"address": "10.99.0.2/32", "gateway": "10.99.0.1", "interface": 0}]}';;
DEL) ip link del "$host" 2>/dev/null || true;;
VERSION) printf '{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}';;
esac
"#;

const LOOPBACK: &str = r#"#!/bin/sh
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
case $CNI_COMMAND in
ADD) nsenter --net="$CNI_NETNS" ip link set lo up; printf '{"cniVersion": "0.3.1"}';;
VERSION) printf '{"cniVersion": "0.3.1", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}';;
esac
"#;

fn install(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A pod gets its network from the other one and is reached there.
pub fn has_the_node(cluster: &Cluster) {
    let (conf, bin) = (cluster.node.run_dir.join("cni"), cluster.node.run_dir.join("cni-bin"));
    fs::create_dir_all(&bin).unwrap();
    install(&bin, "pair", PAIR);
    install(&bin, "loopback", LOOPBACK);
    let list = json!({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "pair"}]});
    fs::create_dir_all(&conf).unwrap();
    fs::write(conf.join("10-other.conflist"), list.to_string()).unwrap();

    let script = "mkdir -p /www && echo other > /www/index.html && exec httpd -f -p 8080 -h /www";
    let overrides = json!({"spec": {"nodeName": cluster.node.name, "terminationGracePeriodSeconds": 0}}).to_string();
    cluster.kubectl(&["run", "other", "--image", IMAGE, "--overrides", &overrides, "--command", "--", "sh", "-c", script]);
    until("the pod has the other network's address", || cluster.kubectl(&["get", "pod", "other", "-o", "jsonpath={.status.podIP}"]) == POD);
    until("and answers there", || cluster.in_netns(&format!("timeout 5 busybox wget -q -O- http://{POD}:8080/")) == ["other"]);
    cluster.kubectl(&["delete", "pod", "other", "--wait"]);
    until("its device is gone", || !cluster.in_netns("ip -o link").concat().contains("other"));
    for name in ["pair", "loopback"] {
        fs::remove_file(bin.join(name)).unwrap();
    }
    fs::remove_file(conf.join("10-other.conflist")).unwrap();
}
