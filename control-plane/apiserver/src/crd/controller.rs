//! Follows the definitions: rows come and go, conditions say so, instances of a deleted definition are deleted.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use chrono::Utc;
use tokio_util::sync::CancellationToken;
use xebec_api::{Document, meta, status::ApiError};

use super::define;
use crate::{
    cache::{Start, WatchScope},
    core::Core,
    registry::internal,
};

/// Where definitions are stored.
pub(crate) const CRD_STORAGE: &str = "apiextensions.k8s.io/customresourcedefinitions";
/// Holds a deleted definition until its instances are gone.
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Instances that wait for their own finalizers are looked at again without an event.
const UNFINISHED: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(300);

/// Runs until cancelled or the server is gone.
pub(crate) async fn run(core: Weak<Core>, cancel: CancellationToken) {
    loop {
        let Some(strong) = core.upgrade() else { return };
        let Some(kind) = strong.hub.kind(CRD_STORAGE) else { return };
        let Ok(mut subscription) = kind.subscribe(WatchScope::default(), Start::Present) else { return };
        let mut wait = step(&strong).await;
        drop((strong, kind));
        loop {
            let again = tokio::time::sleep(wait);
            let event = tokio::select! {
                () = cancel.cancelled() => return,
                event = subscription.events.recv() => event.map(|_| ()),
                () = again => Some(()),
            };
            let Some(strong) = core.upgrade() else { return };
            if event.is_none() {
                break;
            }
            while subscription.events.try_recv().is_ok() {}
            wait = step(&strong).await;
        }
    }
}

/// One round; returns how long to wait for the next without an event.
async fn step(core: &Arc<Core>) -> Duration {
    match reconcile(core).await {
        Ok(true) => UNFINISHED,
        Ok(false) => IDLE,
        Err(error) => {
            tracing::warn!(%error, "custom resource definitions not followed, trying again");
            UNFINISHED
        }
    }
}

/// Brings rows and conditions in line with the definitions. True: a deleted one still waits for its instances.
pub(crate) async fn reconcile(core: &Arc<Core>) -> Result<bool, ApiError> {
    let Some(kind) = core.hub.kind(CRD_STORAGE) else { return Ok(false) };
    let mut unfinished = false;
    let definitions: Vec<Document> = kind.snapshot("").0.iter().map(|entry| entry.document()).collect();
    let mut rows = Vec::new();
    let mut prefixes = Vec::new();
    for crd in &definitions {
        let conflicts = define::conflicts(crd, &definitions);
        let (made, problem) = match define::define(crd) {
            Ok(made) => (Some(made), None),
            Err(problem) => (None, Some(problem)),
        };
        let now = meta::timestamp(Utc::now());
        let status = define::status(crd, &conflicts, problem.as_deref(), &now);
        if let Some(made) = made
            && define::is_established(&status)
        {
            core.hub.add(made.stored.clone()).await.map_err(crate::registry::store_error)?;
            prefixes.push(made.stored.storage_prefix.clone());
            rows.extend(made.served);
        }
    }
    // The same definitions give the same rows: exchanged only when one changed.
    let fingerprint: Vec<String> = definitions
        .iter()
        .map(|crd| format!("{}/{}/{}", crd["metadata"]["uid"], crd["metadata"]["generation"], define::is_established(&crd["status"])))
        .collect();
    core.rows.set_custom(rows, fingerprint);
    for kind in core.hub.kinds() {
        let custom = !xebec_api::builtin::resources().iter().any(|r| r.storage_prefix == kind.resource.storage_prefix);
        if custom && !prefixes.contains(&kind.resource.storage_prefix) {
            core.hub.remove(&kind.resource.storage_prefix);
        }
    }
    for crd in &definitions {
        let conflicts = define::conflicts(crd, &definitions);
        let problem = define::define(crd).err();
        let now = meta::timestamp(Utc::now());
        let status = define::status(crd, &conflicts, problem.as_deref(), &now);
        let name = meta::name(crd);
        if status != crd["status"] {
            internal::modify(core, "apiextensions.k8s.io", "customresourcedefinitions", "", name, move |doc| {
                doc["status"] = status.clone();
            })
            .await?;
        }
        if !crd["metadata"]["deletionTimestamp"].is_null() {
            unfinished = true;
            clean_up(core, crd).await?;
        }
    }
    Ok(unfinished)
}

/// Deletes all instances, then lets the definition go.
async fn clean_up(core: &Arc<Core>, crd: &Document) -> Result<(), ApiError> {
    let holds = crd["metadata"]["finalizers"].as_array().is_some_and(|list| list.iter().any(|f| f == FINALIZER));
    if !holds {
        return Ok(());
    }
    if let Ok(made) = define::define(crd)
        && let Some(kind) = core.hub.kind(&made.stored.storage_prefix)
    {
        let left = kind.snapshot("").0;
        for entry in &left {
            internal::delete(core, &made.stored, entry.namespace(), entry.name()).await?;
        }
        if !kind.is_empty() {
            return Ok(());
        }
    }
    internal::remove_finalizer(core, "apiextensions.k8s.io", "customresourcedefinitions", meta::name(crd), FINALIZER).await
}
