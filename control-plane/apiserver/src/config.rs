//! What the server is told at start.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;

use crate::error::{Error, Result};

/// Settings of a [`crate::Server`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `pki/` and `admin.kubeconfig`.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The address other hosts reach the server at; `None`: `bind`'s, or 127.0.0.1 when that is unspecified.
    pub advertise_address: Option<IpAddr>,
    /// Ranges of cluster addresses, the primary family first. The first address of each is the `kubernetes` Service's.
    pub service_cidrs: Vec<IpNet>,
    /// Ports NodePort Services get, inclusive.
    pub node_ports: (u16, u16),
    /// `svc.` names end in it.
    pub cluster_domain: String,
    /// `iss` of service-account tokens.
    pub service_account_issuer: String,
    /// More names and addresses for the serving certificate.
    pub extra_names: Vec<String>,
}

impl Config {
    pub fn new(data_dir: impl Into<PathBuf>, bind: SocketAddr) -> Config {
        Config {
            data_dir: data_dir.into(),
            bind,
            advertise_address: None,
            service_cidrs: vec!["10.96.0.0/12".parse().expect("a constant")],
            node_ports: (30000, 32767),
            cluster_domain: "cluster.local".into(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            extra_names: Vec::new(),
        }
    }

    /// The address in kubeconfigs and in the Endpoints of the `kubernetes` Service.
    pub fn advertised(&self) -> IpAddr {
        match self.advertise_address {
            Some(address) => address,
            None if self.bind.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            None => self.bind.ip(),
        }
    }

    /// The first address after the base of each service range: that of the `kubernetes` Service.
    pub fn kubernetes_service_ips(&self) -> Vec<IpAddr> {
        let first = |cidr: &ipnet::IpNet| cidr.hosts().find(|address| *address != cidr.network());
        self.service_cidrs.iter().filter_map(first).collect()
    }

    /// Names and addresses of the serving certificate.
    pub fn serving_names(&self) -> (Vec<String>, Vec<IpAddr>) {
        let mut names = vec!["kubernetes".to_string(), "kubernetes.default".into(), "kubernetes.default.svc".into()];
        names.push(format!("kubernetes.default.svc.{}", self.cluster_domain));
        names.push("localhost".into());
        let mut ips = vec![IpAddr::from(Ipv4Addr::LOCALHOST), std::net::Ipv6Addr::LOCALHOST.into(), self.advertised()];
        ips.extend(self.kubernetes_service_ips());
        if !self.bind.ip().is_unspecified() {
            ips.push(self.bind.ip());
        }
        for extra in &self.extra_names {
            match extra.parse() {
                Ok(ip) => ips.push(ip),
                Err(_) => names.push(extra.clone()),
            }
        }
        ips.sort();
        ips.dedup();
        (names, ips)
    }

    /// # Errors
    /// When the settings contradict each other.
    pub fn check(&self) -> Result<()> {
        if self.service_cidrs.is_empty() || self.service_cidrs.len() > 2 {
            return Err(Error::Config("one service CIDR, or one a family, is needed".into()));
        }
        if self.service_cidrs.len() == 2 && self.service_cidrs[0].addr().is_ipv4() == self.service_cidrs[1].addr().is_ipv4() {
            return Err(Error::Config("two service CIDRs must be of different families".into()));
        }
        for cidr in &self.service_cidrs {
            if cidr.max_prefix_len() - cidr.prefix_len() < 3 {
                return Err(Error::Config(format!("service CIDR {cidr} is too small, at least 8 addresses are needed")));
            }
        }
        if self.node_ports.0 > self.node_ports.1 || self.node_ports.0 == 0 {
            return Err(Error::Config(format!("node port range {}-{} is empty", self.node_ports.0, self.node_ports.1)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubernetes_service_has_the_first_address_of_each_family() {
        let mut config = Config::new(std::path::Path::new("/nowhere"), SocketAddr::from(([127, 0, 0, 1], 0)));
        config.service_cidrs = vec!["10.96.0.0/12".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()];
        let ips: Vec<String> = config.kubernetes_service_ips().iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.96.0.1", "fd00:10:96::1"]);
    }
}
