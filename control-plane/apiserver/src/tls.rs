//! TLS: the serving certificate (exchanged while running) and client certificates.
//!
//! A client certificate is never refused in the handshake: as upstream, a foreign one is answered with 401, so that
//! the client sees a `Status` instead of a broken connection.

use std::{io::BufReader, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        ClientHello, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use crate::{
    auth::UserInfo,
    error::{Error, Result},
    pki::Issued,
};

/// Decides who a client certificate is.
#[derive(Debug, Clone)]
pub struct ClientCertificates {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientCertificates {
    /// Trusts what `ca_pem` signed for client authentication.
    pub fn new(ca_pem: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for cert in certificates(ca_pem)? {
            roots.add(cert)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::Config(format!("client CA: {e}")))?;
        Ok(ClientCertificates { verifier })
    }

    /// The user a certificate chain names; the reason when it cannot be trusted.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<UserInfo, String> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Err("no certificate".into()) };
        self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map_err(|e| e.to_string())?;
        let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|e| e.to_string())?;
        let subject = cert.subject();
        let name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
        if name.is_empty() {
            return Err("the certificate has no common name".into());
        }
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_string).collect();
        Ok(UserInfo { name: name.to_string(), groups, ..UserInfo::default() })
    }
}

/// The serving certificate in use.
#[derive(Debug)]
pub struct Serving {
    current: RwLock<Arc<CertifiedKey>>,
}

impl Serving {
    pub fn new(issued: &Issued) -> Result<Arc<Self>> {
        Ok(Arc::new(Serving { current: RwLock::new(Arc::new(certified_key(issued)?)) }))
    }

    /// New connections get this certificate from now on.
    pub fn replace(&self, issued: &Issued) -> Result<()> {
        *self.current.write() = Arc::new(certified_key(issued)?);
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

/// What the listener hands to rustls: HTTP/2 and HTTP/1.1, an optional client certificate of any origin.
pub fn server_config(serving: Arc<Serving>, clients: &ClientCertificates) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AcceptAny(clients.verifier.clone())))
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts `ca_pem` and shows `identity`, for kubelets and extension servers.
pub fn client_config(ca_pem: &str, identity: Option<&Issued>) -> Result<rustls::ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(ca_pem)? {
        roots.add(cert)?;
    }
    let builder =
        rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?.with_root_certificates(roots);
    Ok(match identity {
        Some(issued) => builder.with_client_auth_cert(certificates(&issued.cert_pem)?, private_key(&issued.key_pem)?)?,
        None => builder.with_no_client_auth(),
    })
}

/// ring, named explicitly so that no process-wide default is needed.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified_key(issued: &Issued) -> Result<CertifiedKey> {
    let key = provider().key_provider.load_private_key(private_key(&issued.key_pem)?)?;
    Ok(CertifiedKey::new(certificates(&issued.cert_pem)?, key))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_reader_iter(BufReader::new(pem.as_bytes()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Error::Config(format!("certificate is no PEM: {e}")))
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::Config(format!("private key is no PEM: {e}")))
}

/// Checks that the client holds the key of the certificate it shows, not who signed it.
#[derive(Debug)]
struct AcceptAny(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AcceptAny {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
