//! `subPath`: a part of a volume, bound so that the pod cannot redirect it.
//!
//! The pod may change the volume while its path is resolved, a symlink to `/etc` included. So the
//! kernel resolves it beneath the volume (`openat2`, `RESOLVE_BENEATH`), and what was opened is
//! bound by its descriptor, not by its name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat, mkdirat};

use super::mounts;

/// Binds `volume/sub_path` at `target` and returns `target`. Makes the directory when it is missing.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> io::Result<PathBuf> {
    let root: OwnedFd = File::open(volume)?.into();
    let opened = match open_beneath(&root, Path::new(sub_path)) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => make_beneath(&root, volume, sub_path)?,
        Err(e) => return Err(e),
    };
    if mounts::is_mount_point(target)? {
        nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH)?;
    }
    let is_dir = nix::sys::stat::SFlag::from_bits_truncate(fstat(opened.as_fd())?.st_mode).contains(nix::sys::stat::SFlag::S_IFDIR);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if is_dir {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        File::create(target)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    mounts::bind(&source, target)?;
    Ok(target.to_owned())
}

fn open_beneath(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root.as_fd(), path, how).map_err(|e| match e {
        nix::Error::EXDEV => io::Error::other(format!("subPath {path:?} leaves its volume")),
        e => e.into(),
    })
}

/// One directory at a time, with the volume's own mode.
fn make_beneath(root: &OwnedFd, volume: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let mode = std::fs::metadata(volume)?.permissions().mode() & 0o7777;
    let mut walked = PathBuf::new();
    for component in Path::new(sub_path).components() {
        let Component::Normal(part) = component else {
            return Err(io::Error::other(format!("subPath {sub_path:?} leaves its volume")));
        };
        let parent = if walked.as_os_str().is_empty() { root.try_clone()? } else { open_beneath(root, &walked)? };
        match mkdirat(parent.as_fd(), Path::new(part), Mode::from_bits_truncate(mode)) {
            Ok(()) => {
                let made = open_beneath(&parent, Path::new(part))?;
                // mkdirat obeys the umask, the volume's mode must not.
                let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
            Err(nix::Error::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        walked.push(part);
    }
    open_beneath(root, &walked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_volume_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("link")).unwrap();
        std::os::unix::fs::symlink("inner", volume.join("good")).unwrap();
        std::fs::create_dir(volume.join("inner")).unwrap();
        let root: OwnedFd = File::open(&volume).unwrap().into();
        assert!(open_beneath(&root, Path::new("link")).is_err());
        assert!(open_beneath(&root, Path::new("../outside")).is_err());
        assert!(open_beneath(&root, Path::new("/etc")).is_err());
        assert!(open_beneath(&root, Path::new("good")).is_ok());
        assert!(make_beneath(&root, &volume, "link/x").is_err());
        make_beneath(&root, &volume, "a/b").unwrap();
        assert!(volume.join("a/b").is_dir());
    }
}
