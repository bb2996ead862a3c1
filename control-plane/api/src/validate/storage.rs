//! Volumes, claims, classes.

use serde_json::Value;

use super::{
    affinity,
    check::{Errors, amount, at, at_index, maybe_one_of, one_of, optional_name, required, required_name},
    names, volume as sources,
};
use crate::{
    Document,
    kinds::immutable,
    meta::same,
    quantity::Quantity,
    status::FieldError,
    value::{copy, entries, has, list, text},
};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &Value, path: &str, errors: &mut Errors) {
    let modes = list(&spec["accessModes"]);
    for (i, mode) in modes.iter().enumerate() {
        one_of(mode, &at_index(path, "accessModes", i), &MODES, errors);
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(at(path, "accessModes"), detail));
    }
}

pub fn volume(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    if list(&spec["accessModes"]).is_empty() {
        errors.push(FieldError::required("spec.accessModes", ""));
    }
    access_modes(spec, "spec", errors);
    if entries(&spec["capacity"]).next().is_none() {
        errors.push(FieldError::required("spec.capacity", ""));
    } else if !has(&spec["capacity"], "storage") || entries(&spec["capacity"]).count() > 1 {
        errors.push(FieldError::not_supported("spec.capacity", spec["capacity"].clone(), &["storage"]));
    }
    for (name, value) in entries(&spec["capacity"]) {
        let path = format!("spec.capacity[{name}]");
        if Quantity::from_value(value).is_some_and(|q| q.nanos() <= 0) {
            errors.push(FieldError::invalid(path, value.clone(), "must be greater than zero"));
        }
    }
    maybe_one_of(&spec["persistentVolumeReclaimPolicy"], "spec.persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], errors);
    maybe_one_of(&spec["volumeMode"], "spec.volumeMode", &["Block", "Filesystem"], errors);
    optional_name(&spec["storageClassName"], "spec.storageClassName", names::dns1123_subdomain, errors);
    if has(spec, "nodeAffinity") {
        if has(&spec["nodeAffinity"], "required") {
            affinity::node_selector(&spec["nodeAffinity"]["required"], "spec.nodeAffinity.required", errors);
        } else {
            errors.push(FieldError::required("spec.nodeAffinity.required", "must specify required node constraints"));
        }
    }
    let kinds: Vec<&str> = entries(spec).map(|(k, _)| k).filter(|k| is_source(k)).collect();
    match kinds.as_slice() {
        [] => errors.push(FieldError::required("spec", "must specify a volume type")),
        [_, more @ ..] => {
            for kind in more {
                errors.push(FieldError::forbidden(at("spec", kind), "may not specify more than 1 volume type"));
            }
        }
    }
    if has(spec, "hostPath") {
        sources::host_path(&spec["hostPath"], "spec.hostPath", errors);
        if spec["hostPath"]["path"] == "/" && spec["persistentVolumeReclaimPolicy"] == "Recycle" {
            let detail = "may not be 'recycle' for a hostPath mount of '/'";
            errors.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", detail));
        }
    }
    if has(spec, "local") {
        required(&spec["local"]["path"], "spec.local.path", errors);
        if !has(spec, "nodeAffinity") {
            errors.push(FieldError::required("spec.nodeAffinity", "Local volume requires node affinity"));
        }
    }
    if has(spec, "csi") {
        required(&spec["csi"]["driver"], "spec.csi.driver", errors);
        required(&spec["csi"]["volumeHandle"], "spec.csi.volumeHandle", errors);
    }
}

fn is_source(key: &str) -> bool {
    !matches!(
        key,
        "accessModes"
            | "capacity"
            | "claimRef"
            | "mountOptions"
            | "nodeAffinity"
            | "persistentVolumeReclaimPolicy"
            | "storageClassName"
            | "volumeAttributesClassName"
            | "volumeMode"
    )
}

pub fn volume_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    if !sub.is_empty() {
        return;
    }
    let source = |doc: &Document| -> Vec<(String, Value)> {
        entries(&doc["spec"]).filter(|(k, _)| is_source(k)).map(|(k, v)| (k.to_owned(), v.clone())).collect()
    };
    if source(new) != source(old) {
        errors.push(FieldError::forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation"));
    }
    immutable(new, old, "/spec/volumeMode", errors);
    if has(&old["spec"], "nodeAffinity") {
        immutable(new, old, "/spec/nodeAffinity", errors);
    }
}

pub fn claim(doc: &Document, errors: &mut Errors) {
    claim_spec(&doc["spec"], "spec", errors);
}

/// A claim's spec at `path`.
pub fn claim_spec(spec: &Value, path: &str, errors: &mut Errors) {
    if list(&spec["accessModes"]).is_empty() {
        errors.push(FieldError::required(at(path, "accessModes"), "at least 1 access mode is required"));
    }
    access_modes(spec, path, errors);
    super::check::label_selector(&spec["selector"], &at(path, "selector"), errors);
    let storage = &spec["resources"]["requests"]["storage"];
    let path_to_storage = format!("{}[storage]", at(path, "resources.requests"));
    match Quantity::from_value(storage) {
        None => errors.push(FieldError::required(path_to_storage, "")),
        Some(q) if q.nanos() <= 0 => {
            errors.push(FieldError::invalid(path_to_storage, storage.clone(), "must be greater than zero"));
        }
        Some(_) => amount(storage, &path_to_storage, false, errors),
    }
    optional_name(&spec["storageClassName"], &at(path, "storageClassName"), names::dns1123_subdomain, errors);
    maybe_one_of(&spec["volumeMode"], &at(path, "volumeMode"), &["Block", "Filesystem"], errors);
}

pub fn claim_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    if !sub.is_empty() {
        return;
    }
    let (mut after, before) = (new["spec"].clone(), &old["spec"]);
    // Binding names the volume once; a class may be given late; requests may grow.
    if text(&before["volumeName"]).is_empty() {
        copy(&mut after, before, "volumeName");
    }
    if !has(before, "storageClassName") {
        copy(&mut after, before, "storageClassName");
    }
    copy(&mut after, before, "volumeAttributesClassName");
    let size = |spec: &Value| Quantity::from_value(&spec["resources"]["requests"]["storage"]).map(|q| q.nanos());
    let (now, was) = (size(&after), size(before));
    if now < was {
        errors.push(FieldError::forbidden("spec.resources.requests.storage", "field can not be less than status.capacity"));
        return;
    }
    if old["status"]["phase"] == "Bound" {
        copy(&mut after, before, "resources");
    }
    if entries(&after).chain(entries(before)).any(|(k, _)| !same(&after[k], &before[k])) {
        errors.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
}

pub fn class(doc: &Document, errors: &mut Errors) {
    required_name(&doc["provisioner"], "provisioner", names::qualified_name, errors);
    maybe_one_of(&doc["reclaimPolicy"], "reclaimPolicy", &["Delete", "Retain"], errors);
    one_of(&doc["volumeBindingMode"], "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], errors);
    if entries(&doc["parameters"]).count() > 512 {
        errors.push(FieldError::too_long("Provisioner Parameters", 512));
    }
    for (key, _) in entries(&doc["parameters"]).filter(|(k, _)| k.is_empty()) {
        errors.push(FieldError::invalid("parameters", key, "field can not be empty"));
    }
}

pub fn class_update(new: &Document, old: &Document, _sub: &str, errors: &mut Errors) {
    for key in ["parameters", "provisioner"] {
        if !same(&new[key], &old[key]) {
            errors.push(FieldError::forbidden(key, "updates to ".to_owned() + key + " are forbidden."));
        }
    }
    for key in ["reclaimPolicy", "volumeBindingMode"] {
        immutable(new, old, &format!("/{key}"), errors);
    }
}

pub fn attachment(doc: &Document, errors: &mut Errors) {
    required(&doc["spec"]["attacher"], "spec.attacher", errors);
    required(&doc["spec"]["nodeName"], "spec.nodeName", errors);
    let source = &doc["spec"]["source"];
    if !has(source, "persistentVolumeName") && !has(source, "inlineVolumeSpec") {
        errors.push(FieldError::required("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use serde_json::json;

    #[test]
    fn claims() {
        let hooks = &by_kind("v1", "PersistentVolumeClaim").unwrap().hooks;
        let texts = |doc: &Value| hooks.validate_create(doc).iter().map(|e| e.to_string()).collect::<Vec<_>>();
        let good = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        assert!(texts(&good).is_empty());
        assert_eq!(
            texts(&json!({"spec": {}})),
            ["spec.accessModes: Required value: at least 1 access mode is required", "spec.resources.requests[storage]: Required value"]
        );
        let mut changed = good.clone();
        changed["spec"]["accessModes"] = json!(["ReadOnlyMany"]);
        assert!(hooks.validate_update(&changed, &good, "")[0].to_string().starts_with("spec: Forbidden: spec is immutable after creation"));
        let mut bound = good.clone();
        bound["spec"]["volumeName"] = "v".into();
        assert!(hooks.validate_update(&bound, &good, "").is_empty());
    }
}
