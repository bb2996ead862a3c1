//! The socket people's tools ask: one question in JSON a line, one answer, or many where it is about what happens. Mode 0600, like the CNI's beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::Dataplane;
use crate::explain::{self, WhyQuestion};
use crate::flows::{self, FlowsQuestion};
use crate::listen;

/// Longest question.
const MAX_QUESTION: u64 = 64 << 10;
/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// Name of the socket in the directory of the CNI's.
pub const SOCKET: &str = "inspect.sock";

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum Question {
    /// [`crate::Status`].
    Status,
    /// [`crate::explain::Why`].
    Why(WhyQuestion),
    /// [`crate::flows::Told`], a line each.
    Flows(FlowsQuestion),
}

/// Where the socket is, beside the CNI's.
pub fn path(cni_socket: &Path) -> PathBuf {
    cni_socket.with_file_name(SOCKET)
}

/// Answers until `cancel`.
pub async fn serve(dataplane: Arc<Dataplane>, listener: UnixListener, cancel: CancellationToken) {
    // A client that went away has had its answer or wants none.
    drop(listen::accept(listener, cancel, |stream| answer(dataplane.clone(), stream)).await);
}

async fn answer(dataplane: Arc<Dataplane>, stream: UnixStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(MAX_QUESTION));
    tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Question>(&line) {
        Ok(Question::Flows(question)) => return flows::answer(&dataplane, &question, read, write).await,
        // Loading and running programs takes its time.
        Ok(question) => {
            let dataplane = dataplane.clone();
            let replied = tokio::task::spawn_blocking(move || reply(&dataplane, question)).await;
            replied.unwrap_or_else(|_| Err("the question could not be answered; see the agent's log".into()))
        }
        Err(error) => Err(format!("the question cannot be read: {error}")),
    };
    let answer = match answer {
        Ok(result) => json!({"result": result}),
        Err(error) => json!({"error": error}),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await
}

fn reply(dataplane: &Dataplane, question: Question) -> Result<Value, String> {
    let value = match question {
        Question::Status => serde_json::to_value(dataplane.status()),
        Question::Why(packet) => serde_json::to_value(explain::why(dataplane, &packet)?),
        Question::Flows(_) => return Err("flows are answered as they come".into()),
    };
    value.map_err(|error| error.to_string())
}
