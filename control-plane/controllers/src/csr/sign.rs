//! What a certificate request says, and the certificate it gets.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Signers that use the cluster CA.
pub const SIGNERS: [&str; 4] = [
    "kubernetes.io/kube-apiserver-client",
    "kubernetes.io/kube-apiserver-client-kubelet",
    "kubernetes.io/kubelet-serving",
    "kubernetes.io/legacy-unknown",
];

/// Longest validity of a certificate (--cluster-signing-duration).
const LIMIT_SECONDS: i64 = 365 * 24 * 3600;
/// Clocks of others may be behind.
const BACKDATE_SECONDS: i64 = 300;

/// Why a request cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not a PEM request, or its signature is wrong.
    #[error("the request is not a valid PKCS#10 certificate request: {0}")]
    Request(String),
    /// Usages or subject that the signer does not allow.
    #[error("{0}")]
    NotAllowed(String),
    /// The CA's key or certificate.
    #[error("the cluster CA cannot sign: {0}")]
    Ca(#[from] rcgen::Error),
}

/// Signs with the cluster CA.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// From PEM.
    ///
    /// # Errors
    /// When key or certificate cannot be read.
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Self, SignError> {
        let key = KeyPair::from_pem(key_pem)?;
        Ok(Signer { issuer: Issuer::from_ca_cert_pem(cert_pem, key)? })
    }

    /// The certificate in PEM.
    ///
    /// # Errors
    /// When the request is malformed or asks for what its signer does not give.
    pub fn sign(&self, spec: &CertificateSigningRequestSpec) -> Result<String, SignError> {
        let der = verified(&spec.request.0)?;
        let usages = spec.usages.as_deref().unwrap_or_default();
        check(&spec.signer_name, &der, usages)?;
        let mut csr = CertificateSigningRequestParams::from_der(&der.into())?;
        let now = k8s_openapi::jiff::Timestamp::now().as_second();
        let asked = spec.expiration_seconds.map_or(LIMIT_SECONDS, i64::from).clamp(600, LIMIT_SECONDS);
        let at = |second: i64| OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        csr.params.not_before = at(now - BACKDATE_SECONDS);
        csr.params.not_after = at(now + asked);
        csr.params.is_ca = IsCa::ExplicitNoCa;
        csr.params.use_authority_key_identifier_extension = true;
        csr.params.key_usages = usages.iter().filter_map(|u| key_usage(u)).collect();
        csr.params.extended_key_usages = usages.iter().filter_map(|u| extended_usage(u)).collect();
        Ok(csr.signed_by(&self.issuer)?.pem())
    }
}

fn key_usage(name: &str) -> Option<KeyUsagePurpose> {
    match name {
        "digital signature" | "signing" => Some(KeyUsagePurpose::DigitalSignature),
        "content commitment" => Some(KeyUsagePurpose::ContentCommitment),
        "key encipherment" => Some(KeyUsagePurpose::KeyEncipherment),
        "key agreement" => Some(KeyUsagePurpose::KeyAgreement),
        "data encipherment" => Some(KeyUsagePurpose::DataEncipherment),
        _ => None,
    }
}

fn extended_usage(name: &str) -> Option<ExtendedKeyUsagePurpose> {
    match name {
        "client auth" => Some(ExtendedKeyUsagePurpose::ClientAuth),
        "server auth" => Some(ExtendedKeyUsagePurpose::ServerAuth),
        "code signing" => Some(ExtendedKeyUsagePurpose::CodeSigning),
        "email protection" => Some(ExtendedKeyUsagePurpose::EmailProtection),
        "timestamping" => Some(ExtendedKeyUsagePurpose::TimeStamping),
        "ocsp signing" => Some(ExtendedKeyUsagePurpose::OcspSigning),
        _ => None,
    }
}

/// The DER of a PEM request whose own signature is right.
fn verified(pem: &[u8]) -> Result<Vec<u8>, SignError> {
    let bad = |e: String| SignError::Request(e);
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| bad(e.to_string()))?;
    let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|e| bad(e.to_string()))?;
    request.verify_signature().map_err(|e| bad(e.to_string()))?;
    Ok(block.contents)
}

/// Common name and organizations.
fn subject(der: &[u8]) -> Option<(String, Vec<String>, bool)> {
    let (_, request) = X509CertificationRequest::from_der(der).ok()?;
    let subject = &request.certification_request_info.subject;
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
    let alternative = request
        .requested_extensions()
        .into_iter()
        .flatten()
        .any(|e| matches!(e, x509_parser::extensions::ParsedExtension::SubjectAlternativeName(n) if !n.general_names.is_empty()));
    Some((name, organizations, alternative))
}

fn usages_are(usages: &[String], required: &str) -> bool {
    let allowed = ["digital signature", "key encipherment", required];
    usages.iter().all(|u| allowed.contains(&u.as_str()))
        && usages.iter().any(|u| u == required)
        && usages.iter().any(|u| u == "digital signature")
}

fn is_node(subject: &(String, Vec<String>, bool)) -> bool {
    subject.0.starts_with("system:node:") && subject.1 == ["system:nodes"]
}

/// The node's user name if the request is for a kubelet's client certificate.
pub fn kubelet_client(pem: &[u8], usages: &[String]) -> Option<String> {
    let subject = subject(&verified(pem).ok()?)?;
    (is_node(&subject) && !subject.2 && usages_are(usages, "client auth")).then_some(subject.0)
}

fn check(signer: &str, der: &[u8], usages: &[String]) -> Result<(), SignError> {
    let refuse = |text: &str| Err(SignError::NotAllowed(text.to_owned()));
    let subject = subject(der);
    let node = subject.as_ref().is_some_and(is_node);
    let names = subject.as_ref().is_some_and(|s| s.2);
    match signer {
        "kubernetes.io/kube-apiserver-client-kubelet" if !node => refuse("subject must be a node: CN system:node:NAME, O system:nodes"),
        "kubernetes.io/kube-apiserver-client-kubelet" if names => refuse("a kubelet's client certificate has no alternative names"),
        "kubernetes.io/kube-apiserver-client-kubelet" if !usages_are(usages, "client auth") => {
            refuse("usages must be \"digital signature\", \"client auth\" and at most \"key encipherment\"")
        }
        "kubernetes.io/kubelet-serving" if !node => refuse("subject must be a node: CN system:node:NAME, O system:nodes"),
        "kubernetes.io/kubelet-serving" if !names => refuse("a serving certificate needs at least one DNS name or IP address"),
        "kubernetes.io/kubelet-serving" if !usages_are(usages, "server auth") => {
            refuse("usages must be \"digital signature\", \"server auth\" and at most \"key encipherment\"")
        }
        "kubernetes.io/kube-apiserver-client" if !usages.iter().any(|u| u == "client auth") => {
            refuse("usages must contain \"client auth\"")
        }
        "kubernetes.io/kube-apiserver-client" if subject.as_ref().is_some_and(|s| s.1.iter().any(|o| o == "system:masters")) => {
            refuse("organization system:masters is not given by this signer")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DnType};

    fn request(name: &str, organization: &str, sans: Vec<String>) -> Vec<u8> {
        let mut params = CertificateParams::new(sans).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap().into_bytes()
    }

    fn signer() -> Signer {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        Signer::new(&cert.pem(), &key.serialize_pem()).unwrap()
    }

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| u.to_string()).collect()
    }

    fn spec(signer: &str, request: Vec<u8>, list: &[&str]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            request: ByteString(request),
            usages: Some(usages(list)),
            expiration_seconds: Some(3600),
            ..Default::default()
        }
    }

    #[test]
    fn kubelets_are_recognized_exactly() {
        let good = usages(&["digital signature", "client auth"]);
        assert_eq!(kubelet_client(&request("system:node:a", "system:nodes", vec![]), &good).as_deref(), Some("system:node:a"));
        for (name, organization, sans, usages) in [
            ("a", "system:nodes", vec![], good.clone()),
            ("system:node:a", "system:masters", vec![], good.clone()),
            ("system:node:a", "system:nodes", vec!["a.b".to_string()], good.clone()),
            ("system:node:a", "system:nodes", vec![], usages(&["digital signature", "server auth"])),
            ("system:node:a", "system:nodes", vec![], usages(&["client auth", "digital signature", "code signing"])),
        ] {
            assert_eq!(kubelet_client(&request(name, organization, sans), &usages), None, "{name} {organization}");
        }
        assert_eq!(kubelet_client(b"rubbish", &good), None);
    }

    #[test]
    fn certificates_say_what_was_asked_and_no_more() {
        let s = signer();
        let client = spec(SIGNERS[1], request("system:node:a", "system:nodes", vec![]), &["digital signature", "client auth"]);
        let pem = s.sign(&client).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let cert = block.parse_x509().unwrap();
        assert_eq!(cert.subject().iter_common_name().next().unwrap().as_str().unwrap(), "system:node:a");
        let lifetime = cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
        assert_eq!(lifetime, 3600 + BACKDATE_SECONDS);
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        assert!(!cert.is_ca());
        let masters = spec(SIGNERS[0], request("me", "system:masters", vec![]), &["client auth"]);
        assert!(matches!(s.sign(&masters), Err(SignError::NotAllowed(_))));
        let serving = spec(SIGNERS[2], request("system:node:a", "system:nodes", vec![]), &["digital signature", "server auth"]);
        assert!(matches!(s.sign(&serving), Err(SignError::NotAllowed(_))));
        assert!(matches!(s.sign(&spec(SIGNERS[0], b"rubbish".to_vec(), &["client auth"])), Err(SignError::Request(_))));
    }
}
