//! Writing kubeconfig files.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{error::Result, pki};

/// Writes a kubeconfig (mode 0600) whose only context reaches `server_url` with the given client certificate and key.
/// All PEM texts are embedded.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, server_url: &str, ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<()> {
    pki::write_private(path, render(server_url, ca_pem, cert_pem, key_pem).as_bytes())
}

/// The text [`write`] writes.
pub fn render(server_url: &str, ca_pem: &str, cert_pem: &str, key_pem: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "xebec", "cluster": {"server": server_url, "certificate-authority-data": STANDARD.encode(ca_pem)}}],
        "users": [{"name": "xebec", "user": {"client-certificate-data": STANDARD.encode(cert_pem), "client-key-data": STANDARD.encode(key_pem)}}],
        "contexts": [{"name": "xebec", "context": {"cluster": "xebec", "user": "xebec"}}],
        "current-context": "xebec",
    });
    serde_yaml_ng::to_string(&config).expect("a JSON value is always valid YAML")
}
