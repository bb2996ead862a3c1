//! What a delete request does to an object: nothing yet, mark it, or take it away. Pure.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use xebec_api::{Document, meta, resource::Resource, status::ApiError};

use super::options::{DeleteOptions, Propagation};
use crate::crd;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// The next step of a deletion.
#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    /// The deletion is under way and nothing about it changes.
    Pending,
    /// Store this; the object stays until its finalizers are gone and its grace is over.
    Mark(Document),
    /// Take it away now. The document is what the client is answered with.
    Remove(Document),
}

/// Decides what the delete does, as upstream's registry: grace first, then finalizers.
///
/// # Errors
/// 400 when the stored object's metadata is damaged.
pub(crate) fn plan(resource: &Resource, present: &Document, options: &DeleteOptions, now: DateTime<Utc>) -> Result<Plan, ApiError> {
    let mut doc = present.clone();
    if is_namespace(resource) {
        return plan_namespace(doc, now);
    }
    let graceful = match grace(resource, &mut doc, options, now)? {
        Grace::Pending => return Ok(Plan::Pending),
        Grace::Started => true,
        Grace::None => false,
    };
    let mut finalizers = wanted_finalizers(resource, &doc, options.propagation);
    // A definition stays until its instances are gone.
    let is_definition = resource.group == "apiextensions.k8s.io" && resource.kind == "CustomResourceDefinition";
    if is_definition && doc["metadata"]["deletionTimestamp"].is_null() && !finalizers.iter().any(|f| f == crd::FINALIZER) {
        finalizers.push(crd::FINALIZER.into());
    }
    let pending = !finalizers.is_empty();
    if Some(&finalizers) != present_finalizers(&doc).as_ref()
        && let Ok(metadata) = meta::metadata_mut(&mut doc)
    {
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), finalizers.into());
        }
    }
    if !graceful {
        if !pending {
            return Ok(Plan::Remove(doc));
        }
        mark_for_finalizers(&mut doc, now)?;
        return Ok(Plan::Mark(doc));
    }
    let seconds = doc["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if pending || seconds > 0 { Ok(Plan::Mark(doc)) } else { Ok(Plan::Remove(doc)) }
}

enum Grace {
    None,
    Pending,
    Started,
}

/// Applies the grace period. Only pods have one.
fn grace(resource: &Resource, doc: &mut Document, options: &DeleteOptions, now: DateTime<Utc>) -> Result<Grace, ApiError> {
    if !doc["metadata"]["deletionTimestamp"].is_null() {
        // An object that waits for finalizers alone, or whose grace can only be shortened.
        let Some(allowed) = doc["metadata"]["deletionGracePeriodSeconds"].as_i64() else { return Ok(Grace::None) };
        let Some(period) = options.grace_period_seconds else {
            return Ok(if allowed == 0 && !is_pod(resource) { Grace::None } else { Grace::Pending });
        };
        if period >= allowed {
            // A second delete with no grace left takes the object away (unless finalizers hold it).
            return Ok(if allowed == 0 { Grace::None } else { Grace::Pending });
        }
        let due = doc["metadata"]["deletionTimestamp"]
            .as_str()
            .and_then(|t| DateTime::parse_from_rfc3339(t).ok())
            .map_or(now, |t| t.with_timezone(&Utc));
        let due = due - TimeDelta::seconds(allowed) + TimeDelta::seconds(period);
        let metadata = meta::metadata_mut(doc)?;
        metadata.insert("deletionTimestamp".into(), meta::timestamp(due).into());
        metadata.insert("deletionGracePeriodSeconds".into(), period.into());
        return Ok(Grace::Started);
    }
    if !is_pod(resource) {
        return Ok(Grace::None);
    }
    let period = pod_grace(doc, options);
    meta::mark_deleted(doc, now, period)?;
    Ok(Grace::Started)
}

/// Seconds a pod is given: what was asked for, else its own, none if it never ran or is over.
fn pod_grace(pod: &Document, options: &DeleteOptions) -> i64 {
    let period = options.grace_period_seconds.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
    let scheduled = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let over = matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    if !scheduled || over {
        0
    } else if period < 0 {
        1
    } else {
        period
    }
}

fn present_finalizers(doc: &Document) -> Option<Vec<String>> {
    let list = doc["metadata"]["finalizers"].as_array()?;
    Some(list.iter().filter_map(Value::as_str).map(str::to_string).collect())
}

/// The finalizers with `orphan` and `foregroundDeletion` as the propagation policy wants them.
fn wanted_finalizers(resource: &Resource, doc: &Document, propagation: Option<Propagation>) -> Vec<String> {
    let mut finalizers = present_finalizers(doc).unwrap_or_default();
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    let (orphan, foreground) = match propagation {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        // Without a policy what is there already decides, then the kind's own default.
        None if has(ORPHAN) || has(FOREGROUND) => (has(ORPHAN), has(FOREGROUND)),
        None => (orphans_by_default(resource), false),
    };
    finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
    if orphan {
        finalizers.push(ORPHAN.into());
    }
    if foreground {
        finalizers.push(FOREGROUND.into());
    }
    finalizers
}

/// Kinds whose dependents survive unless the client says otherwise, from before garbage collection was the server's.
fn orphans_by_default(resource: &Resource) -> bool {
    matches!((resource.group.as_str(), resource.kind.as_str()), ("", "ReplicationController") | ("batch", "Job"))
}

fn mark_for_finalizers(doc: &mut Document, now: DateTime<Utc>) -> Result<(), ApiError> {
    let metadata = meta::metadata_mut(doc)?;
    // A deletion that was to happen later happens now.
    let started = metadata.contains_key("deletionTimestamp");
    let due = metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(|t| DateTime::parse_from_rfc3339(t).ok());
    if due.is_none_or(|due| due > now) {
        metadata.insert("deletionTimestamp".into(), meta::timestamp(now).into());
    }
    metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
    if !started && let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|g| *g > 0) {
        metadata.insert("generation".into(), (generation + 1).into());
    }
    Ok(())
}

/// A namespace stays, Terminating, until its content is gone and `finalize` emptied `spec.finalizers`.
fn plan_namespace(mut doc: Document, now: DateTime<Utc>) -> Result<Plan, ApiError> {
    let empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
    if doc["metadata"]["deletionTimestamp"].is_null() {
        let metadata = meta::metadata_mut(&mut doc)?;
        metadata.insert("deletionTimestamp".into(), meta::timestamp(now).into());
        if !doc["status"].is_object() {
            doc["status"] = json!({});
        }
        doc["status"]["phase"] = "Terminating".into();
        if empty(&doc["spec"]["finalizers"]) && empty(&doc["metadata"]["finalizers"]) {
            return Ok(Plan::Remove(doc));
        }
        return Ok(Plan::Mark(doc));
    }
    if empty(&doc["spec"]["finalizers"]) && empty(&doc["metadata"]["finalizers"]) { Ok(Plan::Remove(doc)) } else { Ok(Plan::Pending) }
}

fn is_pod(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.kind == "Pod"
}

fn is_namespace(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.kind == "Namespace"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_000, 0).unwrap()
    }

    fn run(kind: &str, doc: Document, options: DeleteOptions) -> Plan {
        let api_version = if kind == "Job" { "batch/v1" } else { "v1" };
        plan(xebec_api::builtin::by_kind(api_version, kind).unwrap(), &doc, &options, now()).unwrap()
    }

    fn with(grace: Option<i64>, propagation: Option<Propagation>) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: grace, propagation, ..DeleteOptions::default() }
    }

    fn running() -> Document {
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}, "status": {"phase": "Running"}})
    }

    #[test]
    fn plain_objects_go_at_once() {
        assert!(matches!(run("ConfigMap", json!({"metadata": {}}), with(Some(30), None)), Plan::Remove(_)));
    }

    #[test]
    fn finalizers_hold() {
        let Plan::Mark(doc) = run("ConfigMap", json!({"metadata": {"finalizers": ["a/b"]}}), with(None, None)) else { panic!() };
        assert_eq!(doc["metadata"]["deletionTimestamp"], "1970-01-01T00:16:40Z");
        assert_eq!(doc["metadata"]["deletionGracePeriodSeconds"], 0);
        // Asking again changes nothing of it.
        let Plan::Mark(again) = run("ConfigMap", doc.clone(), with(None, None)) else { panic!() };
        assert_eq!(again, doc);
    }

    #[test]
    fn propagation_sets_finalizers() {
        let finalizers = |kind: &str, p: Option<Propagation>| match run(kind, json!({"metadata": {}}), with(None, p)) {
            Plan::Mark(doc) => doc["metadata"]["finalizers"].clone(),
            Plan::Remove(_) => Value::Null,
            Plan::Pending => panic!(),
        };
        assert_eq!(finalizers("ConfigMap", Some(Propagation::Foreground)), json!([FOREGROUND]));
        assert_eq!(finalizers("ConfigMap", Some(Propagation::Orphan)), json!([ORPHAN]));
        assert_eq!(finalizers("ConfigMap", Some(Propagation::Background)), Value::Null);
        assert_eq!(finalizers("Job", None), json!([ORPHAN]));
        assert_eq!(finalizers("Job", Some(Propagation::Background)), Value::Null);
    }

    #[test]
    fn pods_get_their_grace() {
        let Plan::Mark(doc) = run("Pod", running(), with(None, None)) else { panic!() };
        assert_eq!(doc["metadata"]["deletionTimestamp"], "1970-01-01T00:16:47Z");
        assert_eq!(doc["metadata"]["deletionGracePeriodSeconds"], 7);
        // Not longer, not again, but shorter, and then gone.
        assert_eq!(run("Pod", doc.clone(), with(Some(9), None)), Plan::Pending);
        assert_eq!(run("Pod", doc.clone(), with(None, None)), Plan::Pending);
        let Plan::Mark(shorter) = run("Pod", doc.clone(), with(Some(2), None)) else { panic!() };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "1970-01-01T00:16:42Z");
        assert!(matches!(run("Pod", doc, with(Some(0), None)), Plan::Remove(_)));
    }

    #[test]
    fn pods_that_do_not_run_go_at_once() {
        let mut unscheduled = running();
        unscheduled["spec"]["nodeName"] = Value::Null;
        assert!(matches!(run("Pod", unscheduled, with(Some(30), None)), Plan::Remove(_)));
        let mut done = running();
        done["status"]["phase"] = "Succeeded".into();
        assert!(matches!(run("Pod", done, with(None, None)), Plan::Remove(_)));
        let mut held = running();
        held["metadata"]["finalizers"] = json!(["x/y"]);
        let Plan::Mark(doc) = run("Pod", held, with(Some(0), None)) else { panic!() };
        assert_eq!(doc["metadata"]["deletionGracePeriodSeconds"], 0);
    }

    #[test]
    fn namespaces_wait_for_their_content() {
        let Plan::Mark(doc) = run("Namespace", json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}}), with(None, None)) else {
            panic!()
        };
        assert_eq!(doc["status"]["phase"], "Terminating");
        assert_eq!(run("Namespace", doc.clone(), with(None, None)), Plan::Pending);
        let mut emptied = doc;
        emptied["spec"]["finalizers"] = json!([]);
        assert!(matches!(run("Namespace", emptied, with(None, None)), Plan::Remove(_)));
    }
}
