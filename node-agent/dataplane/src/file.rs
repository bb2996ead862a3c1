//! Files of the state directory: private, replaced atomically.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;

use crate::Error;

/// Writes a JSON document, mode 0600, through a temporary file beside it; readers see the old or the new one.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|e| Error::io("encode", path)(std::io::Error::other(e)))?;
    write(path, &bytes, 0o600)
}

/// The same for what is worth nothing once the machine has started again: nobody waits for the disk.
pub fn write_json_of_this_boot(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|e| Error::io("encode", path)(std::io::Error::other(e)))?;
    replace(path, &bytes, 0o600, false)
}

/// Writes a file atomically; its directory is made if it is missing.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    replace(path, bytes, mode, true)
}

fn replace(path: &Path, bytes: &[u8], mode: u32, lasting: bool) -> Result<(), Error> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(temporary)?;
        file.write_all(bytes)?;
        if lasting { file.sync_data() } else { Ok(()) }
    };
    write().map_err(Error::io("write", temporary))?;
    std::fs::rename(temporary, path).map_err(Error::io("write", path))
}

/// Removes a file; one that is not there is removed already.
pub fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        Ok(()) | Err(_) => Ok(()),
    }
}
