//! Deployments, replica sets, stateful sets, daemon sets, controller revisions.

use serde_json::{Value, json};

use super::{PLAIN, Rules, age, podspec};
use crate::{
    Document, table,
    validate::workload,
    value::{child, default, each, has, list, text, with},
};

pub(super) const REPLICA_COLUMNS: &[(&str, &str, i32)] = &[
    ("Desired", "integer", 0),
    ("Current", "integer", 0),
    ("Ready", "integer", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "Deployment" => Rules {
            default: default_deployment,
            validate: workload::validate_deployment,
            validate_update: workload::validate_selector_update,
            columns: &[
                ("Ready", "string", 0),
                ("Up-to-date", "string", 0),
                ("Available", "string", 0),
                ("Age", "string", 0),
                ("Containers", "string", 1),
                ("Images", "string", 1),
                ("Selector", "string", 1),
            ],
            cells: |doc, now| {
                let (spec, status) = (&doc["spec"], &doc["status"]);
                vec![
                    ready(doc),
                    table::count(&status["updatedReplicas"]),
                    table::count(&status["availableReplicas"]),
                    age(doc, now),
                    table::containers(&spec["template"]["spec"]),
                    table::images(&spec["template"]["spec"]),
                    table::selector(&spec["selector"]),
                ]
            },
            ..PLAIN
        },
        "ReplicaSet" => Rules {
            default: |doc| {
                if let Some(spec) = child(doc, "spec") {
                    podspec::default_template(spec);
                    default(spec, "replicas", 1);
                }
            },
            validate: workload::validate_replica_set,
            validate_update: workload::validate_selector_update,
            fields: |doc| vec![("status.replicas", doc["status"]["replicas"].as_i64().unwrap_or(0).to_string())],
            columns: REPLICA_COLUMNS,
            cells: |doc, now| {
                let mut cells = replica_cells(doc, now);
                cells.push(table::selector(&doc["spec"]["selector"]));
                cells
            },
            ..PLAIN
        },
        "StatefulSet" => Rules {
            default: default_stateful_set,
            validate: workload::validate_stateful_set,
            validate_update: workload::validate_stateful_set_update,
            columns: &[("Ready", "string", 0), ("Age", "string", 0), ("Containers", "string", 1), ("Images", "string", 1)],
            cells: |doc, now| {
                let spec = &doc["spec"]["template"]["spec"];
                vec![ready(doc), age(doc, now), table::containers(spec), table::images(spec)]
            },
            ..PLAIN
        },
        "DaemonSet" => Rules {
            default: default_daemon_set,
            validate: workload::validate_daemon_set,
            validate_update: workload::validate_selector_update,
            columns: &[
                ("Desired", "integer", 0),
                ("Current", "integer", 0),
                ("Ready", "integer", 0),
                ("Up-to-date", "integer", 0),
                ("Available", "integer", 0),
                ("Node Selector", "string", 0),
                ("Age", "string", 0),
                ("Containers", "string", 1),
                ("Images", "string", 1),
                ("Selector", "string", 1),
            ],
            cells: |doc, now| {
                let (status, spec) = (&doc["status"], &doc["spec"]["template"]["spec"]);
                let counts =
                    ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable"];
                let mut cells: Vec<Value> = counts.iter().map(|key| table::count(&status[*key])).collect();
                cells.push(table::labels(&spec["nodeSelector"]));
                cells.push(age(doc, now));
                cells.extend([table::containers(spec), table::images(spec), table::selector(&doc["spec"]["selector"])]);
                cells
            },
            ..PLAIN
        },
        "ControllerRevision" => Rules {
            columns: &[("Controller", "string", 0), ("Revision", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| {
                let owners = list(&doc["metadata"]["ownerReferences"]);
                let controller = owners.iter().find(|o| o["controller"] == true).map_or_else(String::new, |o| {
                    let group = text(&o["apiVersion"]).split_once('/').map_or("", |(g, _)| g);
                    let kind = text(&o["kind"]).to_lowercase();
                    let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
                    format!("{kind}/{}", text(&o["name"]))
                });
                vec![table::or_none(controller), table::count(&doc["revision"]), age(doc, now)]
            },
            validate_update: |new, old, _, errors| super::immutable(new, old, "/data", errors),
            ..PLAIN
        },
        _ => return None,
    })
}

/// `ready/desired`
fn ready(doc: &Document) -> Value {
    let number = |v: &Value| v.as_i64().unwrap_or(0);
    format!("{}/{}", number(&doc["status"]["readyReplicas"]), number(&doc["spec"]["replicas"])).into()
}

/// The first cells of [`REPLICA_COLUMNS`], all but the selector.
pub(super) fn replica_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (spec, status) = (&doc["spec"], &doc["status"]);
    vec![
        table::count(&spec["replicas"]),
        table::count(&status["replicas"]),
        table::count(&status["readyReplicas"]),
        age(doc, now),
        table::containers(&spec["template"]["spec"]),
        table::images(&spec["template"]["spec"]),
    ]
}

fn default_deployment(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    podspec::default_template(spec);
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = child(spec, "strategy") {
        default(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", "25%");
            default(rolling, "maxSurge", "25%");
        }
    }
}

fn default_stateful_set(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    podspec::default_template(spec);
    default(spec, "podManagementPolicy", "OrderedReady");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = child(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "partition", 0);
        }
    }
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        default(policy, "whenDeleted", "Retain");
        default(policy, "whenScaled", "Retain");
    }
    each(spec, "volumeClaimTemplates", |claim| {
        default(claim, "apiVersion", "v1");
        default(claim, "kind", "PersistentVolumeClaim");
        with(claim, "spec", |s| default(s, "volumeMode", "Filesystem"));
        if !has(claim, "status") {
            crate::value::set(claim, "status", json!({"phase": "Pending"}));
        }
    });
}

fn default_daemon_set(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    podspec::default_template(spec);
    default(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = child(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", 1);
            default(rolling, "maxSurge", 0);
        }
    }
}
