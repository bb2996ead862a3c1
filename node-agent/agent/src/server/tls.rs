//! The serving certificate, and whose clients are trusted.

use std::{path::Path, sync::Arc};

use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{Config, Error};

/// Client certificates are optional in the handshake: a caller may have a token instead, and one with neither gets a 401.
pub(super) async fn server_config(config: &Config) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in client_cas(config).await? {
        roots.add(certificate)?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::Config(format!("client CA of the kubelet API: {error}")))?;
    if !config.tls_cert.exists() && !config.tls_key.exists() {
        self_signed(config)?;
    }
    let chain = CertificateDer::pem_file_iter(&config.tls_cert)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(unusable(&config.tls_cert))?;
    let key = PrivateKeyDer::from_pem_file(&config.tls_key).map_err(unusable(&config.tls_key))?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    // Upgrades to SPDY and WebSocket start from HTTP/1.1.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

async fn client_cas(config: &Config) -> Result<Vec<CertificateDer<'static>>, Error> {
    if let Some(path) = &config.client_ca {
        return CertificateDer::pem_file_iter(path)
            .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
            .map_err(unusable(path));
    }
    let cas = config.kube_config().await?.root_cert.unwrap_or_default();
    if cas.is_empty() {
        return Err(Error::Config("the kubeconfig names no certificate authority; name one for clients of the kubelet API".to_owned()));
    }
    Ok(cas.into_iter().map(CertificateDer::from).collect())
}

fn unusable<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |error| Error::Certificate { path, reason: error.to_string() }
}

/// What kubelet does without a certificate: one of its own that nobody can verify.
fn self_signed(config: &Config) -> Result<(), Error> {
    tracing::warn!(path = %config.tls_cert.display(), "no serving certificate for the kubelet API: making one that signs itself");
    let mut names = vec![config.node_name.clone()];
    names.extend(config.node_ips.iter().map(ToString::to_string));
    let made = rcgen::generate_simple_self_signed(names).map_err(unusable(&config.tls_cert))?;
    write_private(&config.tls_cert, made.cert.pem().as_bytes())?;
    write_private(&config.tls_key, made.signing_key.serialize_pem().as_bytes())
}

/// Mode 0600 from the first byte on.
fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(Error::io("write", path))
}
