//! The socket `xebec-cni` calls.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::protocol::{CniError, Request};
use crate::{Dataplane, Error};

/// Longest request: configurations are small.
const MAX_REQUEST: u64 = 4 << 20;

/// Opens the socket, mode 0600 from the moment it has its name; a stale one is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    crate::file::remove(temporary)?;
    let listener = UnixListener::bind(temporary).map_err(Error::io("listen on", temporary))?;
    std::fs::set_permissions(temporary, std::fs::Permissions::from_mode(0o600)).map_err(Error::io("restrict", temporary))?;
    std::fs::rename(temporary, path).map_err(Error::io("listen on", path))?;
    Ok(listener)
}

/// Serves calls until `cancel`; those under way are finished.
pub async fn serve(dataplane: Arc<Dataplane>, listener: UnixListener, cancel: CancellationToken) {
    let mut calls = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = calls.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let dataplane = dataplane.clone();
                calls.spawn(async move {
                    if let Err(error) = answer(&dataplane, stream).await {
                        tracing::warn!(%error, "a CNI call was cut off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a CNI call");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
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
