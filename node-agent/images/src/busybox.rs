//! An image of one static busybox, with a link for each applet.

use std::{path::Path, process::Command};

use crate::{BUSYBOX, Entry, Error, Image};

/// The demo image, from a static busybox of the machine.
///
/// # Errors
/// [`Error::Read`] or [`Error::Applets`] if `program` is not a busybox that runs here.
pub fn busybox(program: &Path) -> Result<Image, Error> {
    let content = std::fs::read(program).map_err(|source| Error::Read { path: program.to_owned(), source })?;
    let applets = |reason: String| Error::Applets { path: program.to_owned(), reason };
    let output = Command::new(program).arg("--list-full").output().map_err(|error| applets(error.to_string()))?;
    if !output.status.success() {
        return Err(applets(output.status.to_string()));
    }
    Ok(image(content, &String::from_utf8_lossy(&output.stdout)))
}

/// `applets` is the output of `busybox --list-full`: one path a line, relative to the root.
fn image(program: Vec<u8>, applets: &str) -> Image {
    let directory = |path: &str, mode: u32| Entry::Directory { path: path.to_owned(), mode };
    let file = |path: &str, mode: u32, content: &[u8]| Entry::File { path: path.to_owned(), mode, content: content.to_vec() };
    let mut entries = vec![
        directory("bin", 0o755),
        directory("sbin", 0o755),
        directory("usr", 0o755),
        directory("usr/bin", 0o755),
        directory("usr/sbin", 0o755),
        directory("etc", 0o755),
        directory("root", 0o700),
        directory("tmp", 0o1777),
        directory("var", 0o755),
        directory("var/www", 0o755),
        file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        file("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n"),
        Entry::File { path: "bin/busybox".to_owned(), mode: 0o755, content: program },
    ];
    let mut paths: Vec<&str> = applets.lines().map(|line| line.trim().trim_start_matches('/')).collect();
    paths.retain(|path| !path.is_empty() && *path != "bin/busybox");
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        // `linuxrc` lies in the root, which exists in any image.
        entries.push(Entry::Symlink { path: path.to_owned(), target: "/bin/busybox".to_owned() });
    }
    Image {
        name: BUSYBOX.to_owned(),
        entries,
        entrypoint: Vec::new(),
        command: vec!["/bin/sh".to_owned()],
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_applet_is_a_link_to_the_program() {
        let image = image(b"ELF".to_vec(), "bin/busybox\nbin/ls\nusr/bin/wget\nbin/ls\n\n");
        let links: Vec<&str> = image
            .entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Symlink { path, target } if target == "/bin/busybox" => Some(path.as_str()),
                Entry::Symlink { .. } | Entry::File { .. } | Entry::Directory { .. } => None,
            })
            .collect();
        assert_eq!(links, ["bin/ls", "usr/bin/wget"]);
    }

    #[test]
    fn a_program_that_is_no_busybox_is_refused() {
        assert!(matches!(busybox(Path::new("/no/such/busybox")), Err(Error::Read { .. })));
        assert!(matches!(busybox(Path::new("/bin/false")), Err(Error::Applets { .. })));
    }
}
