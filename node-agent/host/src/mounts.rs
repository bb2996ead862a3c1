//! Mounts below a directory.

use std::{
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Error;

/// Unmounts everything below `dir`, the last mounted first. What `dir` itself is a mount of stays: it may be a disk the
/// operator has put there.
///
/// # Errors
/// The first mount that stays.
pub fn unmount_below(dir: &Path) -> Result<(), Error> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read", "/proc/self/mountinfo"))?;
    for path in below(&text, dir).into_iter().rev() {
        // Detached: a file that is still open somewhere must not keep the node from going away.
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Gone together with its parent.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(source) => return Err(Error::Mount { what: "unmount", path, source }),
        }
    }
    Ok(())
}

/// Mount points below `dir`, in the order they were mounted.
fn below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).filter(|path| path != dir && path.starts_with(dir)).collect()
}

/// The kernel writes blanks and backslashes in paths as octal.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (byte, octal) {
            (b'\\', Some(value)) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Whether overlayfs can have its layers in `dir`, found by mounting one.
pub fn overlay_works(dir: &Path) -> bool {
    let probe = dir.join("overlay-probe");
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| probe.join(name));
    let made = [&lower, &upper, &work, &merged].iter().all(|dir| fs::create_dir_all(dir).is_ok());
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let works = made && mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).is_ok();
    if works {
        let _ = umount2(&merged, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(&probe);
    works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_is_found() {
        let text = "22 1 0:5 / /run/a rw - tmpfs t rw\n23 22 0:6 / /run/a/b\\040c rw - tmpfs t rw\n24 1 0:7 / /run/ab rw - tmpfs t rw\n";
        assert_eq!(below(text, Path::new("/run/a")), [PathBuf::from("/run/a/b c")]);
    }

    #[test]
    fn escapes_are_octal() {
        assert_eq!(unescape("/a\\134b\\011"), PathBuf::from("/a\\b\t"));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }
}
