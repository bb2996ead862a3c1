//! The Node object and the kubelet's API.

use serde_json::Value;

use xebec_tests::cluster::{Cluster, until};

#[test]
fn the_node_is_registered_as_kubelet_does() {
    let cluster = Cluster::up("node");
    let name = cluster.node(1).name.clone();
    let node: Value = serde_json::from_str(&cluster.kubectl(&["get", "node", &name, "-o", "json"])).unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], name.as_str());
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/os"], "linux");
    let status = &node["status"];
    assert_eq!(status["addresses"][0]["address"], cluster.up.node_ip().to_string());
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    assert!(status["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap().starts_with("containerd://"));
    let conditions: Vec<(&str, &str)> =
        status["conditions"].as_array().unwrap().iter().map(|c| (c["type"].as_str().unwrap(), c["status"].as_str().unwrap())).collect();
    for wanted in [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False")] {
        assert!(conditions.contains(&wanted), "{wanted:?} not in {conditions:?}");
    }
    until("the images are listed", || {
        cluster.kubectl(&["get", "node", &name, "-o", "jsonpath={.status.images[*].names[*]}"]).contains("busybox")
    });
    let renewed = || cluster.kubectl(&["get", "lease", "-n", "kube-node-lease", &name, "-o", "jsonpath={.spec.renewTime}"]);
    let first = renewed();
    until("the lease is renewed", || renewed() != first);

    let path = |path: &str| format!("/api/v1/nodes/{name}/proxy/{path}");
    assert_eq!(cluster.kubectl(&["get", "--raw", &path("healthz")]), "ok");
    let pods: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path("pods")])).unwrap();
    assert_eq!(pods["kind"], "PodList");
    assert!(cluster.kubectl(&["get", "--raw", &path("metrics")]).contains("kubelet_node_ready 1"));
    let summary: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path("stats/summary")])).unwrap();
    assert_eq!(summary["node"]["nodeName"], name.as_str());
}

#[test]
fn a_deleted_node_comes_back() {
    let cluster = Cluster::up("nodeback");
    let name = cluster.node(1).name.clone();
    let uid =
        || String::from_utf8_lossy(&cluster.try_kubectl(&["get", "node", &name, "-o", "jsonpath={.metadata.uid}"], "").stdout).into_owned();
    let first = uid();
    cluster.kubectl(&["delete", "node", &name]);
    until("the node has registered again", || {
        let now = uid();
        !now.is_empty() && now != first
    });
    cluster.kubectl(&["wait", &format!("node/{name}"), "--for=condition=Ready", "--timeout=120s"]);
}

#[tokio::test]
async fn the_kubelet_api_is_for_those_the_cluster_trusts() {
    let cluster = Cluster::up("kubeletapi");
    let layout = &cluster.up.layout;
    let user = layout.run_dir.join("user.kubeconfig");
    let status = std::process::Command::new(&cluster.up.binaries.xebec)
        .args(["kubeconfig", "--user", "jane", "--group", "people", "--server", "https://127.0.0.1:1", "--data-dir"])
        .arg(layout.server_dir())
        .arg("--out")
        .arg(&user)
        .status()
        .unwrap();
    assert!(status.success());
    let address = std::net::SocketAddr::from((cluster.up.node_ip(), 10250));
    for path in ["/pods", "/healthz", "/run/default/a/b?cmd=id", "/exec/default/a/b?command=id&output=1", "/nothing"] {
        assert_eq!(crate::nodes::tls::get(address, None, path).await, 401, "{path} without credentials");
    }
    for path in ["/pods", "/healthz", "/run/default/a/b?cmd=id", "/exec/default/a/b?command=id&output=1", "/metrics"] {
        assert_eq!(crate::nodes::tls::get(address, Some(&user), path).await, 403, "{path} as somebody without rights");
    }
    assert_eq!(crate::nodes::tls::get(address, Some(&cluster.up.kubeconfig), "/pods").await, 200);
    assert_eq!(crate::nodes::tls::get(address, Some(&cluster.up.kubeconfig), "/nothing").await, 404);
    assert_eq!(crate::nodes::tls::get(address, Some(&cluster.up.kubeconfig), "/exec/default/no/no?command=id&output=1").await, 404);
}

/// One HTTPS request with the certificate of a kubeconfig.
mod tls {
    use std::{net::SocketAddr, path::Path};

    use kube::config::{Config, Kubeconfig};

    /// The status of the answer.
    pub async fn get(address: SocketAddr, identity: Option<&Path>, path: &str) -> u16 {
        let mut config = Config::new(format!("https://{address}").parse().unwrap());
        if let Some(file) = identity {
            config = Config::from_custom_kubeconfig(Kubeconfig::read_from(file).unwrap(), &Default::default()).await.unwrap();
            config.cluster_url = format!("https://{address}").parse().unwrap();
            // The serving certificate is the cluster's own and names this address, so nothing is switched off here.
        } else {
            config.accept_invalid_certs = true;
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = kube::Client::try_from(config).unwrap();
        let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
        client.send(request).await.unwrap().status().as_u16()
    }
}
