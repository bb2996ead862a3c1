//! What the control loops must be told; everything else they read from the API.

use std::net::IpAddr;

use ipnet::IpNet;

/// Settings of the control loops.
#[derive(Clone)]
pub struct Config {
    /// Ranges that nodes get their `spec.podCIDRs` from: one IPv4, one IPv6 or one of each. Empty: none are assigned.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 range.
    pub node_cidr_mask_v4: u8,
    /// Prefix length of a node's IPv6 range.
    pub node_cidr_mask_v6: u8,
    /// Addresses of cluster DNS, at most one a family: the Service `kube-system/kube-dns` gets them. Empty: no such Service is made.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster CA's certificates in PEM, published as ConfigMap `kube-root-ca.crt` in every namespace.
    pub ca_pem: String,
    /// The cluster CA, to sign certificate requests. `None`: requests are approved but not signed.
    pub cluster_signer: Option<ClusterSigner>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cluster_cidrs: Vec::new(),
            node_cidr_mask_v4: 24,
            node_cidr_mask_v6: 64,
            cluster_dns: Vec::new(),
            ca_pem: String::new(),
            cluster_signer: None,
        }
    }
}

/// A certificate authority's key pair in PEM.
#[derive(Clone)]
pub struct ClusterSigner {
    /// The CA certificate.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
}
