//! The image of xebec itself, for clusters that run it as a DaemonSet.

use std::path::{Path, PathBuf};

use crate::{Entry, Error, Image, XEBEC};

/// The program and `xebec-cni` beside it, on an otherwise empty file system. `libraries` are what a program that is not static
/// needs; they keep their paths.
///
/// # Errors
/// [`Error::Read`] if a file cannot be read.
pub fn xebec(program: &Path, cni: &Path, libraries: &[PathBuf]) -> Result<Image, Error> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source });
    let directory = |path: &str, mode: u32| Entry::Directory { path: path.to_owned(), mode };
    // Mount points of the DaemonSet, which runs with a read-only root; authorities can be mounted at the usual place.
    let mut entries = vec![
        directory("etc", 0o755),
        directory("etc/ssl", 0o755),
        directory("etc/ssl/certs", 0o755),
        directory("proc", 0o555),
        directory("sys", 0o555),
        directory("run", 0o755),
        directory("tmp", 0o1777),
        directory("var", 0o755),
        Entry::Symlink { path: "var/run".to_owned(), target: "/run".to_owned() },
        directory("usr", 0o755),
        directory("usr/local", 0o755),
        directory("usr/local/bin", 0o755),
    ];
    for (path, file) in [("usr/local/bin/xebec", program), ("usr/local/bin/xebec-cni", cni)] {
        entries.push(Entry::File { path: path.to_owned(), mode: 0o755, content: read(file)? });
    }
    for library in libraries {
        let path = library.strip_prefix("/").unwrap_or(library).display().to_string();
        entries.push(Entry::File { path, mode: 0o755, content: read(library)? });
    }
    Ok(Image {
        name: XEBEC.to_owned(),
        entries,
        entrypoint: vec!["/usr/local/bin/xebec".to_owned()],
        command: Vec::new(),
        env: vec!["PATH=/usr/local/bin".to_owned()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_lie_beside_each_other_and_the_same_files_give_the_same_bytes() {
        let dir = std::env::temp_dir().join(format!("xebec-image-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, content) in [("a", "one"), ("b", "two"), ("c", "three")] {
            std::fs::write(dir.join(name), content).unwrap();
        }
        let image = xebec(&dir.join("a"), &dir.join("b"), &[dir.join("c")]);
        let again = xebec(&dir.join("a"), &dir.join("b"), &[dir.join("c")]);
        assert!(matches!(xebec(&dir.join("missing"), &dir.join("b"), &[]), Err(Error::Read { .. })));
        std::fs::remove_dir_all(&dir).unwrap();
        let content = |image: &Image, end: &str| {
            image.entries.iter().find_map(|entry| match entry {
                Entry::File { path, content, .. } if path.ends_with(end) => Some(content.clone()),
                _ => None,
            })
        };
        let (image, again) = (image.unwrap(), again.unwrap());
        assert_eq!(content(&image, "bin/xebec").as_deref(), Some(&b"one"[..]));
        assert_eq!(content(&image, "bin/xebec-cni").as_deref(), Some(&b"two"[..]));
        assert_eq!(content(&image, "/c").as_deref(), Some(&b"three"[..]));
        let (mut first, mut second) = (Vec::new(), Vec::new());
        image.write(&mut first).unwrap();
        again.write(&mut second).unwrap();
        assert_eq!(first, second);
    }
}
