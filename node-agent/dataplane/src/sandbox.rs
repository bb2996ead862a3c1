//! What the node remembers of each pod sandbox it gave a device: one file each, so that an agent that starts
//! again knows every address' owner. A record is written before the device is made and removed after it is gone.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::compile::bandwidth::Bandwidth;
use crate::compile::input::{Key, PodIn};
use crate::compile::policies::LocalEndpoint;

/// A sandbox with a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// Name of the host's side.
    pub host_name: String,
    /// Number of the endpoint in the maps.
    pub endpoint: u32,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Hardware address of the pod's side.
    pub pod_mac: [u8; 6],
    /// Of the host's side.
    pub host_mac: [u8; 6],
    /// Namespace and name of the pod.
    pub pod: Key,
    /// `SO_NETNS_COOKIE` of its network namespace; 0 in records of before this was kept.
    #[serde(default)]
    pub netns_cookie: u64,
    /// The pod when the device was made.
    pub last_seen: PodIn,
    /// What the runtime limits it to beyond its annotations; nothing in records of before this was kept.
    #[serde(default)]
    pub asked: Bandwidth,
}

impl Sandbox {
    /// Owner of the address lease.
    pub fn owner(&self) -> String {
        owner(&self.id, &self.ifname)
    }

    /// As policy sees it, behind this device.
    pub fn local(&self, ifindex: u32) -> LocalEndpoint {
        LocalEndpoint {
            id: self.endpoint,
            ifindex,
            pod_mac: self.pod_mac,
            host_mac: self.host_mac,
            ips: self.ips.clone(),
            netns_cookie: self.netns_cookie,
            pod: self.pod.clone(),
            asked: self.asked,
            last_seen: self.last_seen.clone(),
        }
    }
}

/// Names a lease: the sandbox and the device in it.
pub fn owner(id: &str, ifname: &str) -> String {
    format!("{id}-{ifname}")
}

/// The files.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Below the state directory.
    pub fn new(state_dir: &Path) -> Records {
        Records { dir: state_dir.join("sandboxes") }
    }

    fn path(&self, owner: &str) -> PathBuf {
        self.dir.join(format!("{owner}.json"))
    }

    /// Writes or replaces a record.
    pub fn write(&self, sandbox: &Sandbox) -> Result<(), Error> {
        // Sandboxes end with the machine, and so does what is told of them.
        crate::file::write_json_of_this_boot(&self.path(&sandbox.owner()), sandbox)
    }

    /// Removes a record; one that is not there is no error.
    pub fn remove(&self, owner: &str) -> Result<(), Error> {
        crate::file::remove(&self.path(owner))
    }

    /// All records; files that do not parse are left out and named.
    pub fn all(&self) -> Result<(Vec<Sandbox>, Vec<PathBuf>), Error> {
        let (mut found, mut broken) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok((found, broken)),
            Err(e) => return Err(Error::io("read", &self.dir)(e)),
        };
        for entry in entries {
            let path = entry.map_err(Error::io("read", &self.dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            match serde_json::from_slice(&bytes) {
                Ok(sandbox) => found.push(sandbox),
                Err(_) => broken.push(path),
            }
        }
        Ok((found, broken))
    }
}
