use std::path::PathBuf;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program the image is made of cannot be read.
    #[error("cannot read {path}: {source}; install busybox-static or name another static busybox")]
    Read { path: PathBuf, source: std::io::Error },
    /// The program does not list its applets.
    #[error("`{path} --list-full` failed: {reason}; is it a busybox?")]
    Applets { path: PathBuf, reason: String },
    /// The archive cannot be written.
    #[error("cannot write the image archive: {0}")]
    Write(#[from] std::io::Error),
}
