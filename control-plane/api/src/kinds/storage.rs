//! Volumes, claims, storage classes and drivers.

use serde_json::{Value, json};

use super::{PLAIN, Rules, age, field};
use crate::{
    Document, table,
    validate::storage,
    value::{child, default, has, list, set, strings, text, with},
};

pub(super) fn core_rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "PersistentVolume" => Rules {
            default: |doc| {
                if let Some(spec) = child(doc, "spec") {
                    default(spec, "persistentVolumeReclaimPolicy", "Retain");
                    default(spec, "volumeMode", "Filesystem");
                    with(spec, "hostPath", |v| {
                        if !has(v, "type") {
                            set(v, "type", "");
                        }
                    });
                }
                pending(doc);
            },
            prepare_create: |doc| set(doc, "status", json!({"phase": "Pending"})),
            validate: storage::volume,
            validate_update: storage::volume_update,
            fields: |doc| vec![("name", field(doc, "/metadata/name"))],
            columns: &[
                ("Capacity", "string", 0),
                ("Access Modes", "string", 0),
                ("Reclaim Policy", "string", 0),
                ("Status", "string", 0),
                ("Claim", "string", 0),
                ("StorageClass", "string", 0),
                ("VolumeAttributesClass", "string", 0),
                ("Reason", "string", 0),
                ("Age", "string", 0),
                ("VolumeMode", "string", 1),
            ],
            cells: volume_cells,
            ..PLAIN
        },
        "PersistentVolumeClaim" => Rules {
            default: |doc| {
                if let Some(spec) = child(doc, "spec") {
                    default(spec, "volumeMode", "Filesystem");
                }
                pending(doc);
            },
            prepare_create: |doc| set(doc, "status", json!({"phase": "Pending"})),
            validate: storage::claim,
            validate_update: storage::claim_update,
            fields: |doc| vec![("name", field(doc, "/metadata/name"))],
            columns: &[
                ("Status", "string", 0),
                ("Volume", "string", 0),
                ("Capacity", "string", 0),
                ("Access Modes", "string", 0),
                ("StorageClass", "string", 0),
                ("VolumeAttributesClass", "string", 0),
                ("Age", "string", 0),
                ("VolumeMode", "string", 1),
            ],
            cells: claim_cells,
            ..PLAIN
        },
        _ => return None,
    })
}

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "StorageClass" => Rules {
            default: |doc| {
                default(doc, "reclaimPolicy", "Delete");
                default(doc, "volumeBindingMode", "Immediate");
            },
            validate: storage::class,
            validate_update: storage::class_update,
            columns: &[
                ("Provisioner", "string", 0),
                ("ReclaimPolicy", "string", 0),
                ("VolumeBindingMode", "string", 0),
                ("AllowVolumeExpansion", "string", 0),
                ("Age", "string", 0),
            ],
            cells: |doc, now| {
                let expansion = if doc["allowVolumeExpansion"] == true { "true" } else { "false" };
                vec![
                    doc["provisioner"].clone(),
                    table::scalar(&doc["reclaimPolicy"], "Delete"),
                    table::scalar(&doc["volumeBindingMode"], "Immediate"),
                    expansion.into(),
                    age(doc, now),
                ]
            },
            ..PLAIN
        },
        "CSIDriver" => Rules {
            default: |doc| {
                if let Some(spec) = child(doc, "spec") {
                    for (key, value) in [
                        ("attachRequired", json!(true)),
                        ("podInfoOnMount", json!(false)),
                        ("storageCapacity", json!(false)),
                        ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
                        ("volumeLifecycleModes", json!(["Persistent"])),
                        ("requiresRepublish", json!(false)),
                        ("seLinuxMount", json!(false)),
                    ] {
                        default(spec, key, value);
                    }
                }
            },
            columns: &[
                ("AttachRequired", "boolean", 0),
                ("PodInfoOnMount", "boolean", 0),
                ("StorageCapacity", "boolean", 0),
                ("TokenRequests", "string", 0),
                ("RequiresRepublish", "boolean", 0),
                ("Modes", "string", 0),
                ("Age", "string", 0),
            ],
            cells: |doc, now| {
                let spec = &doc["spec"];
                let tokens: Vec<&str> = list(&spec["tokenRequests"]).iter().map(|t| text(&t["audience"])).collect();
                let modes: Vec<&str> = strings(&spec["volumeLifecycleModes"]).collect();
                vec![
                    spec["attachRequired"].clone(),
                    spec["podInfoOnMount"].clone(),
                    spec["storageCapacity"].clone(),
                    if tokens.is_empty() { "<unset>".into() } else { tokens.join(",").into() },
                    spec["requiresRepublish"].clone(),
                    table::or_none(modes.join(",")),
                    age(doc, now),
                ]
            },
            ..PLAIN
        },
        "CSINode" => Rules {
            columns: &[("Drivers", "integer", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![list(&doc["spec"]["drivers"]).len().into(), age(doc, now)],
            ..PLAIN
        },
        "CSIStorageCapacity" => Rules {
            columns: &[("StorageClassName", "string", 0), ("Capacity", "string", 0)],
            cells: |doc, _| vec![doc["storageClassName"].clone(), table::or_unset(&doc["capacity"])],
            ..PLAIN
        },
        "VolumeAttachment" => Rules {
            validate: storage::attachment,
            validate_update: |new, old, _, errors| super::immutable(new, old, "/spec", errors),
            columns: &[
                ("Attacher", "string", 0),
                ("PV", "string", 0),
                ("Node", "string", 0),
                ("Attached", "boolean", 0),
                ("Age", "string", 0),
            ],
            cells: |doc, now| {
                let spec = &doc["spec"];
                vec![
                    spec["attacher"].clone(),
                    table::scalar(&spec["source"]["persistentVolumeName"], ""),
                    spec["nodeName"].clone(),
                    (doc["status"]["attached"] == true).into(),
                    age(doc, now),
                ]
            },
            ..PLAIN
        },
        "VolumeAttributesClass" => Rules {
            columns: &[("DriverName", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![doc["driverName"].clone(), age(doc, now)],
            ..PLAIN
        },
        _ => return None,
    })
}

fn pending(doc: &mut Document) {
    if let Some(status) = child(doc, "status") {
        default(status, "phase", "Pending");
    }
}

fn volume_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (spec, status) = (&doc["spec"], &doc["status"]);
    let claim = match &spec["claimRef"] {
        Value::Null => String::new(),
        claim => format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])),
    };
    let phase = if doc["metadata"]["deletionTimestamp"].is_null() { text(&status["phase"]) } else { "Terminating" };
    vec![
        table::scalar(&spec["capacity"]["storage"], "0"),
        table::access_modes(&spec["accessModes"]),
        table::scalar(&spec["persistentVolumeReclaimPolicy"], ""),
        phase.into(),
        claim.into(),
        table::scalar(&spec["storageClassName"], ""),
        table::or_unset(&spec["volumeAttributesClassName"]),
        table::scalar(&status["reason"], ""),
        age(doc, now),
        table::or_unset(&spec["volumeMode"]),
    ]
}

fn claim_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (spec, status) = (&doc["spec"], &doc["status"]);
    let phase = if doc["metadata"]["deletionTimestamp"].is_null() { text(&status["phase"]) } else { "Terminating" };
    let bound = !text(&spec["volumeName"]).is_empty();
    vec![
        phase.into(),
        table::scalar(&spec["volumeName"], ""),
        if bound { table::scalar(&status["capacity"]["storage"], "0") } else { "".into() },
        if bound { table::access_modes(&status["accessModes"]) } else { "".into() },
        table::scalar(&spec["storageClassName"], ""),
        table::or_unset(&spec["volumeAttributesClassName"]),
        age(doc, now),
        table::or_unset(&spec["volumeMode"]),
    ]
}
