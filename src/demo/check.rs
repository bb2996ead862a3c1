//! What must hold of the demo: each Service answers from inside and outside, and the policy denies what it should.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

const NAMESPACE: &str = "demo";
const REPLICAS: i32 = 3;
/// Enough that each of three backends is very likely to be chosen once.
const REQUESTS: usize = 24;
/// For pods to start and to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a denied connection is given before it counts as denied, in seconds.
const DENIED_AFTER: u32 = 2;

/// A row of the table.
pub struct Line {
    pub what: String,
    pub saw: String,
    pub good: bool,
}

/// Makes all checks.
pub async fn run(client: &Client) -> Result<Vec<Line>> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    until("the Deployment web has three ready pods", async || {
        let status = deployments.get("web").await?.status.unwrap_or_default();
        Ok(status.ready_replicas == Some(REPLICAS) && status.updated_replicas == Some(REPLICAS))
    })
    .await?;
    until("every pod of the Deployment answers and is what the Service leads to", async || in_service(client).await).await?;
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let cluster_ip = services.get("web").await?.spec.and_then(|spec| spec.cluster_ip).context("Service web has no cluster IP")?;
    let ports = services.get("web-nodeport").await?.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let node_port = ports.first().and_then(|port| port.node_port).context("Service web-nodeport has no node port")?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    let addresses = nodes.iter().flat_map(|node| node.status.iter().flat_map(|status| status.addresses.iter().flatten()));
    let node_ip = addresses.into_iter().find(|address| address.type_ == "InternalIP").context("no node has an InternalIP")?.address.clone();

    let join = |address: &str| if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let inside = format!("{}:80", join(&cluster_ip));
    let outside = format!("{}:{node_port}", join(&node_ip));
    let script = format!(
        "for i in $(seq {REQUESTS}); do timeout 5 wget -q -O - http://{inside}/; done\necho --\n\
         for i in $(seq {REQUESTS}); do timeout 5 wget -q -O - http://{outside}/; done\n"
    );
    let denied_script = format!("timeout {DENIED_AFTER} wget -q -O - http://{inside}/ && echo answered || echo denied");
    let (permitted, denied) =
        tokio::join!(output(client, "permitted", json!({"access": "web"}), &script), output(client, "denied", json!({}), &denied_script),);
    let (permitted, denied) = (permitted?, denied?);
    let (by_cluster_ip, by_node_port) = permitted.split_once("--\n").unwrap_or((&permitted, ""));
    let from_outside = tokio::task::spawn_blocking({
        let outside = outside.clone();
        move || (0..REQUESTS).map(|_| get(&outside).unwrap_or_default()).collect::<String>()
    })
    .await?;
    Ok(vec![
        answered(format!("pod with access=web → ClusterIP {inside}"), by_cluster_ip),
        answered(format!("pod with access=web → NodePort {outside}"), by_node_port),
        answered(format!("outside the node → NodePort {outside}"), &from_outside),
        refused(format!("pod without the label → ClusterIP {inside}"), &denied),
    ])
}

/// Whether the pods are there, not only written down: after the node was down, the API tells what was before, and the pods come
/// back with other addresses.
async fn in_service(client: &Client) -> Result<bool, kube::Error> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default().labels("app=web")).await?;
    let mut addresses = BTreeSet::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}:8080/proxy/", pod.name_any());
        let Ok(request) = http::Request::get(path).body(Vec::new()) else { return Ok(false) };
        match client.request_text(request).await {
            Ok(answer) if answer.trim() == pod.name_any() => {}
            Ok(_) | Err(_) => return Ok(false),
        }
        addresses.extend(pod.status.as_ref().and_then(|status| status.pod_ip.clone()));
    }
    let slices = ListParams::default().labels("kubernetes.io/service-name=web");
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE).list(&slices).await?;
    let ready = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true)));
    let behind: BTreeSet<String> = ready.flat_map(|endpoint| endpoint.addresses.clone()).collect();
    Ok(addresses.len() == REPLICAS as usize && addresses == behind)
}

/// Every request must have been answered, each by one of the pods.
fn answered(what: String, names: &str) -> Line {
    let answers = names.lines().filter(|line| line.starts_with("web-")).count();
    let pods: BTreeSet<&str> = names.lines().filter(|line| line.starts_with("web-")).collect();
    let saw = format!("{answers} of {REQUESTS} requests answered, by {} pods", pods.len());
    Line { what, saw, good: answers == REQUESTS && pods.len() > 1 }
}

/// The shell may say more, of what it ended.
fn refused(what: String, said: &str) -> Line {
    let good = said.lines().any(|line| line == "denied") && !said.lines().any(|line| line == "answered");
    Line { what, saw: if good { "denied by the policy".to_owned() } else { format!("not denied: {}", said.trim()) }, good }
}

/// What a pod's command printed, once it has ended.
async fn output(client: &Client, name: &str, labels: serde_json::Value, script: &str) -> Result<String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": format!("check-{name}-"), "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "check", "image": "localhost/xebec/busybox:1", "command": ["sh", "-c", script]}],
        },
    }))?;
    let pod = api.create(&PostParams::default(), &pod).await.context("cannot create a pod to check from")?;
    let name = pod.name_any();
    let ended = until("the pod to check from has ended", async || {
        let phase = api.get(&name).await?.status.and_then(|status| status.phase);
        Ok(matches!(phase.as_deref(), Some("Succeeded" | "Failed")))
    })
    .await;
    let log = match ended {
        Ok(()) => api.logs(&name, &LogParams::default()).await.context("cannot read what the checking pod saw"),
        Err(error) => Err(error),
    };
    api.delete(&name, &DeleteParams::default()).await.context("cannot delete the pod to check from")?;
    log
}

/// The body of a page, without anything of a URL library: one request, read to the end.
fn get(address: &str) -> Result<String> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => bail!("no HTTP answer"),
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool, kube::Error>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = match holds().await {
            Ok(true) => return Ok(()),
            Ok(false) => String::new(),
            Err(error) => format!(": {error}"),
        };
        if Instant::now() > deadline {
            bail!("waited {} s in vain until {what}{state}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_answer_is_a_failure() {
        let all = "web-a\nweb-b\n".repeat(REQUESTS / 2);
        assert!(answered(String::new(), &all).good);
        let lost = all.replacen("web-a\n", "wget: timed out\n", 1);
        assert!(!answered(String::new(), &lost).good);
    }

    #[test]
    fn an_answer_is_no_denial() {
        assert!(refused(String::new(), "Terminated\ndenied\n").good);
        assert!(refused(String::new(), "denied\nTerminated\n").good);
        assert!(!refused(String::new(), "web-a\nanswered\n").good);
        assert!(!refused(String::new(), "").good);
    }

    #[test]
    fn one_pod_that_answers_everything_is_no_load_balancing() {
        assert!(!answered(String::new(), &"web-a\n".repeat(REQUESTS)).good);
    }
}
