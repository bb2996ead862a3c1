//! Kernel settings: changed only where they differ, the value found first is kept on disk for teardown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;

/// Writes settings under a root (`/proc/sys`) and remembers what was there before.
pub struct Sysctls {
    root: PathBuf,
    record: PathBuf,
}

impl Sysctls {
    /// Originals are kept in `state_dir/sysctls.json`.
    pub fn new(state_dir: &Path) -> Sysctls {
        Sysctls { root: "/proc/sys".into(), record: state_dir.join("sysctls.json") }
    }

    fn originals(&self) -> Result<BTreeMap<String, String>, Error> {
        match std::fs::read(&self.record) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::io("read", &self.record)(std::io::Error::new(std::io::ErrorKind::InvalidData, e))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(Error::io("read", &self.record)(e)),
        }
    }

    /// Sets `name` (slashes, below the root) to `value`. The original is on disk before the change is made.
    pub fn set(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = self.root.join(name);
        let now = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        if now.trim() == value {
            return Ok(());
        }
        let mut originals = self.originals()?;
        if !originals.contains_key(name) {
            originals.insert(name.to_owned(), now.trim().to_owned());
            crate::file::write_json(&self.record, &originals)?;
        }
        std::fs::write(&path, value).map_err(Error::io("write", &path))
    }

    /// Writes every original back; what belonged to a device that is gone has gone with it.
    pub fn restore(&self) -> Vec<Error> {
        let originals = match self.originals() {
            Ok(originals) => originals,
            Err(e) => return vec![e],
        };
        let mut errors = Vec::new();
        for (name, value) in &originals {
            let path = self.root.join(name);
            match std::fs::write(&path, value) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => errors.push(Error::io("restore", &path)(e)),
                Ok(()) | Err(_) => {}
            }
        }
        if errors.is_empty()
            && let Err(e) = crate::file::remove(&self.record)
        {
            errors.push(e);
        }
        errors
    }
}

/// Sets a setting of the calling thread's network namespace without remembering: for devices of our own.
/// A setting the kernel does not have (IPv6 disabled) is no error.
pub fn set_own(name: &str, value: &str) -> std::io::Result<()> {
    match std::fs::write(Path::new("/proc/sys").join(name), value) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_found_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("sys");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("forward"), "0\n").unwrap();
        std::fs::write(root.join("same"), "1\n").unwrap();
        let sysctls = Sysctls { root: root.clone(), record: dir.path().join("state/sysctls.json") };
        sysctls.set("forward", "1").unwrap();
        sysctls.set("same", "1").unwrap();
        // Someone else changes it, we change it again: the original stays the first one.
        std::fs::write(root.join("forward"), "2").unwrap();
        sysctls.set("forward", "1").unwrap();
        assert_eq!(sysctls.originals().unwrap(), BTreeMap::from([("forward".into(), "0".into())]));
        assert!(sysctls.restore().is_empty());
        assert_eq!(std::fs::read_to_string(root.join("forward")).unwrap(), "0");
        assert!(!sysctls.record.exists());
        assert!(sysctls.restore().is_empty());
        assert!(matches!(sysctls.set("missing", "1"), Err(Error::Io { .. })));
    }
}
