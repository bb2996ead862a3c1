//! An etcd of the cluster's own, with TLS.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context, Result};

use xebec_host::parts::Parts;

use super::Layout;
use crate::{build::Binaries, sh};

const CLIENTS: &str = "https://127.0.0.1:2379";
const PEERS: &str = "https://127.0.0.1:2380";

fn pki(layout: &Layout, file: &str) -> PathBuf {
    layout.etcd_dir().join("pki").join(file)
}

/// Makes its certificates and starts it.
pub(super) fn start(layout: &Layout, parts: &Parts, binaries: &Binaries) -> Result<()> {
    if !pki(layout, "client.crt").exists() {
        let mut command = sh::cmd(&binaries.xebec, ["etcd-certificates", "--address", "127.0.0.1", "--out"]);
        sh::quiet(command.arg(layout.etcd_dir()))?;
    }
    let program = sh::which("etcd").context("etcd is not on PATH")?;
    let mut settings: Vec<(String, OsString)> = vec![
        ("--name".into(), layout.name.clone().into()),
        ("--data-dir".into(), layout.etcd_dir().join("data").into()),
        ("--listen-client-urls".into(), CLIENTS.into()),
        ("--advertise-client-urls".into(), CLIENTS.into()),
        ("--listen-peer-urls".into(), PEERS.into()),
        ("--initial-advertise-peer-urls".into(), PEERS.into()),
        ("--initial-cluster".into(), format!("{}={PEERS}", layout.name).into()),
    ];
    for prefix in ["--", "--peer-"] {
        for (flag, file) in [("cert-file", "server.crt"), ("key-file", "server.key"), ("trusted-ca-file", "ca.crt")] {
            settings.push((format!("{prefix}{flag}"), pki(layout, file).into()));
        }
    }
    let mut args: Vec<OsString> = settings.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect();
    // Without its JSON gateway, which would call etcd with a serving certificate.
    args.extend(["--client-cert-auth", "--peer-client-cert-auth", "--enable-grpc-gateway=false"].map(OsString::from));
    parts.ensure("etcd", "etcd", &program, args)?;
    Ok(())
}

/// What the server must be told.
pub(super) fn server_args(layout: &Layout) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--store".into(), "etcd".into(), "--etcd-endpoints".into(), CLIENTS.into()];
    for (flag, file) in [("--etcd-cafile", "ca.crt"), ("--etcd-certfile", "client.crt"), ("--etcd-keyfile", "client.key")] {
        args.extend([flag.into(), pki(layout, file).into()]);
    }
    args
}
