use std::{io, path::PathBuf};

/// What could not be done to the host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or cgroup.
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// A mount.
    #[error("cannot {what} {path}: {source}")]
    Mount { what: &'static str, path: PathBuf, source: nix::Error },
    /// A program.
    #[error("cannot start {program}: {source}")]
    Start { program: String, source: io::Error },
    /// A part of the node.
    #[error("{part} {how}; the end of {log}:\n{tail}")]
    Part { part: String, how: &'static str, log: PathBuf, tail: String },
    /// Processes that survive SIGKILL wait in the kernel.
    #[error("processes {pids:?} in cgroup {cgroup} do not end; look at /proc/PID/stack for what they wait for")]
    Unkillable { cgroup: String, pids: Vec<i32> },
}

impl Error {
    /// For `map_err`: names the step and the path.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}
