//! The cluster's certificates and keys: made at first start under `data-dir/pki`, mode 0600, renewed when near expiry.

mod files;
mod issue;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

pub use issue::{Ca, Issued, issue_client, issue_node_serving, issue_serving};

use crate::error::Result;

/// A leaf certificate that ends sooner than this is made again.
pub const RENEW_BEFORE: time::Duration = time::Duration::days(60);

/// Everything under `data-dir/pki`.
pub struct Pki {
    dir: PathBuf,
    /// Signs client and serving certificates of the cluster.
    pub cluster_ca: Ca,
    /// Signs the certificate with which the server speaks to extension API servers.
    pub front_proxy_ca: Ca,
    /// PKCS#8 PEM of the key that signs service-account tokens (ES256).
    pub service_account_key: String,
    /// PEM of its public half.
    pub service_account_public: String,
}

impl Pki {
    /// Reads what is there, makes what is missing.
    ///
    /// # Errors
    /// When a file cannot be read, written or understood; nothing that exists is ever overwritten here.
    pub fn open(data_dir: &Path) -> Result<Pki> {
        let dir = data_dir.join("pki");
        files::make_private_dir(&dir)?;
        let cluster_ca = files::open_ca(&dir, "ca", "kubernetes")?;
        let front_proxy_ca = files::open_ca(&dir, "front-proxy-ca", "front-proxy-ca")?;
        let (service_account_key, service_account_public) = files::open_signing_key(&dir, "sa")?;
        Ok(Pki { dir, cluster_ca, front_proxy_ca, service_account_key, service_account_public })
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The API server's serving certificate for exactly these names and addresses, issued again when they changed
    /// or when it is near its end.
    pub fn serving(&self, names: &[String], ips: &[IpAddr]) -> Result<Issued> {
        files::open_leaf(&self.dir, "apiserver", &self.cluster_ca, names, ips, || {
            issue_serving(&self.cluster_ca, "kube-apiserver", names, ips)
        })
    }

    /// The certificate the server shows to kubelets.
    pub fn kubelet_client(&self) -> Result<Issued> {
        files::open_leaf(&self.dir, "apiserver-kubelet-client", &self.cluster_ca, &[], &[], || {
            issue_client(&self.cluster_ca, "kube-apiserver-kubelet-client", &["system:masters"])
        })
    }

    /// The certificate the server shows to extension API servers.
    pub fn front_proxy_client(&self) -> Result<Issued> {
        files::open_leaf(&self.dir, "front-proxy-client", &self.front_proxy_ca, &[], &[], || {
            issue_client(&self.front_proxy_ca, "front-proxy-client", &[])
        })
    }

    /// The administrator's certificate of `admin.kubeconfig`.
    pub fn admin(&self) -> Result<Issued> {
        files::open_leaf(&self.dir, "admin", &self.cluster_ca, &[], &[], || {
            issue_client(&self.cluster_ca, "kubernetes-admin", &["system:masters"])
        })
    }
}

/// Writes `content` to `path` so that no other user ever sees it and a crash leaves the old or the new file.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    files::write_private(path, content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sans() -> (Vec<String>, Vec<IpAddr>) {
        (vec!["kubernetes".into(), "localhost".into()], vec!["127.0.0.1".parse().unwrap(), "10.96.0.1".parse().unwrap()])
    }

    #[test]
    fn second_open_keeps_every_file() {
        let dir = tempfile::tempdir().unwrap();
        let (names, ips) = sans();
        let first = Pki::open(dir.path()).unwrap();
        let serving = first.serving(&names, &ips).unwrap();
        let again = Pki::open(dir.path()).unwrap();
        assert_eq!(first.cluster_ca.cert_pem, again.cluster_ca.cert_pem);
        assert_eq!(first.service_account_key, again.service_account_key);
        assert_eq!(serving.cert_pem, again.serving(&names, &ips).unwrap().cert_pem);
        for entry in std::fs::read_dir(dir.path().join("pki")).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[test]
    fn changed_names_give_a_new_serving_certificate_of_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        let (names, ips) = sans();
        let pki = Pki::open(dir.path()).unwrap();
        let before = pki.serving(&names, &ips).unwrap();
        let more = [ips.clone(), vec!["192.0.2.7".parse().unwrap()]].concat();
        let after = pki.serving(&names, &more).unwrap();
        assert_ne!(before.cert_pem, after.cert_pem);
        let (_, pem) = x509_parser::pem::parse_x509_pem(after.cert_pem.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        let (_, ca_pem) = x509_parser::pem::parse_x509_pem(pki.cluster_ca.cert_pem.as_bytes()).unwrap();
        let ca = ca_pem.parse_x509().unwrap();
        cert.verify_signature(Some(ca.public_key())).unwrap();
    }

    #[test]
    fn damaged_ca_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path()).unwrap();
        let path = dir.path().join("pki/ca.key");
        std::fs::write(&path, "no key").unwrap();
        let error = Pki::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("ca.key"), "{error}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "no key");
    }
}
