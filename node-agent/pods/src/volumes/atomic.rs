//! Files that change all at once: the `..data` symlink protocol of ConfigMap, Secret, downward API
//! and projected volumes.
//!
//! Readers see `name -> ..data/name` and `..data -> ..<time>`; renaming `..data` swaps every file in
//! one step. A process that holds an old file open keeps reading it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, root when absent.
    pub uid: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Why a path from a volume's items cannot be used.
pub fn check_path(path: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("invalid path {path:?} in volume: {why}"));
    if path.is_empty() {
        return bad("empty");
    }
    if path.len() > 4096 {
        return bad("too long");
    }
    if path.starts_with("..") {
        return bad("starts with '..'");
    }
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) if part.len() <= 255 => {}
            Component::Normal(_) => return bad("a component is longer than 255 bytes"),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return bad("leaves the volume"),
        }
    }
    Ok(())
}

/// Brings `dir` to hold exactly `payload`, with group `group` when given. `Ok(false)` when it
/// already does and nothing was written.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&dir.join(current), payload, group)
    {
        link_visible(dir, payload)?;
        return Ok(false);
    }
    let stamp = new_stamp(dir)?;
    let fresh = dir.join(&stamp);
    if let Err(e) = fill(&fresh, payload, group).and_then(|()| swap(dir, &stamp)) {
        let _ = fs::remove_dir_all(&fresh);
        return Err(e);
    }
    link_visible(dir, payload)?;
    unlink_stale(dir, payload)?;
    if let Some(old) = current.filter(|old| old.components().count() == 1 && old.as_os_str() != stamp.as_str()) {
        fs::remove_dir_all(dir.join(old)).or_else(ignore_missing)?;
    }
    Ok(true)
}

/// A new directory `..<time>`, the name upstream's tests expect to see.
fn new_stamp(dir: &Path) -> io::Result<String> {
    loop {
        let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
        let stamp = format!("..{}.{:09}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
        match fs::DirBuilder::new().mode(0o755).create(dir.join(&stamp)) {
            Ok(()) => return Ok(stamp),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    }
}

fn fill(root: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    set_directory(root, group)?;
    for (path, file) in payload {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            make_directories(root, parent, group)?;
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(&file.data)?;
        if file.uid.is_some() || group.is_some() {
            std::os::unix::fs::fchown(&out, file.uid, group)?;
        }
        // After the chown, and past the umask.
        out.set_permissions(fs::Permissions::from_mode(final_mode(file.mode, group)))?;
    }
    Ok(())
}

fn final_mode(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o440 } else { mode }
}

fn make_directories(root: &Path, dir: &Path, group: Option<u32>) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = dir;
    while at != root && !at.exists() {
        missing.push(at.to_owned());
        match at.parent() {
            Some(parent) => at = parent,
            None => break,
        }
    }
    for dir in missing.iter().rev() {
        fs::create_dir(dir)?;
        set_directory(dir, group)?;
    }
    Ok(())
}

fn set_directory(dir: &Path, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        std::os::unix::fs::chown(dir, None, group)?;
        return fs::set_permissions(dir, fs::Permissions::from_mode(0o2755));
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn swap(dir: &Path, stamp: &str) -> io::Result<()> {
    let tmp = dir.join(DATA_TMP);
    fs::remove_file(&tmp).or_else(ignore_missing)?;
    std::os::unix::fs::symlink(stamp, &tmp)?;
    fs::rename(&tmp, dir.join(DATA))
}

fn holds(root: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    if collect(root, root, &mut found).is_err() || !found.iter().map(String::as_str).eq(payload_names(payload).iter().map(String::as_str)) {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let path = root.join(path);
        let Ok(meta) = fs::metadata(&path) else { return false };
        meta.len() == file.data.len() as u64
            && meta.mode() & 0o7777 == final_mode(file.mode, group)
            && file.uid.is_none_or(|uid| uid == meta.uid())
            && group.is_none_or(|gid| gid == meta.gid())
            && fs::read(&path).is_ok_and(|data| data == file.data)
    })
}

/// Paths as the file system has them, without `.` components.
fn payload_names(payload: &Payload) -> BTreeSet<String> {
    payload.keys().map(|p| Path::new(p).components().collect::<PathBuf>().to_string_lossy().into_owned()).collect()
}

fn collect(root: &Path, dir: &Path, out: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(root, &path, out)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            out.insert(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// First path components: these are what stands in the volume as links.
fn visible(payload: &Payload) -> BTreeSet<String> {
    let first = |p: &String| match Path::new(p).components().find(|c| matches!(c, Component::Normal(_))) {
        Some(Component::Normal(part)) => Some(part.to_string_lossy().into_owned()),
        Some(_) | None => None,
    };
    payload.keys().filter_map(first).collect()
}

fn link_visible(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in visible(payload) {
        let link = dir.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new(DATA).join(&name), &link)?;
        }
    }
    Ok(())
}

fn unlink_stale(dir: &Path, payload: &Payload) -> io::Result<()> {
    let keep = visible(payload);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !keep.contains(&name) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path()).or_else(ignore_missing)?;
        }
    }
    Ok(())
}

fn ignore_missing(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(p, d)| (p.to_string(), File { data: d.as_bytes().to_vec(), mode: 0o644, uid: None })).collect()
    }

    fn read(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    fn stamps(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir()).count()
    }

    #[test]
    fn writes_replaces_and_removes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/e/f", "2")]), None).unwrap());
        assert_eq!(read(dir.path(), "d/e/f").unwrap(), "2");
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/e/f", "2")]), None).unwrap(), "the same again writes nothing");
        let mut open = fs::File::open(dir.path().join("a")).unwrap();
        assert!(write(dir.path(), &payload(&[("a", "3"), ("g", "4")]), None).unwrap());
        assert_eq!((read(dir.path(), "a").unwrap(), read(dir.path(), "g").unwrap()), ("3".into(), "4".into()));
        assert!(fs::symlink_metadata(dir.path().join("d")).is_err(), "stale links go");
        assert_eq!(stamps(dir.path()), 1, "old data goes");
        let mut old = String::new();
        io::Read::read_to_string(&mut open, &mut old).unwrap();
        assert_eq!(old, "1");
    }

    #[test]
    fn modes_are_set_past_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = payload(&[("a", "1")]);
        files.get_mut("a").unwrap().mode = 0o666;
        write(dir.path(), &files, None).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().mode() & 0o777, 0o666);
        files.get_mut("a").unwrap().mode = 0o400;
        assert!(write(dir.path(), &files, None).unwrap(), "a changed mode is a change");
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().mode() & 0o777, 0o400);
    }

    #[test]
    fn refuses_paths_that_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "/etc/passwd", "../x", "a/../../x", "..x"] {
            assert!(write(dir.path(), &payload(&[(path, "1")]), None).is_err(), "{path}");
        }
    }

    #[test]
    fn an_interrupted_write_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1")]), None).unwrap();
        std::os::unix::fs::symlink("..gone", dir.path().join(DATA_TMP)).unwrap();
        fs::remove_file(dir.path().join("a")).unwrap();
        assert!(write(dir.path(), &payload(&[("a", "2")]), None).unwrap());
        assert_eq!(read(dir.path(), "a").unwrap(), "2");
    }

    proptest! {
        #[test]
        fn holds_what_was_written_last(
            steps in proptest::collection::vec(proptest::collection::btree_map("[a-d](/[e-g])?", "[a-z]{0,5}", 0..5), 1..5),
        ) {
            let dir = tempfile::tempdir().unwrap();
            for step in steps {
                // A name cannot be a file and a directory at once.
                let files: Vec<(&str, &str)> = step.iter()
                    .filter(|(p, _)| p.contains('/') || !step.keys().any(|q| q.starts_with(&format!("{p}/"))))
                    .map(|(p, d)| (p.as_str(), d.as_str())).collect();
                write(dir.path(), &payload(&files), None).unwrap();
                for (path, data) in &files {
                    prop_assert_eq!(read(dir.path(), path), Some((*data).to_owned()));
                }
                let links = fs::read_dir(dir.path()).unwrap().filter(|e| !e.as_ref().unwrap().file_name().to_string_lossy().starts_with("..")).count();
                prop_assert_eq!(links, visible(&payload(&files)).len());
            }
        }
    }
}
