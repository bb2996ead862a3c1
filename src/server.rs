//! `xebec server`: the control plane in one process.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use xebec_apiserver::{Server, UserInfo};
use xebec_store::{Store, embedded, etcd};

use crate::signals;

/// Settings of the control plane.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Certificates, kubeconfigs and the embedded store's file.
    #[arg(long, default_value = "/var/lib/xebec/server")]
    data_dir: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0:6443")]
    bind: SocketAddr,
    /// The address other hosts and pods reach the server at.
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// More names and addresses for the serving certificate.
    #[arg(long)]
    tls_san: Vec<String>,
    /// Where the cluster's state is kept.
    #[arg(long, value_enum, default_value_t = StoreKind::Embedded)]
    store: StoreKind,
    /// etcd's client URLs.
    #[arg(long, value_delimiter = ',', default_value = "https://127.0.0.1:2379")]
    etcd_endpoints: Vec<String>,
    /// PEM file with the authorities of etcd's certificates.
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    /// PEM client certificate for etcd.
    #[arg(long, requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// Cluster addresses of Services: one range, or one a family.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12")]
    service_cidr: Vec<IpNet>,
    /// Ranges the nodes' pod ranges are cut from.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    pod_cidr: Vec<IpNet>,
    /// Addresses of cluster DNS; the tenth of each Service range by default.
    #[arg(long, value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// Domain of cluster names.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StoreKind {
    Embedded,
    Etcd,
}

/// Runs until SIGTERM.
pub async fn run(args: Args) -> Result<()> {
    let cancel = signals::cancelled_by_signals()?;
    let store = open_store(&args).await?;
    let mut config = xebec_apiserver::Config::new(&args.data_dir, args.bind);
    config.advertise_address = args.advertise_address;
    config.service_cidrs = args.service_cidr.clone();
    config.cluster_domain = args.cluster_domain.clone();
    config.extra_names = args.tls_san.clone();
    let server = Server::start(config, store).await?;
    tracing::info!(address = %server.address(), "serving");

    let loops = cancel.child_token();
    let scheduler = tokio::spawn(xebec_scheduler::run(server.client(UserInfo::component("system:kube-scheduler")), loops.clone()));
    let controllers = tokio::spawn(xebec_controllers::run(
        server.client(UserInfo::component("system:kube-controller-manager")),
        controllers_config(&args, &server)?,
        loops.clone(),
    ));
    let serving = tokio::spawn({
        let (server, cancel) = (server.clone(), cancel.clone());
        async move { server.run(cancel).await }
    });
    // Whatever ends first ends the process: a part that is gone must be seen, not worked around.
    let (what, ended) = tokio::select! {
        ended = serving => ("API server", ended.map(|r| r.map_err(anyhow::Error::from))),
        ended = scheduler => ("scheduler", ended.map(|r| r.map_err(anyhow::Error::from))),
        ended = controllers => ("controllers", ended.map(|r| r.map_err(anyhow::Error::from))),
    };
    let asked = cancel.is_cancelled();
    end(&cancel).await;
    match ended {
        Ok(Ok(())) if asked => Ok(()),
        Ok(Ok(())) => anyhow::bail!("the {what} ended by itself"),
        Ok(Err(error)) => Err(error.context(format!("the {what} failed"))),
        Err(error) => Err(anyhow::Error::from(error).context(format!("the {what} crashed"))),
    }
}

/// Lets the other parts write what they have under way.
async fn end(cancel: &CancellationToken) {
    cancel.cancel();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
}

async fn open_store(args: &Args) -> Result<Arc<dyn Store>> {
    match args.store {
        StoreKind::Embedded => {
            make_private_dir(&args.data_dir)?;
            Ok(Arc::new(embedded::open(args.data_dir.join("state.redb"), embedded::Options::default())?))
        }
        StoreKind::Etcd => {
            let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
            let tls = match &args.etcd_cafile {
                None => None,
                Some(ca) => Some(etcd::Tls {
                    ca: read(ca)?,
                    identity: match (&args.etcd_certfile, &args.etcd_keyfile) {
                        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
                        _ => None,
                    },
                }),
            };
            Ok(Arc::new(etcd::connect(&args.etcd_endpoints, tls).await?))
        }
    }
}

fn make_private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("cannot make {}", dir.display()))
}

fn controllers_config(args: &Args, server: &Server) -> Result<xebec_controllers::Config> {
    let pki = server.pki();
    let key = pki.dir().join("ca.key");
    let key_pem = fs::read_to_string(&key).with_context(|| format!("cannot read {}", key.display()))?;
    Ok(xebec_controllers::Config {
        cluster_cidrs: args.pod_cidr.clone(),
        cluster_dns: match args.cluster_dns.as_slice() {
            [] => args.service_cidr.iter().filter_map(xebec_dns::cluster_dns).collect(),
            given => given.to_vec(),
        },
        ca_pem: pki.cluster_ca.cert_pem.clone(),
        cluster_signer: Some(xebec_controllers::ClusterSigner { cert_pem: pki.cluster_ca.cert_pem.clone(), key_pem }),
        ..xebec_controllers::Config::default()
    })
}
