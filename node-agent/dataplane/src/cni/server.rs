//! The socket `xebec-cni` calls.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::protocol::{CniError, Request};
use crate::{Dataplane, listen};

/// Longest request: configurations are small.
const MAX_REQUEST: u64 = 4 << 20;

/// Serves calls until `cancel`; those under way are finished.
pub async fn serve(dataplane: Arc<Dataplane>, listener: UnixListener, cancel: CancellationToken) {
    let mut calls = listen::accept(listener, cancel, |stream| {
        let dataplane = dataplane.clone();
        async move { answer(&dataplane, stream).await.inspect_err(|error| tracing::warn!(%error, "a CNI call was cut off")) }
    })
    .await;
    while calls.join_next().await.is_some() {}
}

async fn answer(dataplane: &Arc<Dataplane>, stream: UnixStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_REQUEST)).read_line(&mut line).await?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => call(dataplane, request).await,
        Err(e) => Err(CniError { code: 6, msg: "the request is not valid JSON".into(), details: e.to_string() }),
    };
    let answer = match answer {
        Ok(result) => json!({"result": result}),
        Err(error) => json!({"error": error}),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await
}

/// Runs one call on a task of its own: a caller that goes away does not stop it half-way.
async fn call(dataplane: &Arc<Dataplane>, request: Request) -> Result<Value, CniError> {
    let dataplane = dataplane.clone();
    let task = tokio::spawn(async move {
        let (command, id) = (request.command.clone(), request.container_id.clone());
        let started = std::time::Instant::now();
        let result = match command.as_str() {
            "ADD" => dataplane.cni_add(&request).await,
            "DEL" => dataplane.cni_del(&request).await,
            "CHECK" => dataplane.cni_check(&request).await,
            "STATUS" => dataplane.cni_status(),
            "GC" => dataplane.cni_gc(&request).await,
            other => Err(CniError::environment(format!("CNI_COMMAND is {other:?}"))),
        };
        match &result {
            Ok(_) => {
                tracing::debug!(%command, sandbox = %id, elapsed = ?started.elapsed(), "CNI call")
            }
            Err(error) => {
                tracing::warn!(%command, sandbox = %id, args = %request.args, code = error.code, %error, "CNI call failed")
            }
        }
        result
    });
    task.await.unwrap_or_else(|_| Err(CniError::failed("the call ended unexpectedly", "see the agent's log")))
}
