//! Certificates and keys as files.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rcgen::KeyPair;
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

use super::{
    RENEW_BEFORE,
    issue::{Ca, Issued},
};
use crate::error::{Error, Result};

pub(super) fn make_private_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file("create", dir))
}

pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        out.write_all(content)?;
        out.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(file("write", path))
}

/// `NAME.crt` and `NAME.key`, both or neither on disk.
pub(super) fn open_ca(dir: &Path, name: &str, common_name: &str) -> Result<Ca> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    match (read(&cert_path)?, read(&key_path)?) {
        (Some(cert), Some(key)) => Ca::load(cert, &key).map_err(|reason| Error::Pki { path: key_path, reason }),
        (None, None) => {
            let (ca, key) = Ca::generate(common_name)?;
            write_private(&key_path, key.as_bytes())?;
            write_private(&cert_path, ca.cert_pem.as_bytes())?;
            Ok(ca)
        }
        // A crash between the two writes leaves a key that never signed anything.
        (None, Some(_)) => {
            fs::remove_file(&key_path).map_err(file("remove", &key_path))?;
            open_ca(dir, name, common_name)
        }
        (Some(_), None) => Err(Error::Pki { path: key_path, reason: "the file is missing".into() }),
    }
}

/// `NAME.key` (PKCS#8) and `NAME.pub`.
pub(super) fn open_signing_key(dir: &Path, name: &str) -> Result<(String, String)> {
    let (key_path, public_path) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pub")));
    let key = match read(&key_path)? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(|e| Error::Pki { path: key_path, reason: e.to_string() })?,
        None => {
            let key = KeyPair::generate()?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            key
        }
    };
    let public = key.public_key_pem();
    if read(&public_path)?.as_deref() != Some(&public) {
        write_private(&public_path, public.as_bytes())?;
    }
    Ok((key.serialize_pem(), public))
}

/// `NAME.crt` and `NAME.key`, made anew by `issue` when missing, near the end, of another authority, or for other names.
pub(super) fn open_leaf(
    dir: &Path,
    name: &str,
    ca: &Ca,
    names: &[String],
    ips: &[IpAddr],
    issue: impl FnOnce() -> Result<Issued>,
) -> Result<Issued> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if let (Some(cert_pem), Some(key_pem)) = (read(&cert_path)?, read(&key_path)?)
        && still_good(&cert_pem, &key_pem, ca, names, ips)
    {
        return Ok(Issued { cert_pem, key_pem });
    }
    let issued = issue()?;
    write_private(&key_path, issued.key_pem.as_bytes())?;
    write_private(&cert_path, issued.cert_pem.as_bytes())?;
    Ok(issued)
}

fn still_good(cert_pem: &str, key_pem: &str, ca: &Ca, names: &[String], ips: &[IpAddr]) -> bool {
    let (Ok((_, pem)), Ok((_, ca_pem)), Ok(key)) =
        (parse_x509_pem(cert_pem.as_bytes()), parse_x509_pem(ca.cert_pem.as_bytes()), KeyPair::from_pem(key_pem))
    else {
        return false;
    };
    let (Ok(cert), Ok(ca_cert)) = (pem.parse_x509(), ca_pem.parse_x509()) else { return false };
    let ends = time::OffsetDateTime::from_unix_timestamp(cert.validity().not_after.timestamp()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    if ends - time::OffsetDateTime::now_utc() < RENEW_BEFORE {
        return false;
    }
    if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw()
        || cert.verify_signature(Some(ca_cert.public_key())).is_err()
    {
        return false;
    }
    let mut have_names = BTreeSet::new();
    let mut have_ips = BTreeSet::new();
    if let Ok(Some(san)) = cert.subject_alternative_name() {
        for general in &san.value.general_names {
            match general {
                GeneralName::DNSName(dns) => {
                    have_names.insert(dns.to_string());
                }
                GeneralName::IPAddress(bytes) => {
                    let ip = match bytes.len() {
                        4 => <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok(),
                        _ => <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok(),
                    };
                    have_ips.extend(ip);
                }
                _ => {}
            }
        }
    }
    have_names == names.iter().cloned().collect() && have_ips == ips.iter().copied().collect()
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file("read", path)(e)),
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path: PathBuf = path.to_path_buf();
    move |source| Error::File { action, path, source }
}
