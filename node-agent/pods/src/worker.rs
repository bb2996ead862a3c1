//! One pod's worker: observe, plan, write the status, execute, again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::memory::Memory;
use crate::node_state::NodeState;
use crate::observe::{Observed, observe};
use crate::plan::{Plan, Step, plan, sooner};
use crate::probes::PodProbes;
use crate::recorder::Level;
use crate::spec;
use crate::status::pod_status;
use crate::status_writer::StatusWriter;
use crate::volumes::{self, Volumes};

/// How often volumes made of API objects are brought up to date.
const REFRESH: SignedDuration = SignedDuration::from_secs(30);
/// A look without any event, should one have been lost.
const RESYNC: Duration = Duration::from_secs(60);

/// What the API says of a pod.
#[derive(Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// Gone from the API; `pod` is the last that was seen.
    pub removed: bool,
}

/// The rest of the node's grip on a worker.
#[derive(Clone)]
pub struct Handle {
    pub desired: Arc<watch::Sender<Desired>>,
    pub wake: Arc<Notify>,
    pub view: Arc<Mutex<View>>,
}

/// What the worker last saw and reported.
#[derive(Clone, Default)]
pub struct View {
    pub observed: Arc<Observed>,
    pub status: Option<PodStatus>,
}

/// Why a worker looks at its pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To execute the plan.
    Act,
    /// To keep the status current while steps are being executed.
    Report,
}

pub struct Worker {
    pub(crate) node: Arc<NodeState>,
    pub(crate) uid: String,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    view: Arc<Mutex<View>>,
    pub(crate) memory: Mutex<Memory>,
    pub(crate) volumes: Mutex<Volumes>,
    /// Containers whose preStop hook has run: a shortened grace must not run it twice.
    pub(crate) hooked: Mutex<HashSet<String>>,
    pub(crate) sandbox_failures: Mutex<u32>,
    probes: PodProbes,
    writer: StatusWriter,
    refresh_at: Mutex<Timestamp>,
}

impl Worker {
    /// Starts the worker of a pod that this node has just learned of.
    pub fn spawn(node: Arc<NodeState>, pod: Arc<Pod>, memory: Memory) -> Handle {
        let uid = spec::uid(&pod).to_owned();
        let writer = StatusWriter::start(node.client.clone(), pod.clone());
        let (sender, receiver) = watch::channel(Desired { pod, removed: false });
        let wake = Arc::new(Notify::new());
        let view = Arc::new(Mutex::new(View::default()));
        let handle = Handle { desired: Arc::new(sender), wake: wake.clone(), view: view.clone() };
        let worker = Worker {
            probes: PodProbes::new(node.cri.clone(), node.recorder.clone(), wake.clone()),
            node,
            uid,
            desired: receiver,
            wake,
            view,
            memory: Mutex::new(memory),
            volumes: Mutex::default(),
            hooked: Mutex::default(),
            sandbox_failures: Mutex::default(),
            writer,
            refresh_at: Mutex::new(Timestamp::MIN),
        };
        tokio::spawn(worker.run());
        handle
    }

    async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let pod = desired.pod.clone();
            self.memory.lock().removed = desired.removed;
            let Some((observed, plan)) = self.look(&pod, Purpose::Act).await else {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    _ = self.desired.changed() => {}
                }
                continue;
            };
            if plan.steps.is_empty() {
                if plan.ended.is_some() {
                    continue;
                }
                let refresh = self.refresh(&pod, &observed, plan.finished).await;
                self.wait(plan.wake_at, refresh).await;
                continue;
            }
            let forgetting = plan.steps.contains(&Step::Forget);
            let interrupt = interrupted(self.desired.clone(), desired);
            let worker = &self;
            {
                let execution = worker.execute(&pod, &observed, &plan.steps);
                tokio::pin!(execution, interrupt);
                loop {
                    tokio::select! {
                        biased;
                        () = &mut interrupt, if !forgetting => break,
                        () = &mut execution => break,
                        // The status follows while a step takes its time.
                        () = worker.wake.notified() => { worker.look(&pod, Purpose::Report).await; }
                    }
                }
            }
            if forgetting && self.is_forgotten(&pod).await {
                break;
            }
        }
        self.probes.stop();
        self.node.workers.lock().remove(&self.uid);
        self.node.owners.lock().retain(|_, uid| *uid != self.uid);
        self.node.objects.forget_pod(&self.uid);
    }

    /// Observes, plans and reports. `None` when containerd does not answer.
    async fn look(&self, pod: &Arc<Pod>, purpose: Purpose) -> Option<(Arc<Observed>, Plan)> {
        let observed = match observe(&self.node.cri, &self.node.cache, &self.uid).await {
            Ok(observed) => Arc::new(observed),
            Err(error) => {
                tracing::warn!(pod = %spec::full_name(pod), %error, "cannot observe the pod");
                return None;
            }
        };
        {
            let mut owners = self.node.owners.lock();
            let ids = observed.containers.iter().map(|c| &c.id).chain(observed.sandboxes.iter().map(|s| &s.id));
            for id in ids {
                owners.insert(id.clone(), self.uid.clone());
            }
        }
        let stopping = spec::is_deleting(pod) || self.memory.lock().ended.is_some();
        self.probes.sync(pod, &observed, &self.pod_ip(pod, &observed), stopping);
        let now = Timestamp::now();
        let plan = {
            let mut memory = self.memory.lock();
            memory.probes = self.probes.views();
            let plan = plan(pod, &observed, &memory, now);
            if let Some(ended) = &plan.ended {
                memory.ended = Some(ended.clone());
                self.node.recorder.pod(pod, Level::Normal, "DeadlineExceeded", ended.message.clone());
            }
            // In the middle of a start its back-off already counts the start itself.
            let held = if purpose == Purpose::Act { plan.waiting.as_slice() } else { &[] };
            for (name, kind, waiting) in held {
                if memory.waiting.get(name) != Some(waiting) {
                    let message = format!("Back-off restarting failed container {name} in pod {}", spec::full_name(pod));
                    self.node.recorder.container(pod, *kind, name, Level::Warning, "BackOff", message);
                    memory.waiting.insert(name.clone(), waiting.clone());
                }
            }
            plan
        };
        self.report(pod, &observed, plan.finished, now);
        Some((observed, plan))
    }

    fn report(&self, pod: &Pod, observed: &Arc<Observed>, finished: bool, now: Timestamp) {
        let mut known = pod.clone();
        // What was reported last is newer than what the watch has brought back.
        if let Some(last) = self.view.lock().status.clone() {
            known.status = Some(with_foreign_conditions(last, pod));
        }
        let status = {
            let memory = self.memory.lock();
            pod_status(&known, observed, &memory, &self.node.status_node(), finished, now)
        };
        // A pod that has left the API has no status to write.
        let removed = self.memory.lock().removed;
        let mut view = self.view.lock();
        view.observed = observed.clone();
        view.status = Some(status.clone());
        drop(view);
        if !removed {
            self.writer.set(pod, status);
        }
    }

    /// Waits until the status that was reported last is in the API.
    pub(crate) async fn flush_status(&self) {
        self.writer.flush().await;
    }

    pub(crate) fn pod_ip(&self, pod: &Pod, observed: &Observed) -> String {
        let sandbox = observed.ready_sandbox().and_then(|s| s.ips.first().cloned());
        if spec::host_network(pod) {
            return self.node.config.node_ips.first().map(ToString::to_string).unwrap_or_default();
        }
        sandbox.unwrap_or_default()
    }

    async fn wait(&mut self, wake_at: Option<Timestamp>, refresh: Option<Timestamp>) {
        let mut at = wake_at;
        if let Some(refresh) = refresh {
            sooner(&mut at, refresh);
        }
        let until = at.map_or(RESYNC, |at| {
            let left = at.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or(Duration::ZERO).min(RESYNC)
        });
        tokio::select! {
            _ = self.desired.changed() => {}
            () = self.wake.notified() => {}
            () = tokio::time::sleep(until) => {}
        }
    }

    /// Brings volumes up to date when it is time; returns when it is next.
    async fn refresh(&self, pod: &Arc<Pod>, observed: &Observed, finished: bool) -> Option<Timestamp> {
        if finished || !observed.any_running() || !volumes::need_refresh(pod) || !self.memory.lock().volumes_ready {
            return None;
        }
        let now = Timestamp::now();
        let changed = std::mem::replace(&mut *self.refresh_at.lock(), Timestamp::MAX);
        if now < changed && changed != Timestamp::MIN {
            *self.refresh_at.lock() = changed;
            return Some(changed);
        }
        if changed != Timestamp::MIN {
            let place = self.node.place(pod, &[]);
            if let Err(errors) = volumes::prepare(&self.node.objects, &self.node.config.data_dir, pod, &place).await {
                self.volume_errors(pod, &errors);
            }
        }
        // A quarter of spread keeps the pods of a node apart.
        let spread = SignedDuration::from_millis(rand::random_range(0..REFRESH.as_millis() as i64 / 4));
        let next = now.checked_add(REFRESH + spread).ok()?;
        *self.refresh_at.lock() = next;
        Some(next)
    }

    pub(crate) fn volume_errors(&self, pod: &Pod, errors: &[volumes::VolumeError]) {
        for error in errors {
            let message = format!("MountVolume.SetUp failed for volume \"{}\" : {}", error.volume, error.message);
            self.node.recorder.pod(pod, Level::Warning, "FailedMount", message);
        }
    }

    async fn is_forgotten(&self, pod: &Pod) -> bool {
        match observe(&self.node.cri, &self.node.cache, &self.uid).await {
            Ok(left) => left.containers.is_empty() && left.sandboxes.is_empty(),
            Err(error) => {
                tracing::warn!(pod = %spec::full_name(pod), %error, "cannot see whether the pod is gone");
                tokio::time::sleep(Duration::from_secs(1)).await;
                false
            }
        }
    }
}

/// The status reported last, with the conditions that others have written since.
fn with_foreign_conditions(mut last: PodStatus, pod: &Pod) -> PodStatus {
    let ours = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
    let foreign = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).filter(|c| !ours.contains(&c.type_.as_str()));
    let mut conditions = last.conditions.take().unwrap_or_default();
    conditions.retain(|c| ours.contains(&c.type_.as_str()));
    conditions.extend(foreign.cloned());
    last.conditions = Some(conditions);
    last
}

/// Ends when what is being executed is no longer what the API wants: the pod is being deleted,
/// sooner than before, or gone.
async fn interrupted(mut desired: watch::Receiver<Desired>, before: Desired) {
    let urgency =
        |d: &Desired| (d.removed, spec::is_deleting(&d.pod), if spec::is_deleting(&d.pod) { spec::grace_seconds(&d.pod) } else { 0 });
    let started = urgency(&before);
    loop {
        let now = urgency(&desired.borrow_and_update());
        // A pod already on its way down is left to it when it only vanished from the API.
        if now != started && !(started.1 && now.0 && now.2 == started.2) {
            return;
        }
        if desired.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
