//! Address families of a cluster, and the ranges that go with them.

use clap::ValueEnum;

/// Which addresses nodes, pods and Services have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IpFamily {
    Ipv4,
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl IpFamily {
    pub fn has_v4(self) -> bool {
        self != IpFamily::Ipv6
    }

    pub fn has_v6(self) -> bool {
        self != IpFamily::Ipv4
    }

    /// Where nodes' ranges of pod addresses are cut from.
    pub fn pod_cidrs(self) -> String {
        self.pick("10.244.0.0/16", "fd00:10:244::/56")
    }

    /// Addresses of Services.
    pub fn service_cidrs(self) -> String {
        self.pick("10.96.0.0/12", "fd00:10:96::/108")
    }

    /// Every address of the node, of every family there is.
    pub fn any(self) -> &'static str {
        if self.has_v6() { "[::]" } else { "0.0.0.0" }
    }

    fn pick(self, v4: &str, v6: &str) -> String {
        match self {
            IpFamily::Ipv4 => v4.to_owned(),
            IpFamily::Ipv6 => v6.to_owned(),
            IpFamily::Dual => format!("{v4},{v6}"),
        }
    }
}
