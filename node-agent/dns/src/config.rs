//! What the name server is told at start.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use hickory_proto::rr::Name;
use ipnet::IpNet;

use crate::forward::{Stub, parse_server};

/// Settings of the name server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's domain.
    pub domain: Name,
    /// Where pods ask.
    pub addresses: Vec<IpAddr>,
    /// Ranges of Services and pods: reverse names in them are ours alone.
    pub ranges: Vec<IpNet>,
    /// Names the servers for everything else.
    pub resolv_conf: PathBuf,
    /// Domains with servers of their own.
    pub stubs: Vec<Stub>,
}

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The cluster's domain, or that of a stub.
    #[error("{0:?} is no domain name")]
    Domain(String),
    /// A stub.
    #[error("{0:?} is not DOMAIN=SERVER[+SERVER...] with addresses (and ports) as servers")]
    Stub(String),
}

impl Config {
    /// With the names and stubs (`DOMAIN=SERVER+SERVER`) as they were given on the command line.
    ///
    /// # Errors
    /// If one of them is none.
    pub fn new(domain: &str, addresses: Vec<IpAddr>, ranges: Vec<IpNet>, resolv_conf: PathBuf, stubs: &[String]) -> Result<Config, Error> {
        let stubs = stubs.iter().map(|text| stub(text)).collect::<Result<_, _>>()?;
        Ok(Config { domain: name(domain)?, addresses, ranges, resolv_conf, stubs })
    }
}

fn name(text: &str) -> Result<Name, Error> {
    let bad = || Error::Domain(text.to_owned());
    let mut name = Name::from_ascii(text).map_err(|_| bad())?;
    name.set_fqdn(true);
    if name.is_root() { Err(bad()) } else { Ok(name.to_lowercase()) }
}

fn stub(text: &str) -> Result<Stub, Error> {
    let bad = || Error::Stub(text.to_owned());
    let (domain, servers) = text.split_once('=').ok_or_else(bad)?;
    let servers: Vec<SocketAddr> = servers.split('+').map(|server| parse_server(server).ok_or_else(bad)).collect::<Result<_, _>>()?;
    Ok(Stub { domain: name(domain)?, servers })
}

/// The address of cluster DNS in a range of Service addresses: the tenth, as with kubeadm. `None` if the range is too small.
pub fn cluster_dns(range: &IpNet) -> Option<IpAddr> {
    let address = match range.network() {
        IpAddr::V4(first) => IpAddr::V4(u32::from(first).checked_add(10)?.into()),
        IpAddr::V6(first) => IpAddr::V6(u128::from(first).checked_add(10)?.into()),
    };
    range.contains(&address).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_are_read() {
        let read = stub("corp.example=192.0.2.1+[2001:db8::1]:5353").unwrap();
        assert_eq!(read.domain.to_ascii(), "corp.example.");
        assert_eq!(read.servers, ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:5353".parse().unwrap()]);
        for text in ["corp.example", "corp.example=", "corp.example=name", "=192.0.2.1"] {
            assert!(stub(text).is_err(), "{text}");
        }
        assert_eq!(name(".").unwrap_err(), Error::Domain(".".to_owned()));
        assert_eq!(name("Cluster.Local").unwrap().to_ascii(), "cluster.local.");
    }

    #[test]
    fn the_tenth_address() {
        let tenth = |range: &str| cluster_dns(&range.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(tenth("10.96.0.0/12").as_deref(), Some("10.96.0.10"));
        assert_eq!(tenth("10.96.0.128/24").as_deref(), Some("10.96.0.10"));
        assert_eq!(tenth("fd00:96::/108").as_deref(), Some("fd00:96::a"));
        assert_eq!(tenth("10.0.0.0/29"), None);
    }
}
