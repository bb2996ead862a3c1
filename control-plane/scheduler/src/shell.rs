//! The scheduler's I/O: watches in, bindings, conditions, evictions and events out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use xebec_loops::events::reference;
use xebec_loops::pod::{condition, is_terminal, node_name};
use xebec_loops::{Cache, EventType, Informers, Recorder, clock, ignore_not_found, meta};

use crate::cluster::Cluster;
use crate::pod_info::PodInfo;
use crate::preempt::{Preemption, preempt};
use crate::queue::{Queue, Waiting, Wake};
use crate::schedule::{Decision, schedule};
use crate::{Error, SCHEDULER_NAME};

/// Writes under way at once.
const WRITERS: usize = 128;

enum Message {
    Pod(Option<Arc<Pod>>, Option<Arc<Pod>>),
    Node(Option<Arc<Node>>, Option<Arc<Node>>),
    Namespace(Option<Arc<Namespace>>, Option<Arc<Namespace>>),
    /// A binding was refused or lost.
    NotBound(Box<Waiting>, String),
}

struct Shell {
    client: kube::Client,
    recorder: Recorder,
    writers: Arc<Semaphore>,
    send: mpsc::UnboundedSender<Message>,
    budgets: Arc<Cache<PodDisruptionBudget>>,
    cluster: Cluster,
    queue: Queue,
    start: usize,
}

pub(crate) async fn run(client: kube::Client, cancel: CancellationToken) -> Result<(), Error> {
    let (send, mut receive) = mpsc::unbounded_channel();
    let mut informers = Informers::new(client.clone(), cancel.clone());
    let (pods, nodes, namespaces) = (informers.cache::<Pod>(), informers.cache::<Node>(), informers.cache::<Namespace>());
    let budgets = informers.cache::<PodDisruptionBudget>();
    let to = send.clone();
    pods.on_change(move |c| drop(to.send(Message::Pod(c.old.cloned(), c.new.cloned()))));
    let to = send.clone();
    nodes.on_change(move |c| drop(to.send(Message::Node(c.old.cloned(), c.new.cloned()))));
    let to = send.clone();
    namespaces.on_change(move |c| drop(to.send(Message::Namespace(c.old.cloned(), c.new.cloned()))));
    let synced = informers.start();
    tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        () = synced => {}
    }
    let mut shell = Shell {
        recorder: Recorder::new_style(client.clone(), SCHEDULER_NAME, format!("{SCHEDULER_NAME}-xebec")),
        client,
        writers: Arc::new(Semaphore::new(WRITERS)),
        send,
        budgets,
        cluster: Cluster::default(),
        queue: Queue::default(),
        start: 0,
    };
    loop {
        while let Ok(message) = receive.try_recv() {
            shell.take_in(message);
        }
        if let Some(waiting) = shell.queue.pop(Instant::now()) {
            shell.decide(waiting);
            // Other tasks of this thread get their turn also when many pods wait.
            tokio::task::yield_now().await;
            continue;
        }
        let pause = shell.queue.next_deadline().map(|d| d.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            message = receive.recv() => if let Some(message) = message { shell.take_in(message) },
            () = tokio::time::sleep(pause.unwrap_or(Duration::from_secs(60))) => {}
        }
    }
}

/// Whether the pod holds a place on its node.
fn placed(pod: &Pod) -> Option<&str> {
    node_name(pod).filter(|_| !is_terminal(pod))
}

/// Whether this scheduler has to find the pod a node.
fn waits(pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
    node_name(pod).is_none() && !is_terminal(pod) && !meta::deleting(&pod.metadata) && scheduler.unwrap_or(SCHEDULER_NAME) == SCHEDULER_NAME
}

/// Whether a change of a waiting pod may let it fit; conditions, which the scheduler itself writes, do not.
fn scheduling_changed(old: &Pod, new: &Pod) -> bool {
    old.spec != new.spec || old.metadata.labels != new.metadata.labels || meta::uid(&old.metadata) != meta::uid(&new.metadata)
}

impl Shell {
    fn take_in(&mut self, message: Message) {
        let now = Instant::now();
        match message {
            Message::Pod(old, new) => self.take_in_pod(old, new, now),
            Message::Node(old, Some(node)) => {
                let helps = old.is_none_or(|old| node_changed(&old, &node));
                self.cluster.set_node(node);
                if helps {
                    self.queue.wake(Wake::Node, now);
                }
            }
            Message::Node(Some(old), None) => {
                self.cluster.remove_node(old.metadata.name.as_deref().unwrap_or_default());
            }
            Message::Namespace(_, Some(namespace)) => {
                let name = namespace.metadata.name.clone().unwrap_or_default();
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                if self.cluster.namespaces.insert(name, labels.clone()).is_some_and(|old| old != labels) {
                    self.queue.wake(Wake::Namespace, now);
                }
            }
            Message::Namespace(Some(old), None) => {
                self.cluster.namespaces.remove(old.metadata.name.as_deref().unwrap_or_default());
            }
            Message::Node(None, None) | Message::Namespace(None, None) => {}
            Message::NotBound(waiting, error) => self.not_bound(*waiting, &error, now),
        }
    }

    fn take_in_pod(&mut self, old: Option<Arc<Pod>>, new: Option<Arc<Pod>>, now: Instant) {
        if let (Some(old), Some(new)) = (&old, &new)
            && meta::uid(&old.metadata) != meta::uid(&new.metadata)
        {
            self.forget(meta::uid(&old.metadata), now);
        }
        let Some(new) = new else {
            if let Some(old) = old {
                self.forget(meta::uid(&old.metadata), now);
            }
            return;
        };
        let uid = meta::uid(&new.metadata).to_owned();
        if let Some(node) = placed(&new).map(str::to_owned) {
            self.queue.remove(&uid);
            let known = self.cluster.bound.get(&uid) == Some(&node);
            let changed =
                old.as_ref().is_none_or(|o| scheduling_changed(o, &new) || meta::deleting(&o.metadata) != meta::deleting(&new.metadata));
            if !known || changed {
                self.cluster.place(Arc::new(PodInfo::new(new)), &node);
                self.queue.wake(Wake::PodPlaced, now);
            }
        } else if waits(&new) {
            if self.cluster.bound.contains_key(&uid) {
                // Assumed already: this is news from before the binding.
                return;
            }
            let info = Arc::new(PodInfo::new(new.clone()));
            match new.status.as_ref().and_then(|s| s.nominated_node_name.clone()) {
                Some(node) => self.cluster.nominate(info.clone(), &node),
                None => self.cluster.unnominate(&uid),
            }
            if self.queue.get(&uid).is_none() || old.is_none_or(|old| scheduling_changed(&old, &new)) {
                self.queue.add(info, now);
            } else {
                self.queue.refresh(info);
            }
        } else {
            self.forget(&uid, now);
        }
    }

    fn forget(&mut self, uid: &str, now: Instant) {
        self.queue.remove(uid);
        let promised = self.cluster.nominated.values().any(|p| p.contains_key(uid));
        self.cluster.unnominate(uid);
        if self.cluster.unplace(uid).is_some() || promised {
            self.queue.wake(Wake::PodGone, now);
        }
    }

    fn decide(&mut self, waiting: Waiting) {
        let pod = waiting.pod.clone();
        match schedule(&self.cluster, &pod, self.start, rand::random()) {
            Decision::Place { node, next_start } => {
                self.start = next_start;
                self.cluster.place(pod, &node);
                self.bind(waiting, node);
            }
            Decision::Unschedulable(diagnosis) => {
                let (text, nominated) = if diagnosis.nodes == 0 {
                    (diagnosis.message(None), None)
                } else {
                    match preempt(&self.cluster, &pod, &diagnosis, &self.budgets.list()) {
                        Preemption::Evict { node, victims } => {
                            self.cluster.nominate(pod.clone(), &node);
                            self.evict(&pod, &node, victims);
                            (diagnosis.message(None), Some(node))
                        }
                        Preemption::Useless(why) => {
                            let post_filter = format!("no new claims to deallocate, preemption: {why}");
                            (diagnosis.message(Some(&post_filter)), None)
                        }
                    }
                };
                let plugins = diagnosis.plugins();
                tracing::debug!(pod = %meta::Key::of(&*pod.pod), text, "no node fits");
                self.tell_failure(&pod, "Unschedulable", &text, nominated);
                self.queue.unschedulable(waiting, plugins, Instant::now());
            }
        }
    }

    fn bind(&self, waiting: Waiting, node: String) {
        let (client, recorder, send, writers) = (self.client.clone(), self.recorder.clone(), self.send.clone(), self.writers.clone());
        tokio::spawn(async move {
            let _writer = writers.acquire_owned().await;
            let pod = waiting.pod.clone();
            let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
            let binding = Binding {
                metadata: ObjectMeta {
                    name: Some(pod.name.clone()),
                    namespace: Some(pod.namespace.clone()),
                    uid: Some(pod.uid.clone()),
                    ..Default::default()
                },
                target: ObjectReference { kind: Some("Node".into()), name: Some(node.clone()), ..Default::default() },
            };
            let answer: Result<serde_json::Value, _> = api.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await;
            match answer {
                Ok(_) => {
                    let text = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                    recorder.event_on(reference(&*pod.pod), EventType::Normal, "Scheduled", "Binding", text);
                }
                Err(error) => {
                    let text = xebec_loops::api_message(&error);
                    drop(send.send(Message::NotBound(Box::new(waiting), text)));
                }
            }
        });
    }

    fn not_bound(&mut self, waiting: Waiting, error: &str, now: Instant) {
        let pod = waiting.pod.clone();
        if self.cluster.unplace(&pod.uid).is_none() {
            // The pod itself is gone, which is why it could not be bound.
            return;
        }
        self.queue.wake(Wake::PodGone, now);
        tracing::warn!(pod = %meta::Key::of(&*pod.pod), error, "binding failed, will retry");
        self.tell_failure(&pod, "SchedulerError", &format!("binding rejected: {error}"), None);
        self.queue.failed(waiting, now);
    }

    /// The condition and the event that say why a pod has no node.
    fn tell_failure(&self, pod: &Arc<PodInfo>, reason: &'static str, text: &str, nominated: Option<String>) {
        self.recorder.event_on(reference(&*pod.pod), EventType::Warning, "FailedScheduling", "Scheduling", text);
        let old = condition(&pod.pod, "PodScheduled");
        let had = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.clone());
        let same = old.is_some_and(|c| c.status == "False" && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(text));
        if same && (nominated.is_none() || nominated == had) {
            return;
        }
        let transition = old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some(reason.into()),
            message: Some(text.into()),
            last_transition_time: Some(transition.unwrap_or_else(clock::now)),
            observed_generation: pod.pod.metadata.generation,
            ..Default::default()
        };
        let mut status = json!({ "conditions": [condition] });
        if let Some(node) = nominated {
            status["nominatedNodeName"] = json!(node);
        }
        let patch = json!({ "metadata": { "uid": pod.uid }, "status": status });
        let (client, writers, pod) = (self.client.clone(), self.writers.clone(), pod.clone());
        tokio::spawn(async move {
            let _writer = writers.acquire_owned().await;
            let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
            let answer = api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            if let Err(error) = ignore_not_found(answer) {
                tracing::debug!(pod = pod.name, %error, "condition not written");
            }
        });
    }

    fn evict(&self, preemptor: &Arc<PodInfo>, node: &str, victims: Vec<Arc<PodInfo>>) {
        for victim in victims {
            let text = format!("Preempted by pod {} on node {node}", preemptor.uid);
            self.recorder.event_on(reference(&*victim.pod), EventType::Normal, "Preempted", "Preempting", text);
            if meta::deleting(&victim.pod.metadata) {
                continue;
            }
            let condition = PodCondition {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
                reason: Some("PreemptionByScheduler".into()),
                message: Some(format!("{SCHEDULER_NAME}: preempting to accommodate a higher priority pod")),
                last_transition_time: Some(clock::now()),
                observed_generation: victim.pod.metadata.generation,
                ..Default::default()
            };
            let (client, writers) = (self.client.clone(), self.writers.clone());
            tokio::spawn(async move {
                let _writer = writers.acquire_owned().await;
                let api: Api<Pod> = Api::namespaced(client, &victim.namespace);
                let patch = Patch::Strategic(json!({ "metadata": { "uid": victim.uid }, "status": { "conditions": [condition] } }));
                let told = ignore_not_found(api.patch_status(&victim.name, &PatchParams::default(), &patch).await);
                let exactly = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
                let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
                let gone = ignore_not_found(api.delete(&victim.name, &params).await);
                if let Some(error) = told.err().or(gone.err()) {
                    tracing::warn!(pod = victim.name, %error, "pod to make room for another was not removed");
                }
            });
        }
    }
}

/// Whether a node's change may let a pod fit; heartbeats do not.
fn node_changed(old: &Node, new: &Node) -> bool {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    old.spec != new.spec || old.metadata.labels != new.metadata.labels || allocatable(old) != allocatable(new)
}
