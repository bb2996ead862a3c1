//! `xebec etcd-certificates`: an authority for etcd and its clients, apart from the cluster's own.

use std::{net::IpAddr, path::PathBuf};

use anyhow::Result;
use xebec_apiserver::pki::{self, Pki};

/// What to make.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory whose pki/ gets ca.crt, server.crt, client.crt and their keys (mode 0600).
    #[arg(long)]
    out: PathBuf,
    /// Addresses of etcd.
    #[arg(long, required = true)]
    address: Vec<IpAddr>,
}

/// Makes the certificates.
pub fn run(args: &Args) -> Result<()> {
    let pki = Pki::open(&args.out)?;
    let ca = &pki.cluster_ca;
    let server = pki::issue_serving(ca, "etcd", &["localhost".to_owned()], &args.address)?;
    let client = pki::issue_client(ca, "xebec-server", &[])?;
    for (name, issued) in [("server", server), ("client", client)] {
        pki::write_private(&pki.dir().join(format!("{name}.crt")), issued.cert_pem.as_bytes())?;
        pki::write_private(&pki.dir().join(format!("{name}.key")), issued.key_pem.as_bytes())?;
    }
    Ok(())
}
