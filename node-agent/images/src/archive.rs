//! OCI image layouts as tar archives (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>).
//!
//! The same image gives the same bytes: times are zero, owners root, order as given.

use std::io::{self, Write};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Something in an image's file system. Paths are relative to its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory { path: String, mode: u32 },
    File { path: String, mode: u32, content: Vec<u8> },
    Symlink { path: String, target: String },
}

/// An image of one layer for this machine's architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Full reference with a tag, which is the name it gets on import.
    pub name: String,
    pub entries: Vec<Entry>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
}

impl Image {
    /// Writes the image as an OCI archive.
    ///
    /// # Errors
    /// Whatever `out` fails with.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let layer = layer(&self.entries)?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": self.env, "Entrypoint": self.entrypoint, "Cmd": self.command, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
            "history": [{"created_by": "xebec"}],
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        })
        .to_string();
        let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        named["annotations"] = json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        named["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [named]});

        let mut archive = tar::Builder::new(out);
        let mut add = |path: &str, content: &[u8]| append(&mut archive, path, tar::EntryType::Regular, 0o644, content);
        add("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
        add("index.json", index.to_string().as_bytes())?;
        for blob in [config.as_bytes(), manifest.as_bytes(), &layer] {
            add(&format!("blobs/{}", digest(blob).replace(':', "/")), blob)?;
        }
        archive.finish()
    }
}

fn layer(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for entry in entries {
        match entry {
            Entry::Directory { path, mode } => append(&mut layer, path, tar::EntryType::Directory, *mode, &[])?,
            Entry::File { path, mode, content } => append(&mut layer, path, tar::EntryType::Regular, *mode, content)?,
            Entry::Symlink { path, target } => layer.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target)?,
        }
    }
    layer.into_inner()
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode, content.len() as u64), path, content)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// This machine's architecture as the OCI specification spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    fn blobs(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(entry.path().unwrap().display().to_string(), content);
        }
        found
    }

    #[test]
    fn every_descriptor_leads_to_its_blob() {
        let mut archive = Vec::new();
        crate::pause().write(&mut archive).unwrap();
        let files = blobs(&archive);
        let blob = |descriptor: &Value| {
            let content = &files[&format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))];
            assert_eq!(descriptor["size"], content.len());
            assert_eq!(descriptor["digest"], digest(content));
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], crate::PAUSE);
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        assert_eq!(blobs(&layer)["pause"], crate::PAUSE_PROGRAM);
    }

    #[test]
    fn the_same_image_gives_the_same_bytes() {
        let write = || {
            let mut out = Vec::new();
            crate::pause().write(&mut out).unwrap();
            out
        };
        assert_eq!(write(), write());
    }

    #[test]
    fn modes_and_links_survive() {
        let entries = [
            Entry::Directory { path: "tmp".to_owned(), mode: 0o1777 },
            Entry::Symlink { path: "bin/ls".to_owned(), target: "/bin/busybox".to_owned() },
        ];
        let layer = layer(&entries).unwrap();
        let mut archive = tar::Archive::new(&layer[..]);
        let headers: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().header().clone()).collect();
        assert_eq!(headers[0].mode().unwrap(), 0o1777);
        assert_eq!(headers[1].link_name().unwrap().unwrap().to_str(), Some("/bin/busybox"));
    }
}
