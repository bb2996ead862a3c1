//! The network configuration containerd looks for. Its presence is what makes the node take pods.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::Error;

/// File name: sorts before other plugins' usual names.
const NAME: &str = "10-xebec.conflist";

/// Where it is in a directory.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// Writes it atomically.
pub fn write(dir: &Path, socket: &Path) -> Result<(), Error> {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "xebec",
        // What a runtime is to hand over of the pod's configuration, as `runtimeConfig`.
        "plugins": [{"type": "xebec-cni", "socket": socket, "capabilities": {"bandwidth": true}}],
    });
    let bytes = serde_json::to_vec_pretty(&list).map_err(|e| Error::io("encode", path(dir))(e.into()))?;
    crate::file::write(&path(dir), &bytes, 0o644)
}

/// Removes it.
pub fn remove(dir: &Path) -> Result<(), Error> {
    crate::file::remove(&path(dir))
}
