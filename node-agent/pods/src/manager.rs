//! The node's pods: watches the API for them and keeps one worker each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri_api;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, PodSpec, PodStatus, Service};
use kube::api::Api;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cri::Cri;
use crate::error::Error;
use crate::execute::{self, owner_uid};
use crate::logs::rotate;
use crate::memory::{Memory, Waiting};
use crate::node_state::NodeState;
use crate::objects::Objects;
use crate::observe::observe;
use crate::recorder::{Level, Recorder};
use crate::resources;
use crate::runtime_events;
use crate::spec;
use crate::volumes;
use crate::worker::{Desired, Worker};

/// A look at everything containerd holds, should events have been lost.
const RELIST: Duration = Duration::from_secs(30);
/// How often log sizes are looked at.
const ROTATION: Duration = Duration::from_secs(10);
/// Without a successful relist for so long the node is not healthy (kubelet's PLEG threshold).
const RELIST_OVERDUE: SignedDuration = SignedDuration::from_secs(180);

/// Runs the pods that the API binds to this node.
pub struct PodManager {
    pub(crate) node: Arc<NodeState>,
    pub(crate) cri: Cri,
    writers: Mutex<Option<(Writer<Service>, Writer<ApiNode>)>>,
    /// The last relist that succeeded.
    listed: Mutex<Timestamp>,
    /// Container states at the last relist, by id.
    states: Mutex<HashMap<String, i32>>,
}

impl PodManager {
    /// Connects to containerd and makes the node's `kubepods` cgroup. Nothing runs before
    /// [`PodManager::run`].
    ///
    /// # Errors
    /// When containerd does not answer, or a directory or cgroup cannot be made.
    pub async fn start(config: Config, client: kube::Client) -> Result<Arc<PodManager>, Error> {
        let cri = Cri::connect(&config.containerd_socket).await?;
        for dir in [&config.data_dir, &config.log_dir] {
            std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        }
        let cgroups = Cgroups::new(&config.cgroup_parent).map_err(Error::io(&config.cgroup_parent))?;
        let (services, services_writer) = reflector::store();
        let (api_node, node_writer) = reflector::store();
        let node = NodeState {
            recorder: Recorder::start(client.clone(), config.node_name.clone()),
            objects: Objects::new(client.clone()),
            images: Default::default(),
            cache: Default::default(),
            workers: Mutex::default(),
            owners: Mutex::default(),
            config,
            client,
            cri: cri.clone(),
            cgroups,
            services,
            node: api_node,
        };
        Ok(Arc::new(PodManager {
            node: Arc::new(node),
            cri,
            writers: Mutex::new(Some((services_writer, node_writer))),
            listed: Mutex::new(Timestamp::now()),
            states: Mutex::default(),
        }))
    }

    /// Serves until cancelled. Cancelling stops the manager alone: containers go on.
    ///
    /// # Errors
    /// Never at present: what fails is tried again.
    pub async fn run(self: &Arc<Self>, cancel: CancellationToken) -> Result<(), Error> {
        let writers = self.writers.lock().take();
        if let Some((services, node)) = writers {
            self.keep(services, watcher::Config::default(), &cancel);
            self.keep(node, watcher::Config::default().fields(&format!("metadata.name={}", self.node.config.node_name)), &cancel);
        }
        let events = runtime_events::listen(self.clone(), cancel.clone());
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.watch_pods() => {}
            () = self.relist_for_ever() => {}
            () = self.rotate_logs() => {}
            () = events => {}
        }
        Ok(())
    }

    /// Keeps a store of all objects of a kind up to date.
    fn keep<K>(&self, writer: Writer<K>, config: watcher::Config, cancel: &CancellationToken)
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let api: Api<K> = Api::all(self.node.client.clone());
        let stream = reflector(writer, watcher(api, config).modify(drop_managed_fields)).default_backoff();
        let cancel = cancel.clone();
        tokio::spawn(async move {
            let drain = stream.for_each(|event| {
                if let Err(error) = event {
                    tracing::warn!(kind = std::any::type_name::<K>(), error = crate::error::chain(&error), "watch broken");
                }
                std::future::ready(())
            });
            tokio::select! {
                () = cancel.cancelled() => {}
                () = drain => {}
            }
        });
    }

    async fn watch_pods(self: &Arc<Self>) {
        let api: Api<Pod> = Api::all(self.node.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node.config.node_name));
        let mut stream = watcher(api, config).modify(drop_managed_fields).default_backoff().boxed();
        let mut listed: Option<HashMap<String, ()>> = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = Some(HashMap::new()),
                Ok(watcher::Event::InitApply(pod)) => {
                    if let Some(listed) = &mut listed {
                        listed.insert(spec::uid(&pod).to_owned(), ());
                    }
                    self.apply(pod);
                }
                Ok(watcher::Event::InitDone) => {
                    let listed = listed.take().unwrap_or_default();
                    let gone: Vec<String> = self.node.workers.lock().keys().filter(|uid| !listed.contains_key(*uid)).cloned().collect();
                    gone.iter().for_each(|uid| self.removed(uid));
                    let manager = self.clone();
                    tokio::spawn(async move { manager.remove_orphans(&listed).await });
                }
                Ok(watcher::Event::Apply(pod)) => self.apply(pod),
                Ok(watcher::Event::Delete(pod)) => {
                    self.update(Arc::new(pod.clone()));
                    self.removed(spec::uid(&pod));
                }
                Err(error) => tracing::warn!(error = crate::error::chain(&error), "watch of pods broken"),
            }
        }
    }

    /// Hands a pod to its worker, a new one when there is none.
    fn apply(&self, pod: Pod) {
        let pod = Arc::new(pod);
        if self.update(pod.clone()) {
            return;
        }
        let mut memory = Memory::default();
        let status = pod.status.as_ref();
        let seen_before = status.is_some_and(|s| s.start_time.is_some());
        memory.start_time = status.and_then(|s| s.start_time.clone()).map(|t| t.0).or_else(|| Some(Timestamp::now()));
        memory.waiting = held_back(&pod);
        if !seen_before && !spec::is_deleting(&pod) && !spec::api_terminal(&pod) {
            memory.ended = self.refuse(&pod);
            if let Some(ended) = &memory.ended {
                let reason = match ended.reason.as_str() {
                    "OutOfcpu" => "OutOfcpu",
                    "OutOfmemory" => "OutOfmemory",
                    "OutOfpods" => "OutOfpods",
                    "NodeAffinity" => "NodeAffinity",
                    "NodePorts" => "NodePorts",
                    "SysctlForbidden" => "SysctlForbidden",
                    _ => "UnexpectedAdmissionError",
                };
                let message = ended.message.trim_start_matches("Pod was rejected: ").to_owned();
                self.node.recorder.pod(&pod, Level::Warning, reason, message);
            }
        }
        let handle = Worker::spawn(self.node.clone(), pod.clone(), memory);
        self.node.workers.lock().insert(spec::uid(&pod).to_owned(), handle);
        self.share_burstable();
    }

    fn refuse(&self, pod: &Pod) -> Option<crate::memory::Ended> {
        let others: Vec<Arc<Pod>> = self.active_pods();
        let others: Vec<&Pod> = others.iter().map(Arc::as_ref).collect();
        let node = self.node.api_node();
        let config = &self.node.config;
        admission::refuse(pod, node.as_deref(), &others, config.max_pods, &config.allowed_unsafe_sysctls)
    }

    /// Pods that take resources: neither ended nor gone.
    fn active_pods(&self) -> Vec<Arc<Pod>> {
        let workers = self.node.workers.lock();
        let pods = workers.values().filter(|w| {
            let ended = w.view.lock().status.as_ref().and_then(|s| s.phase.clone());
            !matches!(ended.as_deref(), Some("Succeeded" | "Failed"))
        });
        pods.map(|w| w.desired.borrow().pod.clone()).filter(|p| !spec::api_terminal(p)).collect()
    }

    fn update(&self, pod: Arc<Pod>) -> bool {
        let workers = self.node.workers.lock();
        let Some(worker) = workers.get(spec::uid(&pod)) else { return false };
        let reported = worker.view.lock().status.clone();
        worker.desired.send_if_modified(|current| {
            // The echo of a status this node wrote asks for nothing.
            let changed = current.pod.metadata.resource_version != pod.metadata.resource_version;
            // But a readiness that another took away is written again.
            let contested = reported.is_some_and(|r| readiness(Some(&r)) != readiness(pod.status.as_ref()));
            let relevant = changed && (contested || differs_beyond_own_status(&current.pod, &pod));
            current.pod = pod.clone();
            relevant
        });
        true
    }

    fn removed(&self, uid: &str) {
        if let Some(worker) = self.node.workers.lock().get(uid) {
            worker.desired.send_modify(|current: &mut Desired| current.removed = true);
        }
        self.share_burstable();
    }

    fn share_burstable(&self) {
        let burstable = self.active_pods().into_iter().filter(|p| resources::qos(p) == resources::Qos::Burstable);
        let milli: i64 = burstable.map(|p| resources::pod_requests(&p).get("cpu").map_or(0, |a| a.milli())).sum();
        if let Err(error) = self.node.cgroups.set_burstable_shares(resources::cpu_shares(milli)) {
            tracing::warn!(%error, "CPU share of burstable pods not set");
        }
    }

    /// Sandboxes, containers, directories and cgroups of pods that the API does not know (any more):
    /// what a node was running when it lost its agent and the pods were deleted meanwhile.
    async fn remove_orphans(self: &Arc<Self>, listed: &HashMap<String, ()>) {
        let known = |uid: &str| listed.contains_key(uid) || self.node.workers.lock().contains_key(uid);
        let sandboxes = self.cri.list_pod_sandbox(cri_api::ListPodSandboxRequest::default()).await;
        let containers = self.cri.list_containers(cri_api::ListContainersRequest::default()).await;
        let mut orphans: HashMap<String, HashMap<String, String>> = HashMap::new();
        for labels in sandboxes
            .iter()
            .flat_map(|s| s.items.iter().map(|i| &i.labels))
            .chain(containers.iter().flat_map(|c| c.containers.iter().map(|i| &i.labels)))
        {
            if let Some(uid) = owner_uid(labels).filter(|uid| !known(uid)) {
                orphans.insert(uid.clone(), labels.clone());
            }
        }
        for (uid, labels) in orphans {
            tracing::info!(uid, "removing a pod that the API no longer has");
            let pod = orphan_pod(&uid, &labels);
            let memory = Memory { start_time: Some(Timestamp::now()), removed: true, ..Default::default() };
            let handle = Worker::spawn(self.node.clone(), Arc::new(pod), memory);
            handle.desired.send_modify(|d| d.removed = true);
            self.node.workers.lock().insert(uid, handle);
        }
        let alive = |uid: &str| known(uid);
        for entry in std::fs::read_dir(self.node.config.data_dir.join("pods")).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if !alive(&uid)
                && let Err(error) = volumes::remove_pod_dir(&self.node.config.data_dir, &uid)
            {
                tracing::warn!(uid, %error, "directory of a pod that is gone not removed");
            }
        }
        for cgroup in self.node.cgroups.pods() {
            let uid = cgroup.rsplit_once("pod").map_or("", |(_, uid)| uid);
            if !alive(uid) {
                execute::remove_cgroup(&self.node.cgroups, &cgroup).await;
            }
        }
    }

    async fn relist_for_ever(&self) {
        loop {
            match self.relist().await {
                Ok(()) => *self.listed.lock() = Timestamp::now(),
                Err(error) => tracing::warn!(%error, "relist failed"),
            }
            tokio::time::sleep(RELIST).await;
        }
    }

    async fn rotate_logs(&self) {
        loop {
            tokio::time::sleep(ROTATION).await;
            let views: Vec<_> = self.node.workers.lock().values().map(|w| w.view.lock().observed.clone()).collect();
            for container in views.iter().flat_map(|v| v.containers.iter()).filter(|c| c.is_running()) {
                let path = std::path::Path::new(&container.log_path);
                if rotate::is_due(path)
                    && let Err(error) = self.rotate_log(&container.id, path).await
                {
                    tracing::warn!(log = container.log_path, error, "log not rotated");
                }
            }
        }
    }

    async fn rotate_log(&self, id: &str, path: &std::path::Path) -> Result<(), String> {
        let aside = rotate::rotate(path, Timestamp::now()).map_err(|e| e.to_string())?;
        let request = cri_api::ReopenContainerLogRequest { container_id: id.to_owned() };
        if let Err(error) = self.cri.reopen_container_log(request).await {
            rotate::undo(path, &aside).map_err(|e| e.to_string())?;
            return Err(error.to_string());
        }
        Ok(())
    }

    /// Wakes the workers of containers whose state is not what it was.
    pub(crate) async fn relist(&self) -> Result<(), Error> {
        let containers = self.cri.list_containers(cri_api::ListContainersRequest::default()).await?.containers;
        let sandboxes = self.cri.list_pod_sandbox(cri_api::ListPodSandboxRequest::default()).await?.items;
        let mut now: HashMap<String, (i32, Option<String>)> = HashMap::new();
        for c in containers {
            now.insert(c.id, (c.state, owner_uid(&c.labels).cloned()));
        }
        for s in sandboxes {
            now.insert(s.id, (s.state, owner_uid(&s.labels).cloned()));
        }
        let before = std::mem::replace(&mut *self.states.lock(), now.iter().map(|(id, (state, _))| (id.clone(), *state)).collect());
        for (id, (state, uid)) in &now {
            if before.get(id) != Some(state)
                && let Some(uid) = uid
            {
                self.wake(uid);
            }
        }
        for id in before.keys().filter(|id| !now.contains_key(*id)) {
            let uid = self.node.owners.lock().get(id).cloned();
            if let Some(uid) = uid {
                self.wake(&uid);
            }
        }
        Ok(())
    }

    /// Something happened to a container or sandbox.
    pub(crate) fn runtime_event(&self, id: &str) {
        let uid = self.node.owners.lock().get(id).cloned();
        if let Some(uid) = uid {
            self.wake(&uid);
        }
    }

    fn wake(&self, uid: &str) {
        if let Some(worker) = self.node.workers.lock().get(uid) {
            worker.wake.notify_one();
        }
    }

    /// `Err` says what is wrong: the runtime has not answered a relist for too long.
    ///
    /// # Errors
    /// A text in kubelet's words.
    pub fn healthy(&self) -> Result<(), String> {
        let age = Timestamp::now().duration_since(*self.listed.lock());
        if age > RELIST_OVERDUE {
            return Err(format!(
                "PLEG is not healthy: pleg was last seen active {}s ago; threshold is {}s",
                age.as_secs(),
                RELIST_OVERDUE.as_secs()
            ));
        }
        Ok(())
    }

    /// The pods bound to this node, each with the status as this node sees it (kubelet's `/pods`).
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        let workers = self.node.workers.lock();
        workers
            .values()
            .map(|worker| {
                let mut pod = worker.desired.borrow().pod.as_ref().clone();
                if let Some(status) = worker.view.lock().status.clone() {
                    pod.status = Some(status);
                }
                Arc::new(pod)
            })
            .collect()
    }

    /// The state of one pod as its worker last saw it.
    pub(crate) async fn observed(&self, uid: &str) -> Result<crate::observe::Observed, Error> {
        observe(&self.cri, &self.node.cache, uid).await
    }
}

fn drop_managed_fields<K: kube::Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

fn readiness(status: Option<&PodStatus>) -> Vec<(&str, &str)> {
    let conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut found: Vec<_> =
        conditions.filter(|c| c.type_ == "Ready" || c.type_ == "ContainersReady").map(|c| (c.type_.as_str(), c.status.as_str())).collect();
    found.sort_unstable();
    found
}

/// Whether an update brings more than a status. Conditions count: readiness gates are written by others.
fn differs_beyond_own_status(old: &Pod, new: &Pod) -> bool {
    let foreign = |pod: &Pod| -> Vec<(String, String)> {
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ours = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
        conditions.filter(|c| !ours.contains(&c.type_.as_str())).map(|c| (c.type_.clone(), c.status.clone())).collect()
    };
    let mut old_meta = old.metadata.clone();
    old_meta.resource_version = new.metadata.resource_version.clone();
    old_meta != new.metadata || old.spec != new.spec || foreign(old) != foreign(new) || spec::api_terminal(old) != spec::api_terminal(new)
}

/// Why containers did not run when the agent before this one last looked: it stays true until they do.
fn held_back(pod: &Pod) -> HashMap<String, Waiting> {
    let status = pod.status.iter();
    let all = status.flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
    all.filter_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone().filter(|r| r != "ContainerCreating" && r != "PodInitializing")?;
        Some((c.name.clone(), Waiting { reason, message: waiting.message.clone().unwrap_or_default() }))
    })
    .collect()
}

/// As much of a pod as its containers' labels tell.
fn orphan_pod(uid: &str, labels: &HashMap<String, String>) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(uid.to_owned());
    pod.metadata.name = labels.get(crate::labels::POD_NAME).cloned();
    pod.metadata.namespace = labels.get(crate::labels::POD_NAMESPACE).cloned();
    // Nobody waits for it: as upstream, it gets no more than a moment to end.
    pod.spec = Some(PodSpec { termination_grace_period_seconds: Some(1), ..Default::default() });
    pod
}
