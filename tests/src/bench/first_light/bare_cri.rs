//! What containerd itself needs for a pod: the same calls, with nothing around them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::{Channel, Endpoint};

async fn connect(socket: &Path) -> Result<RuntimeServiceClient<Channel>> {
    let path = socket.to_path_buf();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://containerd").connect_with_connector(connector).await;
    Ok(RuntimeServiceClient::new(channel.with_context(|| format!("cannot connect to {}", socket.display()))?))
}

/// Sandbox, container, start. The sandbox shares the host's network, so no CNI plugin is part of the time.
pub async fn created_to_running(socket: &Path, image: &str, round: usize) -> Result<Duration> {
    let mut cri = connect(socket).await?;
    let name = format!("bench-bare-{round}");
    let node_network = k8s_cri::v1::NamespaceOption { network: k8s_cri::v1::NamespaceMode::Node.into(), ..Default::default() };
    let config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name.clone(), uid: name.clone(), namespace: "bench".into(), attempt: 0 }),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(k8s_cri::v1::LinuxSandboxSecurityContext {
                namespace_options: Some(node_network),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let begin = Instant::now();
    let sandbox = cri
        .run_pod_sandbox(RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() })
        .await?
        .into_inner()
        .pod_sandbox_id;
    let started = async {
        let container = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
                image: Some(ImageSpec { image: image.into(), ..Default::default() }),
                command: vec!["sleep".into(), "3600".into()],
                ..Default::default()
            }),
            sandbox_config: Some(config),
        };
        let id = cri.create_container(container).await?.into_inner().container_id;
        cri.start_container(StartContainerRequest { container_id: id }).await?;
        anyhow::Ok(begin.elapsed())
    }
    .await;
    cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await?;
    cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await?;
    started
}
