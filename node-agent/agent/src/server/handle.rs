//! One arm a path.

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use xebec_pods::{PodManager, StreamTarget};

use super::{
    Request, Response, Shared, content, files, full, json as json_response,
    query::Query,
    route::{Route, Target},
    text, upgrade,
};

/// Answers an authorized request.
pub(super) async fn handle(route: Route, request: Request, shared: &Shared) -> Response {
    match route {
        Route::Healthz => text(200, "ok"),
        Route::Metrics => metrics(shared),
        Route::NodeLogs(path) => files::serve(&path).await,
        of_pods => match shared.health.pods() {
            Some(pods) => with_pods(of_pods, request, pods).await.unwrap_or_else(|refusal| refusal),
            None => text(503, "the container runtime does not answer yet"),
        },
    }
}

async fn with_pods(route: Route, request: Request, pods: Arc<PodManager>) -> Result<Response, Response> {
    let query = Query::parse(request.uri().query());
    Ok(match route {
        Route::Healthz | Route::Metrics | Route::NodeLogs(_) => text(404, "404 page not found\n"),
        Route::Pods => pod_list(&pods.pods()),
        Route::RunningPods => pod_list(&pods.running_pods().await.map_err(failed)?),
        Route::StatsSummary => json_response(&pods.stats_summary().await.map_err(failed)?),
        Route::ContainerLogs { namespace, pod, container } => {
            let options = query.logs().map_err(bad_request)?;
            let lines = pods.container_logs(&namespace, &pod, &container, options).await.map_err(failed)?;
            content(200, "text/plain", StreamBody::new(lines.map_ok(Frame::data)).boxed_unsync())
        }
        Route::Exec(target) => {
            let url = pods.exec_url(&stream_target(target), query.exec().map_err(bad_request)?).await.map_err(failed)?;
            upgrade::forward(request, &url).await
        }
        Route::Attach(target) => {
            let url = pods.attach_url(&stream_target(target), query.exec().map_err(bad_request)?).await.map_err(failed)?;
            upgrade::forward(request, &url).await
        }
        Route::PortForward(target) => {
            let url = pods.port_forward_url(&stream_target(target), query.ports().map_err(bad_request)?).await.map_err(failed)?;
            upgrade::forward(request, &url).await
        }
        Route::Run(_) if request.method() != Method::POST => text(405, "405: Method Not Allowed"),
        Route::Run(target) => {
            // One string, split at blanks, as kubelet does.
            let line = query.all(&["cmd"]).join(" ");
            let command = line.split_whitespace().map(str::to_owned).collect();
            let output = pods.run_in_container(&stream_target(target), command, Duration::ZERO).await.map_err(failed)?;
            let said = [output.stdout, output.stderr].concat();
            match output.exit_code {
                0 => text(200, said),
                code => text(500, format!("command exited with code {code}: {}", String::from_utf8_lossy(&said))),
            }
        }
    })
}

fn pod_list(pods: &[impl serde::Serialize]) -> Response {
    let items: Vec<Value> = pods.iter().filter_map(|pod| serde_json::to_value(pod).ok()).collect();
    json_response(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn metrics(shared: &Shared) -> Response {
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, &shared.registry) {
        Ok(()) => content(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", full(body)),
        Err(error) => text(500, format!("metrics of {} cannot be read: {error}", shared.config.node_name)),
    }
}

fn stream_target(target: Target) -> StreamTarget {
    StreamTarget { namespace: target.namespace, pod: target.pod, uid: target.uid, container: target.container }
}

fn bad_request(reason: String) -> Response {
    text(400, reason)
}

fn failed(error: xebec_pods::Error) -> Response {
    text(error.http_status(), error.to_string())
}
