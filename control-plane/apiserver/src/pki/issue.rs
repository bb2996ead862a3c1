//! Making certificates.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, string::Ia5String,
};
use time::{Duration, OffsetDateTime};

use crate::error::{Error, Result};

/// Life of a certificate authority.
const CA_LIFE: Duration = Duration::days(3650);
/// Life of every other certificate.
const LEAF_LIFE: Duration = Duration::days(365);
/// Clocks of other hosts may be this late.
const BACKDATE: Duration = Duration::minutes(5);

/// A certificate authority with its key.
pub struct Ca {
    pub cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Issued {
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl Ca {
    /// A new authority; returns it with its key's PEM.
    pub(super) fn generate(common_name: &str) -> Result<(Ca, String)> {
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = name(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        set_life(&mut params, CA_LIFE);
        let cert_pem = params.self_signed(&key)?.pem();
        Ok((Ca { cert_pem, issuer: Issuer::new(params, key) }, key_pem))
    }

    /// An authority read back; the reason when the pair cannot be used.
    pub(super) fn load(cert_pem: String, key_pem: &str) -> Result<Ca, String> {
        let key = KeyPair::from_pem(key_pem).map_err(|e| e.to_string())?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(|e| e.to_string())?;
        Ok(Ca { cert_pem, issuer })
    }

    /// Signs the public key of a certificate request with the given usages, as the kubelet client and serving signers do.
    ///
    /// # Errors
    /// When the request is malformed or its signature is wrong.
    pub fn sign_request(&self, request_pem: &str, usages: &[ExtendedKeyUsagePurpose], life: Duration) -> Result<String> {
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(request_pem)?;
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = usages.to_vec();
        request.params.is_ca = IsCa::NoCa;
        set_life(&mut request.params, life);
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

/// A client certificate: user `cn` in the groups `orgs`.
pub fn issue_client(ca: &Ca, cn: &str, orgs: &[&str]) -> Result<Issued> {
    leaf(ca, cn, orgs, &[], &[], ExtendedKeyUsagePurpose::ClientAuth)
}

/// The serving certificate of a node's kubelet API.
pub fn issue_node_serving(ca: &Ca, node_name: &str, ips: &[IpAddr]) -> Result<Issued> {
    leaf(ca, &format!("system:node:{node_name}"), &["system:nodes"], &[node_name.to_string()], ips, ExtendedKeyUsagePurpose::ServerAuth)
}

/// A serving certificate for these names and addresses.
pub fn issue_serving(ca: &Ca, cn: &str, names: &[String], ips: &[IpAddr]) -> Result<Issued> {
    leaf(ca, cn, &[], names, ips, ExtendedKeyUsagePurpose::ServerAuth)
}

fn leaf(ca: &Ca, cn: &str, orgs: &[&str], names: &[String], ips: &[IpAddr], usage: ExtendedKeyUsagePurpose) -> Result<Issued> {
    // rcgen keeps one value for each kind of attribute.
    if orgs.len() > 1 {
        return Err(Error::Config(format!("certificate of {cn:?}: more than one organization: {orgs:?}")));
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name(cn, orgs);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    for dns in names {
        let dns = Ia5String::try_from(dns.as_str()).map_err(|_| Error::Config(format!("{dns:?} is no DNS name")))?;
        params.subject_alt_names.push(SanType::DnsName(dns));
    }
    params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
    set_life(&mut params, LEAF_LIFE);
    let cert_pem = params.signed_by(&key, &ca.issuer)?.pem();
    Ok(Issued { cert_pem, key_pem: key.serialize_pem() })
}

fn name(cn: &str, orgs: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for org in orgs {
        name.push(DnType::OrganizationName, *org);
    }
    name.push(DnType::CommonName, cn);
    name
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + life;
}
