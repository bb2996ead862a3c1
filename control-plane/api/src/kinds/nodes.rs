//! Nodes, namespaces, leases, runtime classes, certificate requests.

use serde_json::{Value, json};

use super::{PLAIN, Rules, age, field};
use crate::{
    Document, table,
    validate::{core, names},
    value::{child, copy, default, entries, list, set, text},
};

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "Node" => Rules {
            keeps_status: true,
            default: |doc| {
                if let Some(status) = doc.get_mut("status").filter(|s| s.is_object()) {
                    let capacity = status["capacity"].clone();
                    if capacity.is_object() {
                        default(status, "allocatable", capacity);
                    }
                }
            },
            validate: core::node,
            validate_update: core::node_update,
            fields: |doc| vec![("spec.unschedulable", (doc["spec"]["unschedulable"] == true).to_string())],
            columns: &[
                ("Status", "string", 0),
                ("Roles", "string", 0),
                ("Age", "string", 0),
                ("Version", "string", 0),
                ("Internal-IP", "string", 1),
                ("External-IP", "string", 1),
                ("OS-Image", "string", 1),
                ("Kernel-Version", "string", 1),
                ("Container-Runtime", "string", 1),
            ],
            cells: node_cells,
            ..PLAIN
        },
        "Namespace" => Rules {
            name: names::dns1123_label,
            default: default_namespace,
            prepare_create: |doc| {
                default_namespace(doc);
                set(doc, "status", json!({"phase": "Active"}));
                if let Some(spec) = child(doc, "spec") {
                    let mut finalizers: Vec<Value> = list(&spec["finalizers"]).to_vec();
                    if !finalizers.contains(&json!("kubernetes")) {
                        finalizers.push("kubernetes".into());
                    }
                    set(spec, "finalizers", finalizers);
                }
            },
            prepare_update: |new, old, sub| match sub {
                // Only `finalize` ends what the namespace controller waits for.
                "finalize" => {
                    copy(new, old, "status");
                    if let Some(metadata) = child(new, "metadata") {
                        for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
                            copy(metadata, &old["metadata"], key);
                        }
                    }
                }
                "" => {
                    if let Some(spec) = child(new, "spec") {
                        copy(spec, &old["spec"], "finalizers");
                    }
                    default_namespace(new);
                }
                _ => {}
            },
            fields: |doc| vec![("status.phase", field(doc, "/status/phase")), ("name", field(doc, "/metadata/name"))],
            columns: &[("Status", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![table::scalar(&doc["status"]["phase"], ""), age(doc, now)],
            ..PLAIN
        },
        "ComponentStatus" => Rules {
            columns: &[("Status", "string", 0), ("Message", "string", 0), ("Error", "string", 0)],
            cells: |doc, _| {
                let healthy = list(&doc["conditions"]).iter().find(|c| c["type"] == "Healthy").unwrap_or(&Value::Null);
                let status = if healthy["status"] == "True" { "Healthy" } else { "Unhealthy" };
                vec![status.into(), table::scalar(&healthy["message"], ""), table::scalar(&healthy["error"], "")]
            },
            ..PLAIN
        },
        "Lease" => Rules {
            validate: core::lease,
            columns: &[("Holder", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![table::scalar(&doc["spec"]["holderIdentity"], ""), age(doc, now)],
            ..PLAIN
        },
        "RuntimeClass" => Rules {
            validate: core::runtime_class,
            validate_update: |new, old, _, errors| super::immutable(new, old, "/handler", errors),
            columns: &[("Handler", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![doc["handler"].clone(), age(doc, now)],
            ..PLAIN
        },
        "CertificateSigningRequest" => Rules {
            validate: core::certificate_request,
            validate_update: |new, old, _, errors| {
                if new["spec"] != old["spec"] {
                    errors.push(crate::status::FieldError::invalid("spec", new["spec"].clone(), "field is immutable"));
                }
            },
            prepare_update: |new, old, sub| match sub {
                "approval" => {
                    copy(new, old, "spec");
                    let conditions = new["status"]["conditions"].clone();
                    copy(new, old, "status");
                    if let Some(status) = child(new, "status") {
                        set(status, "conditions", conditions);
                    }
                }
                "" => copy(new, old, "spec"),
                _ => {}
            },
            fields: |doc| vec![("spec.signerName", field(doc, "/spec/signerName"))],
            columns: &[
                ("Age", "string", 0),
                ("SignerName", "string", 0),
                ("Requestor", "string", 0),
                ("RequestedDuration", "string", 0),
                ("Condition", "string", 0),
            ],
            cells: certificate_cells,
            ..PLAIN
        },
        _ => return None,
    })
}

fn default_namespace(doc: &mut Document) {
    let name = text(&doc["metadata"]["name"]).to_owned();
    if !name.is_empty()
        && let Some(labels) = child(doc, "metadata").and_then(|m| child(m, "labels"))
    {
        set(labels, "kubernetes.io/metadata.name", name);
    }
}

fn node_cells(doc: &Document, now: i64) -> Vec<Value> {
    let info = &doc["status"]["nodeInfo"];
    let mut status = vec![match table::condition(doc, "Ready") {
        Some(c) if c["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if doc["spec"]["unschedulable"] == true {
        status.push("SchedulingDisabled");
    }
    let roles: Vec<&str> = entries(&doc["metadata"]["labels"])
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .filter(|role| !role.is_empty())
        .collect();
    let address = |type_: &str| {
        let found = list(&doc["status"]["addresses"]).iter().find(|a| a["type"] == type_);
        table::or_none(found.map_or("", |a| text(&a["address"])))
    };
    let unknown = |key: &str| match text(&info[key]) {
        "" => "<unknown>".into(),
        value => value.into(),
    };
    vec![
        status.join(",").into(),
        table::or_none(roles.join(",")),
        age(doc, now),
        table::scalar(&info["kubeletVersion"], ""),
        address("InternalIP"),
        address("ExternalIP"),
        unknown("osImage"),
        unknown("kernelVersion"),
        unknown("containerRuntimeVersion"),
    ]
}

fn certificate_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (spec, status) = (&doc["spec"], &doc["status"]);
    let has = |type_| table::condition(doc, type_).is_some();
    let mut state = vec![if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }];
    if has("Failed") {
        state.push("Failed");
    }
    if !text(&status["certificate"]).is_empty() {
        state.push("Issued");
    }
    let duration = spec["expirationSeconds"].as_i64().map_or_else(String::new, table::human_duration);
    vec![
        age(doc, now),
        table::or_none(text(&spec["signerName"])),
        table::scalar(&spec["username"], ""),
        table::or_none(duration),
        state.join(",").into(),
    ]
}
