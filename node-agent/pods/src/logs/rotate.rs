//! Keeps container logs bounded: kubelet's `containerLogMaxSize` and `containerLogMaxFiles` defaults.

use std::io;
use std::path::{Path, PathBuf};

/// A log beyond that is rotated.
pub const MAX_SIZE: u64 = 10 << 20;
/// Files kept a container, the current one included.
const MAX_FILES: usize = 5;

pub fn is_due(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() >= MAX_SIZE)
}

/// Moves the log aside under a name that sorts by time and drops the oldest. The runtime must be told
/// to open a new one, or it goes on writing to the old; `undo` puts it back.
pub fn rotate(path: &Path, now: jiff::Timestamp) -> io::Result<PathBuf> {
    let stamp = now.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y%m%d-%H%M%S").to_string();
    let mut aside = path.as_os_str().to_owned();
    aside.push(".");
    aside.push(stamp);
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside)?;
    for old in excess(rotated(path)?) {
        std::fs::remove_file(old)?;
    }
    Ok(aside)
}

pub fn undo(path: &Path, aside: &Path) -> io::Result<()> {
    if path.exists() { Ok(()) } else { std::fs::rename(aside, path) }
}

fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// All but the newest files, one place left for the current log.
fn excess(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.sort();
    files.truncate(files.len().saturating_sub(MAX_FILES - 1));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for second in 0..8 {
            std::fs::write(&log, second.to_string()).unwrap();
            rotate(&log, jiff::Timestamp::from_second(second).unwrap()).unwrap();
        }
        let mut left: Vec<String> = rotated(&log).unwrap().iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
        left.sort();
        assert_eq!(left, ["4", "5", "6", "7"]);
        assert!(!log.exists());
    }

    #[test]
    fn undone_when_the_runtime_does_not_follow() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, "x").unwrap();
        let aside = rotate(&log, jiff::Timestamp::UNIX_EPOCH).unwrap();
        undo(&log, &aside).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "x");
        assert!(!is_due(&log));
    }
}
