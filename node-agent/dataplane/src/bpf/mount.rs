//! The BPF filesystem that pins live on.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::statfs;

use crate::Error;

/// `BPF_FS_MAGIC` of the kernel's magic.h.
const MAGIC: i64 = 0xcafe_4a11;

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type().0 == MAGIC)
}

/// Makes the directory, on a bpffs; what had to be mounted is noted in `record` for teardown.
pub fn ensure(pin_dir: &Path, record: &Path) -> Result<(), Error> {
    let existing = pin_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing) {
        // Below /sys nothing can be made before the bpffs is mounted where the kernel has a place for it.
        let place = Path::new("/sys/fs/bpf");
        let at = if pin_dir.starts_with(place) && place.exists() { place.to_owned() } else { pin_dir.to_owned() };
        std::fs::create_dir_all(&at).map_err(Error::io("create", &at))?;
        crate::file::write_json(record, &at)?;
        nix::mount::mount(Some("bpf"), &at, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, Some("mode=0700"))
            .map_err(|e| Error::io("mount a bpffs on", &at)(e.into()))?;
    }
    std::fs::create_dir_all(pin_dir).map_err(Error::io("create", pin_dir))
}

/// Removes every pin and the directory; unmounts what [`ensure`] mounted.
pub fn remove(pin_dir: &Path, record: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    // A directory is on a bpffs or it holds no pins; never delete files of another filesystem. Only our own
    // directories: the root of a bpffs has files of the kernel's.
    if is_bpffs(pin_dir) {
        for entry in std::fs::read_dir(pin_dir).into_iter().flatten().flatten() {
            if entry.path().is_dir()
                && let Err(e) = remove_tree(&entry.path())
            {
                errors.push(Error::io("remove", entry.path())(e));
            }
        }
        if !is_mount_point(pin_dir)
            && let Err(e) = std::fs::remove_dir(pin_dir)
        {
            errors.push(Error::io("remove", pin_dir)(e));
        }
    }
    if let Ok(bytes) = std::fs::read(record)
        && let Ok(at) = serde_json::from_slice::<PathBuf>(&bytes)
    {
        if is_bpffs(&at) {
            match nix::mount::umount2(&at, MntFlags::empty()) {
                Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
                // Someone else has pins there too: it is theirs now.
                Err(nix::errno::Errno::EBUSY) => {}
                Err(e) => errors.push(Error::io("unmount", &at)(e.into())),
            }
        }
        if at == pin_dir {
            let _ = std::fs::remove_dir(pin_dir);
        }
        if let Err(e) = crate::file::remove(record) {
            errors.push(e);
        }
    }
    errors
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_tree(&entry.path())? } else { std::fs::remove_file(entry.path())? }
    }
    std::fs::remove_dir(dir)
}

fn is_mount_point(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev());
    match (device(dir), device(&dir.join(".."))) {
        (Ok(own), Ok(parent)) => own != parent,
        _ => false,
    }
}
