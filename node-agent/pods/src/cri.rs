//! CRI v1 over containerd's unix socket, one method a call, errors named after the call.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// Calls that containerd answers without waiting for a workload.
const SHORT: Duration = Duration::from_secs(120);
/// Creating a sandbox runs CNI and a shim (kubelet: twice the runtime request timeout).
const SANDBOX: Duration = Duration::from_secs(240);
/// Pulls end by themselves: containerd gives up when no progress is made.
const PULL: Duration = Duration::from_secs(24 * 3600);
/// Lists of a full node and command output pass the 4 MiB gRPC default.
const MAX_MESSAGE: usize = 32 << 20;

/// A cheap handle: clones share one HTTP/2 connection that reconnects by itself.
#[derive(Clone)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    channel: Channel,
}

impl Cri {
    /// Connects and asks for the version, so that a socket without a CRI plugin is found at once.
    pub async fn connect(socket: &Path) -> Result<Cri, Error> {
        let failed = |message: String| Error::Runtime { socket: socket.to_owned(), message };
        let path: PathBuf = socket.to_owned();
        // The URI is a placeholder: the connector below ignores it.
        let channel = Endpoint::from_static("http://containerd.sock")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }))
            .await
            .map_err(|e| failed(crate::error::chain(&e)))?;
        let cri = Cri {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            channel,
        };
        cri.version(VersionRequest { version: "v1".into() }).await.map_err(|e| failed(e.to_string()))?;
        Ok(cri)
    }

    /// The connection itself, for containerd's own services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// SIGTERM (or the image's stop signal), then SIGKILL after `grace`.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: grace.as_secs() as i64 };
        let mut client = self.runtime.clone();
        bounded("StopContainer", SHORT + grace, client.stop_container(request)).await.map(drop)
    }

    /// Runs a command to its end. A timeout of zero means none.
    pub async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout: Duration) -> Result<ExecSyncResponse, Error> {
        // Seconds are all CRI knows; a part of a second must not become "no timeout".
        let seconds = timeout.as_secs_f64().ceil() as i64;
        let limit = if timeout.is_zero() { PULL } else { timeout + Duration::from_secs(30) };
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: seconds };
        let mut client = self.runtime.clone();
        bounded("ExecSync", limit, client.exec_sync(request)).await
    }
}

macro_rules! calls {
    ($($service:ident $name:literal $method:ident($request:ty) -> $response:ty, $limit:expr;)*) => {
        impl Cri {
            $(pub async fn $method(&self, request: $request) -> Result<$response, Error> {
                let mut client = self.$service.clone();
                bounded($name, $limit, client.$method(request)).await
            })*
        }
    };
}

calls! {
    runtime "Version" version(VersionRequest) -> VersionResponse, SHORT;
    runtime "Status" status(StatusRequest) -> StatusResponse, SHORT;
    runtime "RunPodSandbox" run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse, SANDBOX;
    runtime "StopPodSandbox" stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse, SANDBOX;
    runtime "RemovePodSandbox" remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse, SANDBOX;
    runtime "PodSandboxStatus" pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse, SHORT;
    runtime "ListPodSandbox" list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse, SHORT;
    runtime "CreateContainer" create_container(CreateContainerRequest) -> CreateContainerResponse, SANDBOX;
    runtime "StartContainer" start_container(StartContainerRequest) -> StartContainerResponse, SANDBOX;
    runtime "RemoveContainer" remove_container(RemoveContainerRequest) -> RemoveContainerResponse, SHORT;
    runtime "ListContainers" list_containers(ListContainersRequest) -> ListContainersResponse, SHORT;
    runtime "ContainerStatus" container_status(ContainerStatusRequest) -> ContainerStatusResponse, SHORT;
    runtime "ReopenContainerLog" reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse, SHORT;
    runtime "Exec" exec(ExecRequest) -> ExecResponse, SHORT;
    runtime "Attach" attach(AttachRequest) -> AttachResponse, SHORT;
    runtime "PortForward" port_forward(PortForwardRequest) -> PortForwardResponse, SHORT;
    runtime "ListContainerStats" list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse, SHORT;
    images "ListImages" list_images(ListImagesRequest) -> ListImagesResponse, SHORT;
    images "ImageStatus" image_status(ImageStatusRequest) -> ImageStatusResponse, SHORT;
    images "PullImage" pull_image(PullImageRequest) -> PullImageResponse, PULL;
}

async fn bounded<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::Cri { call, status: Box::new(status) }),
        Err(_) => Err(Error::Timeout(format!("containerd did not answer {call} within {limit:?}"))),
    }
}
