//! One error type for the crate; each message says what to look at.

use std::path::PathBuf;

/// Why the dataplane could not start or could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot be.
    #[error("{0}")]
    Config(String),
    /// A file or directory could not be read, written or removed.
    #[error("{what} {path:?}: {source}")]
    Io {
        /// What was tried: "read", "write", "remove", ...
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The object, a program or a map is not usable.
    #[error(
        "cannot load {what}: {reason} (is the kernel 6.6 or later, with BTF, and does this process have CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN?)"
    )]
    Load {
        /// Which part.
        what: String,
        /// The kernel's or the library's word.
        reason: String,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {to}: {reason}")]
    Attach {
        /// Its name.
        program: String,
        /// Cgroup directory or device.
        to: String,
        /// Why not.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("cannot {what}: {reason}")]
    Map {
        /// What was tried.
        what: String,
        /// Why not; a full map says "Argument list too long" (E2BIG) or "No space left on device".
        reason: String,
    },
    /// The socket hooks are attached, but not where this process is.
    #[error(
        "the socket hooks attached to {cgroup:?} do not see this process's own sockets, so Services would not answer: the directory must be the root of the host's cgroup2 hierarchy, or above every pod and this agent"
    )]
    Hooks {
        /// Where they are attached.
        cgroup: PathBuf,
    },
    /// Devices, addresses or routes could not be read or changed.
    #[error("netlink: cannot {what}: {source}")]
    Netlink {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: names what was asked of netlink.
    pub fn netlink(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Netlink { what, source }
    }

    /// For `map_err`: names the step and the path.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}
