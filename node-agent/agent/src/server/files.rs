//! `/logs/`: the node's own log files, as kubelet's file server shows them.

use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::{Response, content, text};

const ROOT: &str = "/var/log";

/// A directory's listing or a file's bytes. Nothing outside `/var/log` is shown, wherever links lead.
pub(super) async fn serve(path: &str) -> Response {
    let Some(path) = resolve(Path::new(ROOT), path) else { return text(404, "404 page not found\n") };
    if path.is_dir() {
        return match list(&path) {
            Ok(html) => content(200, "text/html; charset=utf-8", super::full(html)),
            Err(error) => text(500, error.to_string()),
        };
    }
    if !path.is_file() {
        return text(404, "404 page not found\n");
    }
    match tokio::fs::File::open(&path).await {
        Ok(file) => {
            let frames = ReaderStream::new(file).map_ok(Frame::data);
            content(200, "text/plain; charset=utf-8", StreamBody::new(frames).boxed_unsync())
        }
        Err(error) => text(500, error.to_string()),
    }
}

fn resolve(root: &Path, path: &str) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    let found = root.join(path.trim_start_matches('/')).canonicalize().ok()?;
    found.starts_with(&root).then_some(found)
}

fn list(dir: &Path) -> std::io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let link = |name: &String| {
        let target = percent_encoding::utf8_percent_encode(name.trim_end_matches('/'), percent_encoding::NON_ALPHANUMERIC);
        let slash = if name.ends_with('/') { "/" } else { "" };
        format!("<a href=\"{target}{slash}\">{}</a>\n", escape(name))
    };
    Ok(format!("<!doctype html>\n<pre>\n{}</pre>\n", names.iter().map(link).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_root_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("a.log"), "a").unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        assert!(resolve(&root, "a.log").is_some());
        assert!(resolve(&root, "/a.log").is_some());
        for outside in ["../secret", "link", "../log/../secret", "missing"] {
            assert_eq!(resolve(&root, outside), None, "{outside}");
        }
    }

    #[test]
    fn names_are_escaped_in_listings() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("<b>&"), "").unwrap();
        std::fs::create_dir(dir.path().join("pods")).unwrap();
        let html = list(dir.path()).unwrap();
        assert!(html.contains("&lt;b&gt;&amp;") && !html.contains("<b>"), "{html}");
        assert!(html.contains("<a href=\"pods/\">pods/</a>"), "{html}");
    }
}
