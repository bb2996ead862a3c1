//! Undoes everything: works from what the kernel and the state directory hold, whoever is still alive.

use crate::bpf::layout::Layouts;
use crate::bpf::mount;
use crate::cni::conflist;
use crate::dataplane::mount_record;
use crate::device::netlink::Netlink;
use crate::device::pod;
use crate::device::sysctl::Sysctls;
use crate::{Config, Error, cluster_dns};

/// Removes everything [`crate::Dataplane::start`] and the CNI calls left in the kernel: links, pins, devices,
/// routes, changed sysctls. Idempotent; needs no running agent. Must run in the node's network namespace.
/// Returns what could not be removed.
pub async fn teardown(config: &Config) -> Vec<Error> {
    let mut errors = Vec::new();
    if let Some(dir) = &config.cni_conf_dir {
        errors.extend(conflist::remove(dir).err());
    }
    errors.extend(crate::file::remove(&config.cni_socket).err());
    errors.extend(crate::file::remove(&crate::inspect::path(&config.cni_socket)).err());
    // Routes and neighbours of pods go with their devices.
    errors.extend(delete_devices(&config.state_dir).await);
    errors.extend(mount::remove(&config.pin_dir, &mount_record(config)));
    errors.extend(Sysctls::new(&config.state_dir).restore());
    errors.extend(Layouts::new(&config.state_dir).remove().err());
    let sandboxes = config.state_dir.join("sandboxes");
    match std::fs::remove_dir_all(&sandboxes) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => errors.push(Error::io("remove", &sandboxes)(e)),
        Ok(()) | Err(_) => {}
    }
    errors
}

async fn delete_devices(state_dir: &std::path::Path) -> Vec<Error> {
    let netlink = match Netlink::here() {
        Ok(netlink) => netlink,
        Err(e) => return vec![Error::netlink("open a socket")(e)],
    };
    let mut errors = crate::keeper::remove(&netlink).await;
    errors.extend(cluster_dns::remove(&netlink, state_dir).await.err());
    let links = match netlink.links().await {
        Ok(links) => links,
        Err(e) => {
            errors.push(Error::netlink("read devices")(e));
            return errors;
        }
    };
    for link in links.iter().filter(|l| l.name.starts_with(pod::PREFIX)) {
        if let Err(e) = netlink.delete(link.index).await {
            errors.push(Error::netlink(format!("delete device {}", link.name))(e));
        }
    }
    errors
}
