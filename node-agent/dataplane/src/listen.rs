//! Unix sockets that are asked: one question a connection.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;

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

/// Has each connection answered on a task of its own until `cancel`. Returns what is under way then: to drop it ends it.
pub async fn accept<F>(
    listener: UnixListener,
    cancel: CancellationToken,
    mut answer: impl FnMut(UnixStream) -> F,
) -> JoinSet<io::Result<()>>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut calls = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return calls,
            accepted = listener.accept() => accepted,
            Some(ended) = calls.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "a call was cut off");
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                calls.spawn(answer(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a call");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
