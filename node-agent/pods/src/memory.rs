//! What a worker remembers of its pod between two plans. All of it can be lost: after a restart it
//! is rebuilt from containerd and from the status in the API.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::backoff::BackOff;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// `status.startTime`: when this node first saw the pod.
    pub start_time: Option<Timestamp>,
    /// Volumes are mounted.
    pub volumes_ready: bool,
    /// Volumes, cgroup and files are gone.
    pub torn_down: bool,
    /// Why a container does not run, by name.
    pub waiting: HashMap<String, Waiting>,
    /// Not before then may a container, or with the empty name the sandbox, be tried again.
    pub retry_at: HashMap<String, Timestamp>,
    /// Restart back-off by container name and hash.
    pub crash_backoff: BackOff,
    /// What the probes say, by container id.
    pub probes: HashMap<String, ProbeView>,
    /// The pod failed for a reason of its own: rejected, evicted, past its deadline.
    pub ended: Option<Ended>,
    /// Gone from the API.
    pub removed: bool,
    /// The API server has taken the final delete.
    pub deleted: bool,
}

/// A container status' `state.waiting`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// A pod status' `reason` and `message`, phase Failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub reason: String,
    pub message: String,
    /// Refused before anything ran: no container statuses are reported.
    pub rejected: bool,
}

/// Results of one container instance's probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeView {
    pub started: bool,
    pub ready: bool,
    /// A liveness or startup probe that gave up, and the grace its probe asks for.
    pub failed: Option<(FailedProbe, Option<i64>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedProbe {
    Liveness,
    Startup,
}

impl Memory {
    /// Whether an instance counts as started; one without a startup probe always does.
    pub fn started(&self, id: &str, has_startup_probe: bool) -> bool {
        self.probes.get(id).map_or(!has_startup_probe, |p| p.started)
    }
    pub fn ready(&self, id: &str, has_readiness_probe: bool, has_startup_probe: bool) -> bool {
        self.probes.get(id).map_or(!has_readiness_probe && !has_startup_probe, |p| p.started && p.ready)
    }
}

/// The back-off key of a container: a changed image starts afresh.
pub fn backoff_key(name: &str, hash: &str) -> String {
    format!("{name}_{hash}")
}
