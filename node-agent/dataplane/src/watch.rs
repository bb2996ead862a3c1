//! Watches of the API: each turns objects into inputs, cut down to what the dataplane reads.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::Dataplane;
use crate::cluster_dns;
use crate::compile::cluster::{self, ClusterNetworkPolicy};
use crate::compile::input::{self, Key, WatchedSlice};
use crate::compile::rules;
use crate::engine::{Engine, Watch};

/// Starts every watch; the tasks end with `cancel`.
pub fn start(dataplane: &Arc<Dataplane>, cancel: &CancellationToken, tasks: &mut tokio::task::JoinSet<()>) {
    let client = &dataplane.client;
    let all = watcher::Config::default;
    // As kube-proxy: other proxies' Services and headless ones never leave the API server.
    let served = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
    let (services, slices) = (all().labels(served), all().labels(served));
    tasks.spawn(follow::<Service>(
        dataplane.clone(),
        cancel.clone(),
        Api::all(client.clone()),
        services,
        Feed {
            watch: Watch::Services,
            set: |e, key, service| e.state.services.set_service(key, service.and_then(|s| input::service(&s))),
            keys: |e| e.state.services.service_keys(),
        },
    ));
    tasks.spawn(follow::<WatchedSlice>(
        dataplane.clone(),
        cancel.clone(),
        Api::all(client.clone()),
        slices,
        Feed {
            watch: Watch::EndpointSlices,
            set: |e, key, slice| e.state.services.set_slice(key, slice.and_then(input::slice)),
            keys: |e| e.state.services.slice_keys(),
        },
    ));
    tasks.spawn(follow::<Pod>(
        dataplane.clone(),
        cancel.clone(),
        Api::all(client.clone()),
        all(),
        Feed {
            watch: Watch::Pods,
            set: |e, key, pod| {
                let pod = pod.map(|p| input::pod(&p));
                e.tell_of_pod(&key, pod.as_ref());
                e.state.policies.set_pod(key, pod);
            },
            // Cluster DNS stands among the pods without being one.
            keys: |e| e.state.policies.pod_keys().into_iter().filter(|key| *key != cluster_dns::key()).collect(),
        },
    ));
    tasks.spawn(follow::<Namespace>(
        dataplane.clone(),
        cancel.clone(),
        Api::all(client.clone()),
        all(),
        Feed {
            watch: Watch::Namespaces,
            set: |e, key, namespace| e.state.policies.set_namespace(&key.name, namespace.map(|n| input::namespace(&n))),
            keys: |e| e.state.policies.namespace_keys().iter().map(|n| Key::new("", n)).collect(),
        },
    ));
    tasks.spawn(follow::<NetworkPolicy>(
        dataplane.clone(),
        cancel.clone(),
        Api::all(client.clone()),
        all(),
        Feed {
            watch: Watch::NetworkPolicies,
            set: |e, key, policy| e.state.policies.set_policy(key, policy.map(|p| rules::policy(&p))),
            keys: |e| e.state.policies.policy_keys(),
        },
    ));
    tasks.spawn(follow::<ClusterNetworkPolicy>(
        dataplane.clone(),
        cancel.clone(),
        Api::all(client.clone()),
        all(),
        Feed {
            watch: Watch::ClusterNetworkPolicies,
            set: |e, key, object| {
                let policy = object.as_ref().and_then(cluster::policy);
                e.policy_news.seen(&key.name, object.as_ref(), policy.as_ref());
                e.state.policies.set_cluster_policy(&key.name, policy);
            },
            keys: |e| e.state.policies.cluster_policy_keys(),
        },
    ));
    tasks.spawn(follow::<Node>(
        dataplane.clone(),
        cancel.clone(),
        Api::all(client.clone()),
        all(),
        Feed {
            watch: Watch::Nodes,
            set: |e, key, node| {
                e.state.policies.set_cluster_node(&key.name, node.as_ref().map(input::labeled_node));
                e.set_node(key.name, node.map(|n| input::node(&n)));
            },
            keys: Engine::peer_keys,
        },
    ));
}

/// How a kind enters the state.
struct Feed<K> {
    watch: Watch,
    set: fn(&mut Engine, Key, Option<K>),
    keys: fn(&Engine) -> Vec<Key>,
}

async fn follow<K>(dataplane: Arc<Dataplane>, cancel: CancellationToken, api: Api<K>, config: watcher::Config, feed: Feed<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let stream = watcher(api, config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    // Names seen since the list began: what the state has beyond them is gone.
    let mut listed: BTreeSet<Key> = BTreeSet::new();
    let mut failing = false;
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = stream.try_next() => event,
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 && feed.watch.may_be_undefined() => {
                let mut engine = dataplane.engine.lock();
                for key in (feed.keys)(&engine) {
                    (feed.set)(&mut engine, key, None);
                }
                engine.mark_synced(feed.watch);
                drop(engine);
                dataplane.changed.notify_one();
                continue;
            }
            Err(error) => {
                // One line when it starts failing, not one for each retry.
                if !failing {
                    tracing::warn!(watch = ?feed.watch, %error, "the API cannot be watched; the maps stay as they are");
                }
                failing = true;
                continue;
            }
        };
        failing = false;
        let mut engine = dataplane.engine.lock();
        match event {
            watcher::Event::Init => {
                listed.clear();
                continue;
            }
            watcher::Event::InitApply(object) => {
                let key = Key::of(&object);
                listed.insert(key.clone());
                engine.set_version(feed.watch, &key, object.meta().resource_version.clone());
                (feed.set)(&mut engine, key, Some(object));
                continue;
            }
            watcher::Event::InitDone => {
                for key in (feed.keys)(&engine) {
                    if !listed.contains(&key) {
                        engine.set_version(feed.watch, &key, None);
                        (feed.set)(&mut engine, key, None);
                    }
                }
                listed.clear();
                engine.mark_synced(feed.watch);
            }
            watcher::Event::Apply(object) => {
                let key = Key::of(&object);
                engine.set_version(feed.watch, &key, object.meta().resource_version.clone());
                (feed.set)(&mut engine, key, Some(object));
            }
            watcher::Event::Delete(object) => {
                let key = Key::of(&object);
                engine.set_version(feed.watch, &key, None);
                (feed.set)(&mut engine, key, None);
            }
        }
        engine.sync.changed(Instant::now());
        drop(engine);
        dataplane.changed.notify_one();
        if feed.watch == Watch::Nodes {
            dataplane.nodes_changed.notify_one();
        }
    }
}
