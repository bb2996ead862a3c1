//! `xebec kubeconfig`: credentials signed by the cluster's authority, made where its key is.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use xebec_apiserver::{
    kubeconfig,
    pki::{self, Pki},
};

use crate::invoker::Invoker;

/// One of `--node` and `--user`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// The server's data directory, which holds pki/.
    #[arg(long)]
    data_dir: PathBuf,
    /// Where clients reach the server, e.g. https://192.0.2.1:6443.
    #[arg(long)]
    server: String,
    /// File to write (mode 0600; with `sudo` and --user it is yours, where you may write).
    #[arg(long)]
    out: PathBuf,
    /// Make a node's credentials: user system:node:NODE, and beside the file kubelet.crt, kubelet.key and ca.crt for its kubelet API.
    #[arg(long, conflicts_with_all = ["user", "group"])]
    node: Option<String>,
    /// Addresses of the node, for its serving certificate.
    #[arg(long, requires = "node")]
    node_ip: Vec<IpAddr>,
    /// Make a user's credentials.
    #[arg(long)]
    user: Option<String>,
    /// The user's group.
    #[arg(long, requires = "user")]
    group: Option<String>,
}

/// Issues what was asked for.
pub fn run(args: &Args) -> Result<()> {
    if !args.data_dir.join("pki/ca.crt").exists() {
        bail!("{} has no pki/ca.crt: start `xebec server` with this data directory once, or name another", args.data_dir.display());
    }
    let group: Vec<&str> = args.group.as_deref().into_iter().collect();
    match (&args.node, &args.user) {
        (Some(name), _) => node(&args.data_dir, &args.server, &args.out, name, &args.node_ip),
        (None, Some(name)) => {
            let pki = Pki::open(&args.data_dir)?;
            let issued = pki::issue_client(&pki.cluster_ca, name, &group)?;
            let write = || kubeconfig::write(&args.out, &args.server, &pki.cluster_ca.cert_pem, &issued.cert_pem, &issued.key_pem);
            // With `sudo` it is whose who asked for it, wherever they may write.
            if Invoker::of_sudo().is_some_and(|invoker| invoker.with_own_rights(write).is_ok()) {
                return Ok(());
            }
            Ok(write()?)
        }
        (None, None) => bail!("one of --node and --user is needed"),
    }
}

/// A node's credentials in `out`, and beside it kubelet.crt, kubelet.key and ca.crt for its kubelet API.
pub fn node(data_dir: &Path, server: &str, out: &Path, name: &str, ips: &[IpAddr]) -> Result<()> {
    let pki = Pki::open(data_dir)?;
    let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let serving = pki::issue_node_serving(&pki.cluster_ca, name, ips)?;
    pki::write_private(&dir.join("kubelet.crt"), serving.cert_pem.as_bytes())?;
    pki::write_private(&dir.join("kubelet.key"), serving.key_pem.as_bytes())?;
    pki::write_private(&dir.join("ca.crt"), pki.cluster_ca.cert_pem.as_bytes())?;
    let issued = pki::issue_client(&pki.cluster_ca, &format!("system:node:{name}"), &["system:nodes"])?;
    Ok(kubeconfig::write(out, server, &pki.cluster_ca.cert_pem, &issued.cert_pem, &issued.key_pem)?)
}
