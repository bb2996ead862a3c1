//! Work inside another network namespace, on a thread of its own: the namespace is a property of the thread,
//! and one that entered a pod's namespace must never run anything else.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// Runs `f` on a fresh thread inside the namespace at `path`; the thread ends with it. Blocks the caller.
pub fn within<T: Send>(path: &Path, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("pod-netns".into()).spawn_scoped(scope, || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            f()
        })?;
        match thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread inside the namespace panicked")),
        }
    })
}

/// Whether two paths are the same namespace (device and inode of the nsfs file).
pub fn same(a: &Path, b: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (a, b) = (std::fs::metadata(a)?, std::fs::metadata(b)?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}
