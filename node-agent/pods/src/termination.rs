//! What a container says about its own end: `terminationMessagePath` and `terminationMessagePolicy`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use k8s_cri::v1::ContainerStatus;

use crate::labels;
use crate::logs::entry;

/// Bytes kept of a termination message file (kubelet's `MaxContainerTerminationMessageLength`).
const MAX_MESSAGE: u64 = 4096;
/// With `FallbackToLogsOnError`: the log's last lines, within these bounds.
const MAX_LOG_BYTES: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// The message of an exited container: its own file first, the end of its log when the policy
/// says so and it failed, else what the runtime said.
pub fn message(status: &ContainerStatus) -> String {
    let path = status.annotations.get(labels::TERMINATION_MESSAGE_PATH).map(String::as_str).unwrap_or("");
    let fallback =
        status.annotations.get(labels::TERMINATION_MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError") && status.exit_code != 0;
    let from_file = status
        .mounts
        .iter()
        .find(|m| !path.is_empty() && m.container_path == path)
        .and_then(|m| tail(Path::new(&m.host_path), MAX_MESSAGE))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .filter(|text| !text.is_empty());
    match from_file {
        Some(text) => text,
        None if fallback => log_tail(Path::new(&status.log_path)).unwrap_or_default(),
        None => status.message.clone(),
    }
}

fn tail(path: &Path, limit: u64) -> Option<Vec<u8>> {
    // The container may have left anything there: only a regular file is read, never a pipe.
    let metadata = std::fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() {
        return None;
    }
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(limit))).ok()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn log_tail(path: &Path) -> Option<String> {
    // CRI's prefix takes about 45 bytes a line.
    let raw = tail(path, MAX_LOG_BYTES * 8)?;
    let lines: Vec<&[u8]> = raw.split_inclusive(|b| *b == b'\n').filter_map(|l| entry(l).ok().map(|e| e.content)).collect();
    let text = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].concat();
    let start = text.len().saturating_sub(MAX_LOG_BYTES as usize);
    Some(String::from_utf8_lossy(&text[start..]).into_owned())
}
