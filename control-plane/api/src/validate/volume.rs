//! Volumes of pods.

use serde_json::Value;

use super::{
    check::{Errors, amount, at, at_index, data_key, given, maybe_one_of, mode, no_backsteps, relative_path, required, required_name},
    container::{field_ref, resource_ref},
    names,
};
use crate::{
    status::FieldError,
    value::{entries, has, list, text},
};

const DOWNWARD_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// What a hostPath may ask for.
pub const HOST_PATH_TYPES: [&str; 7] = ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// The volumes of a pod spec.
pub fn volumes(spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, v) in list(&spec["volumes"]).iter().enumerate() {
        let path = at_index(path, "volumes", i);
        let name = text(&v["name"]);
        required_name(&v["name"], &at(&path, "name"), names::dns1123_label, errors);
        if !name.is_empty() && seen.contains(&name) {
            errors.push(FieldError::duplicate(at(&path, "name"), name));
        }
        seen.push(name);
        let kinds: Vec<&str> = entries(v).filter(|(k, s)| *k != "name" && !s.is_null()).map(|(k, _)| k).collect();
        if kinds.is_empty() {
            errors.push(FieldError::required(path.as_str(), "must specify a volume type"));
        }
        for (j, kind) in kinds.iter().enumerate() {
            let path = at(&path, kind);
            if j > 0 {
                errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
            } else {
                source(kind, &v[*kind], &path, errors);
            }
        }
    }
}

fn source(kind: &str, s: &Value, path: &str, errors: &mut Errors) {
    match kind {
        "emptyDir" => amount(&s["sizeLimit"], &at(path, "sizeLimit"), false, errors),
        "hostPath" => host_path(s, path, errors),
        "secret" | "configMap" => {
            let key = if kind == "secret" { "secretName" } else { "name" };
            required(&s[key], &at(path, key), errors);
            mode(&s["defaultMode"], &at(path, "defaultMode"), errors);
            items(s, path, errors);
        }
        "persistentVolumeClaim" => {
            required(&s["claimName"], &at(path, "claimName"), errors);
        }
        "downwardAPI" => {
            mode(&s["defaultMode"], &at(path, "defaultMode"), errors);
            downward(s, path, errors);
        }
        "projected" => projected(s, path, errors),
        "nfs" => {
            required(&s["server"], &at(path, "server"), errors);
            if required(&s["path"], &at(path, "path"), errors) && !text(&s["path"]).starts_with('/') {
                errors.push(FieldError::invalid(at(path, "path"), text(&s["path"]), "must be an absolute path"));
            }
        }
        "csi" => {
            required(&s["driver"], &at(path, "driver"), errors);
        }
        "ephemeral" => {
            if !has(s, "volumeClaimTemplate") {
                errors.push(FieldError::required(at(path, "volumeClaimTemplate"), ""));
            } else {
                let template = at(path, "volumeClaimTemplate");
                super::storage::claim_spec(&s["volumeClaimTemplate"]["spec"], &at(&template, "spec"), errors);
            }
        }
        "image" => {
            required(&s["reference"], &at(path, "reference"), errors);
            maybe_one_of(&s["pullPolicy"], &at(path, "pullPolicy"), &["Always", "IfNotPresent", "Never"], errors);
        }
        _ => {}
    }
}

/// A directory or file of the node.
pub fn host_path(s: &Value, path: &str, errors: &mut Errors) {
    if required(&s["path"], &at(path, "path"), errors) {
        no_backsteps(text(&s["path"]), &at(path, "path"), errors);
    }
    maybe_one_of(&s["type"], &at(path, "type"), &HOST_PATH_TYPES, errors);
}

fn items(s: &Value, path: &str, errors: &mut Errors) {
    for (i, item) in list(&s["items"]).iter().enumerate() {
        let path = at_index(path, "items", i);
        required_name(&item["key"], &at(&path, "key"), data_key, errors);
        file_path(&item["path"], &at(&path, "path"), errors);
        mode(&item["mode"], &at(&path, "mode"), errors);
    }
}

fn file_path(value: &Value, path: &str, errors: &mut Errors) {
    if required(value, path, errors) {
        relative_path(text(value), path, errors);
        if text(value).starts_with("..") && !text(value).starts_with("../") {
            errors.push(FieldError::invalid(path, text(value), "must not start with '..'"));
        }
    }
}

fn downward(s: &Value, path: &str, errors: &mut Errors) {
    for (i, item) in list(&s["items"]).iter().enumerate() {
        let path = at_index(path, "items", i);
        file_path(&item["path"], &at(&path, "path"), errors);
        match given(item, &["fieldRef", "resourceFieldRef"]).as_slice() {
            [] => errors.push(FieldError::required(path.as_str(), "one of fieldRef and resourceFieldRef is required")),
            ["fieldRef"] => field_ref(&item["fieldRef"], &at(&path, "fieldRef"), &DOWNWARD_FIELDS, errors),
            ["resourceFieldRef"] => {
                required(&item["resourceFieldRef"]["containerName"], &at(&at(&path, "resourceFieldRef"), "containerName"), errors);
                resource_ref(&item["resourceFieldRef"], &at(&path, "resourceFieldRef"), errors);
            }
            _ => errors.push(FieldError::invalid(
                path.as_str(),
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            )),
        }
        mode(&item["mode"], &at(&path, "mode"), errors);
    }
}

fn projected(s: &Value, path: &str, errors: &mut Errors) {
    mode(&s["defaultMode"], &at(path, "defaultMode"), errors);
    for (i, source) in list(&s["sources"]).iter().enumerate() {
        let path = at_index(path, "sources", i);
        let kinds = given(source, &["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]);
        for (j, kind) in kinds.iter().enumerate() {
            let (s, path) = (&source[*kind], at(&path, kind));
            if j > 0 {
                errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type per source"));
                continue;
            }
            match *kind {
                "secret" | "configMap" => {
                    required(&s["name"], &at(&path, "name"), errors);
                    items(s, &path, errors);
                }
                "downwardAPI" => downward(s, &path, errors),
                "serviceAccountToken" => {
                    let seconds = s["expirationSeconds"].as_i64().unwrap_or(3600);
                    if seconds < 600 {
                        let detail = "may not specify a duration less than 10 minutes";
                        errors.push(FieldError::invalid(at(&path, "expirationSeconds"), seconds, detail));
                    } else if seconds > 1 << 32 {
                        let detail = "may not specify a duration larger than 2^32 seconds";
                        errors.push(FieldError::invalid(at(&path, "expirationSeconds"), seconds, detail));
                    }
                    file_path(&s["path"], &at(&path, "path"), errors);
                }
                _ => {}
            }
        }
    }
}
