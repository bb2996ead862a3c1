//! Arguments and answers of the calls behind the kubelet HTTPS API.

use bytes::Bytes;
use futures::stream::BoxStream;

/// `GET /containerLogs/{namespace}/{pod}/{container}`, the query parameters of `PodLogOptions`.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Go on with new lines until the container ends.
    pub follow: bool,
    /// The log of the container's previous instance.
    pub previous: bool,
    /// Prefix each line with its RFC 3339 time.
    pub timestamps: bool,
    /// Start that many lines before the end.
    pub tail_lines: Option<u64>,
    /// Stop after that many bytes.
    pub limit_bytes: Option<u64>,
    /// Only lines of the last that many seconds.
    pub since_seconds: Option<i64>,
    /// Only lines from this instant on; ignored when `since_seconds` is set.
    pub since_time: Option<jiff::Timestamp>,
    /// `Stdout`, `Stderr`, or both with `All` and `None`.
    pub stream: Option<String>,
}

/// Log bytes in order; an error ends the stream.
pub type LogStream = BoxStream<'static, std::io::Result<Bytes>>;

/// The container (or with `container: None` the pod's default one) a streaming call goes to.
#[derive(Clone, Debug)]
pub struct StreamTarget {
    pub namespace: String,
    pub pod: String,
    /// When given it must match, so that a recreated pod of the same name is not hit by accident.
    pub uid: Option<String>,
    pub container: Option<String>,
}

/// Streams and command of an exec or attach.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// Ignored by attach.
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What a command run to its end left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}
