//! containerd's own event stream: tells at once when a container starts, exits or runs out of memory.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use k8s_cri::v1::{ContainerState, ContainerStatusRequest};
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::manager::PodManager;

/// The containerd namespace of CRI.
const FILTERS: [&str; 3] =
    ["namespace==k8s.io,topic==\"/tasks/exit\"", "namespace==k8s.io,topic==\"/tasks/start\"", "namespace==k8s.io,topic==\"/tasks/oom\""];
const RETRY: Duration = Duration::from_secs(1);
const CATCH_UP: Duration = Duration::from_millis(500);

/// Listens for ever; a broken stream is taken up again, with a relist for what was missed.
pub async fn listen(manager: Arc<PodManager>, cancel: CancellationToken) {
    while !cancel.is_cancelled() {
        if let Err(status) = follow(&manager).await {
            tracing::warn!(error = status.message(), "containerd's event stream broke");
        }
        tokio::time::sleep(RETRY).await;
        if let Err(error) = manager.relist().await {
            tracing::warn!(%error, "relist failed");
        }
    }
}

/// The event comes before CRI has taken note of it: wakes the worker once CRI says so too.
async fn after_exit(manager: &PodManager, id: &str) {
    let mut pause = Duration::from_millis(5);
    while pause < CATCH_UP {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let state = manager.cri.container_status(request).await.ok().and_then(|a| a.status).map(|s| s.state);
        if state.is_some_and(|s| s != ContainerState::ContainerRunning as i32) {
            return manager.runtime_event(id);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    // A sandbox, which is no container to CRI, or one that CRI is slow with: the worker looks itself.
    manager.runtime_event(id);
}

async fn follow(manager: &Arc<PodManager>) -> Result<(), tonic::Status> {
    let mut client = EventsClient::new(manager.cri.channel());
    let request = SubscribeRequest { filters: FILTERS.iter().map(ToString::to_string).collect() };
    let mut stream = client.subscribe(request).await?.into_inner();
    while let Some(envelope) = stream.message().await? {
        let Some(event) = envelope.event else { continue };
        let Some(id) = container_id(&envelope.topic, &event.value) else { continue };
        if envelope.topic == "/tasks/exit" {
            let manager = manager.clone();
            tokio::spawn(async move { after_exit(&manager, &id).await });
        } else {
            manager.runtime_event(&id);
        }
    }
    Ok(())
}

/// The container of an event. An exec's exit carries its own id and is none of ours.
fn container_id(topic: &str, value: &[u8]) -> Option<String> {
    match topic {
        "/tasks/exit" => {
            let exit = TaskExit::decode(value).ok()?;
            (exit.id == exit.container_id).then_some(exit.container_id)
        }
        "/tasks/start" => TaskStart::decode(value).ok().map(|e| e.container_id),
        "/tasks/oom" => TaskOom::decode(value).ok().map(|e| e.container_id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_of_execs_are_left_out() {
        let exit = |id: &str| TaskExit { container_id: "c".into(), id: id.into(), ..Default::default() }.encode_to_vec();
        assert_eq!(container_id("/tasks/exit", &exit("c")).as_deref(), Some("c"));
        assert_eq!(container_id("/tasks/exit", &exit("exec-1")), None);
        assert_eq!(container_id("/tasks/exit", b"\xff"), None);
        assert_eq!(container_id("/other", &exit("c")), None);
    }
}
