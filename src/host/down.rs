//! Ending the node and taking its traces off the host.

use std::fs;

use anyhow::{Context, Result, bail};
use xebec_host::{cgroup::Cgroup, mounts};

use super::{DownArgs, Place, must_be_root, systemd};
use crate::{agent, invoker::Invoker};

/// Goes on after a failure and reports all of them.
pub async fn run(args: DownArgs) -> Result<()> {
    must_be_root("down")?;
    let place = &args.place;
    if args.dataplane_only {
        return dataplane_only(&args).await;
    }
    let mut failures = Vec::new();
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    note("health responder", xebec_agent::proxy_health::end(&place.run_dir).await.map_err(Into::into));
    note("parts", end_parts(place));
    let mut cgroups = vec![place.parts()?.cgroup, place.parent()?.child("kubepods")];
    // Shims stay in the cgroup of the containerd that started them, what answers health checks in the agent's.
    for unit in ["xebec-containerd.service", "xebec-agent.service"] {
        cgroups.push(Cgroup::new(&format!("/system.slice/{unit}"))?);
    }
    for cgroup in &cgroups {
        note("processes", cgroup.kill().map_err(Into::into));
    }
    place.containerd(&place.run_dir).remove_shim_sockets();
    let dataplane = agent::dataplane_config(&place.agent_dir(), &place.run_dir, &place.pin_dir, &place.cgroup_parent);
    match dataplane {
        Ok(config) => xebec_dataplane::teardown(&config).await.into_iter().for_each(|error| note("dataplane", Err(error.into()))),
        Err(error) => note("dataplane", Err(error)),
    }
    for dir in [&place.run_dir, &place.data_dir] {
        note("mounts", mounts::unmount_below(dir).map_err(Into::into));
    }
    for cgroup in &cgroups {
        note("cgroups", cgroup.remove().map_err(Into::into));
    }
    note("files", remove_dir(&place.run_dir));
    if args.purge {
        if let Some(invoker) = Invoker::of_sudo() {
            note("your kubeconfig", invoker.take_back(&place.admin_kubeconfig()).map_err(Into::into));
        }
        for dir in place.state_dirs() {
            note("state", remove_dir(&dir));
        }
        // Stays if the operator has put something there, or a disk.
        let _ = fs::remove_dir(&place.data_dir);
    }
    if !failures.is_empty() {
        bail!("not everything could be removed:\n  {}", failures.join("\n  "));
    }
    Ok(())
}

/// Undoes `xebec agent --dataplane-only`, whose directories these are too.
async fn dataplane_only(args: &DownArgs) -> Result<()> {
    let place = &args.place;
    let config = xebec_agent::Config {
        pin_dir: place.pin_dir.clone(),
        cgroup_parent: place.cgroup_parent.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
        cni_bin_dir: Some(args.cni_bin_dir.clone()),
        ..xebec_agent::Config::new("down", None, place.agent_dir(), place.run_dir.clone())
    };
    let failures: Vec<String> = xebec_agent::take_down(&config).await.iter().map(ToString::to_string).collect();
    if !failures.is_empty() {
        bail!("not everything could be removed:\n  {}", failures.join("\n  "));
    }
    Ok(())
}

fn end_parts(place: &Place) -> Result<()> {
    if place.uses_systemd() {
        systemd::remove()?;
    }
    let parts = place.parts()?;
    for part in ["agent", "server"] {
        parts.end(part, "xebec")?;
    }
    Ok(())
}

fn remove_dir(dir: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", dir.display())),
    }
}
