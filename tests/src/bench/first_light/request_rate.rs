//! Round trips a second: pod to ClusterIP, pod to pod, and loopback inside one namespace.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use super::{Args, pods};
use crate::bench::{Goal, Line, figures::percentile, inside::Helper, processes, traffic};

const PORT: u16 = 7777;
const ROUNDS: usize = 9;
const TIME: &str = "1";

/// A client pod, a server pod with an echo server in it, and a Service before that.
pub struct Scene {
    client: Client,
    pub from: u32,
    pub server: (std::net::IpAddr, u32),
    pub service: SocketAddr,
    _serving: Helper,
}

impl Scene {
    pub async fn make(client: &Client, args: &Args) -> Result<Scene> {
        let api: Api<Pod> = Api::default_namespaced(client.clone());
        let from = pods::run(&api, &pods::sleeper("bench-client", &args.image)).await?;
        let to = pods::run(&api, &pods::sleeper("bench-server", &args.image)).await?;
        let (_, from) = pods::place(&from, &args.containerd_state)?;
        let server = pods::place(&to, &args.containerd_state)?;
        let mut serving = Helper::start(Some(server.1), &["serve", &format!("0.0.0.0:{PORT}")])?;
        serving.line().context("echo server in the server pod")?;
        let service = json!({"metadata": {"name": "bench-server"}, "spec": {"selector": {"app": "bench-server"}, "ports": [{"port": 80, "targetPort": PORT}]}});
        let service: Service =
            Api::default_namespaced(client.clone()).create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        let ip = service.spec.and_then(|s| s.cluster_ip).context("Service without a cluster address")?;
        let scene = Scene { client: client.clone(), from, server, service: SocketAddr::new(ip.parse()?, 80), _serving: serving };
        scene.wait_for_service().await?;
        Ok(scene)
    }

    async fn wait_for_service(&self) -> Result<()> {
        let begin = std::time::Instant::now();
        loop {
            match self.rate(self.service, "0.05") {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > pods::DEADLINE => {
                    return Err(error.context("the Service never answered"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Round trips a second from the client pod.
    fn rate(&self, to: SocketAddr, seconds: &str) -> Result<f64> {
        let mut helper = Helper::start(Some(self.from), &["round-trips", &to.to_string(), seconds])?;
        Ok(helper.line()?.parse()?)
    }

    pub async fn end(self) -> Result<()> {
        let Scene { client, .. } = self;
        Api::<Service>::default_namespaced(client.clone()).delete("bench-server", &DeleteParams::default()).await?;
        let api: Api<Pod> = Api::default_namespaced(client);
        pods::delete(&api, "bench-client").await?;
        pods::delete(&api, "bench-server").await
    }
}

/// Interleaved runs of the three ways.
pub async fn measure(client: &Client, args: &Args) -> Result<Vec<Line>> {
    let scene = Scene::make(client, args).await?;
    let mut local = Helper::start(Some(scene.from), &["serve", "127.0.0.1:0"])?;
    let loopback: SocketAddr = format!("127.0.0.1:{}", local.line()?).parse()?;
    let pod = SocketAddr::new(scene.server.0, PORT);
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (to, rates) in [scene.service, pod, loopback].into_iter().zip(&mut rates) {
            rates.push(scene.rate(to, TIME)?);
        }
    }
    drop(local);
    scene.end().await?;
    let [service, pod, loopback] = rates;
    // Pairs of one round: what disturbed the machine then disturbed both.
    let ratios: Vec<f64> = service.iter().zip(&pod).map(|(s, p)| s / p).collect();
    let (pod_median, loopback_median) = (percentile(&pod, 50.0), percentile(&loopback, 50.0));
    Ok(vec![
        Line::median("round trips, pod to ClusterIP", "1/s", &service, Goal::None).beside("pod to pod", pod_median, Goal::None),
        Line::median("round trips, pod to pod", "1/s", &pod, Goal::None).beside("loopback in one namespace", loopback_median, Goal::None),
        Line::median("round trips, loopback in one namespace", "1/s", &loopback, Goal::None),
        Line::median("round trips, pod to ClusterIP over pod to pod, by round", "ratio", &ratios, Goal::AtLeast(0.98)),
    ])
}

/// The helper's side. It shares a CPU with the server: where the scheduler puts the two makes more of a difference than what is
/// measured.
pub fn round_trips(to: SocketAddr, seconds: f64) -> Result<()> {
    processes::stay()?;
    println!("{}", traffic::round_trips(to, Duration::from_secs_f64(seconds))?);
    Ok(())
}
