//! Namespace: empties a namespace that is being deleted, of every kind, and then lets it go.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use xebec_loops::meta::deleting;
use xebec_loops::{Cache, Error, Key, Outcome, api_message, clock, ignore_not_found};

use crate::discovery::{Kind, deletable};
use crate::setup::Setup;
use status::Findings;

const FINALIZER: &str = "kubernetes";

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let (client, namespaces, pods) = (setup.client.clone(), setup.cache::<Namespace>(), setup.cache::<Pod>());
    let cache = namespaces.clone();
    let queue = setup.control_loop("namespace", &namespaces, 5, move |key| {
        let (client, cache) = (client.clone(), cache.clone());
        async move { reconcile(&client, &cache, key).await }
    });
    // The last pod gone is mostly what a namespace waits for.
    pods.on_change(move |c| {
        if let (Some(old), None) = (c.old, c.new) {
            let key = Key::new("", old.metadata.namespace.clone().unwrap_or_default());
            if namespaces.get(&key).is_some_and(|n| deleting(&n.metadata)) {
                queue.add(key);
            }
        }
    });
}

async fn reconcile(client: &kube::Client, cache: &Cache<Namespace>, key: Key) -> Result<Outcome, Error> {
    let Some(namespace) = cache.get(&key) else { return Ok(Outcome::Done) };
    let has_finalizer = namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).any(|f| f == FINALIZER);
    if !deleting(&namespace.metadata) || !has_finalizer {
        return Ok(Outcome::Done);
    }
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = if namespace.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating") {
        namespace
    } else {
        let mut changed = (*namespace).clone();
        changed.status.get_or_insert_default().phase = Some("Terminating".into());
        let written = api.replace_status(&key.name, &PostParams::default(), &changed).await?;
        cache.observe(written.clone());
        Arc::new(written)
    };
    let findings = empty(client, &key.name).await;
    let mut namespace = (*namespace).clone();
    let conditions = status::conditions(&namespace, &findings, &clock::now());
    if namespace.status.as_ref().and_then(|s| s.conditions.as_ref()) != Some(&conditions) {
        namespace.status.get_or_insert_default().conditions = Some(conditions);
        namespace = api.replace_status(&key.name, &PostParams::default(), &namespace).await?;
        cache.observe(namespace.clone());
    }
    if !findings.errors.is_empty() || findings.discovery_error.is_some() {
        let all: Vec<&String> = findings.errors.iter().chain(&findings.discovery_error).collect();
        return Err(Error::Retry(format!("content of namespace {} cannot be deleted: {all:?}", key.name)));
    }
    if !findings.remaining.is_empty() {
        return Ok(Outcome::Again(Duration::from_secs_f64(findings.wait_seconds.clamp(0.5, 15.0))));
    }
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    let answer = api.replace_subresource("finalize", &key.name, &PostParams::default(), &namespace).await;
    ignore_not_found(answer)?;
    Ok(Outcome::Done)
}

/// Deletes everything in the namespace, pods first (KEP-5080), and says what is left.
async fn empty(client: &kube::Client, namespace: &str) -> Findings {
    let mut findings = Findings::default();
    let kinds = match deletable(client).await {
        Ok(kinds) => kinds,
        Err(error) => {
            findings.discovery_error = Some(error.to_string());
            return findings;
        }
    };
    let (pods, others): (Vec<_>, Vec<_>) = kinds.into_iter().filter(|k| k.namespaced).partition(|k| k.group.is_empty() && k.kind == "Pod");
    for kind in pods {
        empty_kind(client, namespace, &kind, &mut findings).await;
    }
    if findings.remaining.is_empty() && findings.errors.is_empty() {
        for kind in others {
            empty_kind(client, namespace, &kind, &mut findings).await;
        }
    }
    findings
}

async fn empty_kind(client: &kube::Client, namespace: &str, kind: &Kind, findings: &mut Findings) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::namespaced_with(client.clone(), namespace, &kind.resource());
    let listed = |answer: Result<kube::core::ObjectList<_>, kube::Error>| match answer {
        Ok(list) => Ok(list.items),
        // The kind was discovered but went away, or cannot be listed.
        Err(kube::Error::Api(s)) if s.code == 404 || s.code == 405 => Ok(Vec::new()),
        Err(e) => Err(api_message(&e)),
    };
    let before: Vec<PartialObjectMeta<DynamicObject>> = match listed(api.list(&ListParams::default()).await) {
        Ok(items) => items,
        Err(e) => return findings.errors.push(e),
    };
    if before.is_empty() {
        return;
    }
    let name = if kind.group.is_empty() { format!("{}.", kind.plural) } else { format!("{}.{}", kind.plural, kind.group) };
    for object in &before {
        // One at a time: a collection that is refused at one object would leave the rest.
        if deleting(&object.metadata) {
            continue;
        }
        let object_name = object.metadata.name.clone().unwrap_or_default();
        match ignore_not_found(api.delete(&object_name, &DeleteParams::background()).await) {
            Ok(_) | Err(kube::Error::SerdeError(_)) => {}
            Err(e) => findings.errors.push(api_message(&e)),
        }
    }
    let after = match listed(api.list(&ListParams::default()).await) {
        Ok(items) => items,
        Err(e) => return findings.errors.push(e),
    };
    if after.is_empty() {
        return;
    }
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    for object in &after {
        for f in object.metadata.finalizers.iter().flatten() {
            *finalizers.entry(f.clone()).or_default() += 1;
        }
        let grace = object.metadata.deletion_grace_period_seconds.unwrap_or(0);
        findings.wait_seconds = findings.wait_seconds.max(grace as f64 / 2.0);
    }
    findings.remaining.insert(name, after.len());
    for (f, n) in finalizers {
        *findings.finalizers.entry(f).or_default() += n;
    }
}
