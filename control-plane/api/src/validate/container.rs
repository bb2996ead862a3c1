//! Containers: names, ports, environment, mounts, probes, resources, security.

use serde_json::Value;

use super::{
    check::{
        Errors, amount, at, at_index, data_key, given, in_range, maybe_one_of, no_backsteps, non_negative, one_of, port, port_name,
        port_or_name, relative_path, required, required_name, syntax,
    },
    names,
};
use crate::{
    quantity::Quantity,
    status::FieldError,
    value::{entries, has, list, text},
};

/// Which list a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Main,
    Init,
    Ephemeral,
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// One container; `volumes` are the names of the pod's volumes.
pub fn container(c: &Value, path: &str, role: Role, volumes: &[&str], errors: &mut Errors) {
    required_name(&c["name"], &at(path, "name"), names::dns1123_label, errors);
    let image = text(&c["image"]);
    if image.is_empty() {
        // Templates of image automation may leave it out; running containers may not.
        errors.push(FieldError::required(at(path, "image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(at(path, "image"), image, "must not have leading or trailing whitespace"));
    }
    one_of(&c["terminationMessagePolicy"], &at(path, "terminationMessagePolicy"), &["File", "FallbackToLogsOnError"], errors);
    one_of(&c["imagePullPolicy"], &at(path, "imagePullPolicy"), &["Always", "IfNotPresent", "Never"], errors);
    ports(c, path, errors);
    env(c, path, errors);
    mounts(c, path, volumes, errors);
    resources(&c["resources"], &at(path, "resources"), errors);
    security(&c["securityContext"], &at(path, "securityContext"), errors);
    let sidecar = role == Role::Init && c["restartPolicy"] == "Always";
    let runs_once = role == Role::Init && !sidecar;
    for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if !has(c, key) {
            continue;
        }
        match role {
            Role::Ephemeral => {
                errors.push(FieldError::forbidden(at(path, key), "cannot be set for an Ephemeral Container"));
            }
            _ if runs_once => {
                errors.push(FieldError::forbidden(at(path, key), "may not be set for init containers without restartPolicy=Always"))
            }
            _ if key == "lifecycle" => {
                for hook in given(&c[key], &["postStart", "preStop"]) {
                    handler(&c[key][hook], &at(&at(path, key), hook), &["exec", "httpGet", "tcpSocket", "sleep"], errors);
                }
            }
            _ => probe(&c[key], &at(path, key), key, errors),
        }
    }
    if role == Role::Ephemeral {
        for key in ["ports", "resources"] {
            if !crate::value::is_zero(&c[key]) {
                errors.push(FieldError::forbidden(at(path, key), "cannot be set for an Ephemeral Container"));
            }
        }
    }
    match (role, text(&c["restartPolicy"])) {
        (_, "") => {}
        (Role::Init | Role::Main, policy) => {
            maybe_one_of(&policy.into(), &at(path, "restartPolicy"), &["Always", "Never", "OnFailure"], errors);
        }
        (Role::Ephemeral, _) => {
            errors.push(FieldError::forbidden(at(path, "restartPolicy"), "cannot be set for an Ephemeral Container"));
        }
    }
}

fn ports(c: &Value, path: &str, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, p) in list(&c["ports"]).iter().enumerate() {
        let path = at_index(path, "ports", i);
        let name = text(&p["name"]);
        if !name.is_empty() {
            let before = errors.len();
            syntax(name, &at(&path, "name"), port_name, errors);
            if errors.len() == before && seen.contains(&name) {
                errors.push(FieldError::duplicate(at(&path, "name"), name));
            }
            seen.push(name);
        }
        match p["containerPort"].as_i64() {
            None | Some(0) => errors.push(FieldError::required(at(&path, "containerPort"), "")),
            _ => port(&p["containerPort"], &at(&path, "containerPort"), errors),
        }
        if p["hostPort"].as_i64().is_some_and(|n| n != 0) {
            port(&p["hostPort"], &at(&path, "hostPort"), errors);
        }
        one_of(&p["protocol"], &at(&path, "protocol"), &["SCTP", "TCP", "UDP"], errors);
        if !text(&p["hostIP"]).is_empty() {
            super::check::ip(text(&p["hostIP"]), &at(&path, "hostIP"), errors);
        }
    }
}

fn env_name(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

fn env(c: &Value, path: &str, errors: &mut Errors) {
    for (i, e) in list(&c["env"]).iter().enumerate() {
        let path = at_index(path, "env", i);
        required_name(&e["name"], &at(&path, "name"), env_name, errors);
        if has(e, "valueFrom") {
            value_from(e, &at(&path, "valueFrom"), errors);
        }
    }
    for (i, e) in list(&c["envFrom"]).iter().enumerate() {
        let path = at_index(path, "envFrom", i);
        if !text(&e["prefix"]).is_empty() {
            syntax(text(&e["prefix"]), &at(&path, "prefix"), env_name, errors);
        }
        match given(e, &["configMapRef", "secretRef"]).as_slice() {
            [] => errors.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            [one] => {
                let name = at(&at(&path, one), "name");
                required_name(&e[*one]["name"], &name, names::dns1123_subdomain, errors);
            }
            _ => errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time")),
        }
    }
}

fn value_from(e: &Value, path: &str, errors: &mut Errors) {
    let from = &e["valueFrom"];
    let sources = given(from, &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]);
    if has(from, "fieldRef") {
        field_ref(&from["fieldRef"], &at(path, "fieldRef"), &ENV_FIELDS, errors);
    }
    if has(from, "resourceFieldRef") {
        resource_ref(&from["resourceFieldRef"], &at(path, "resourceFieldRef"), errors);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        if has(from, kind) {
            let path = at(path, kind);
            required(&from[kind]["name"], &at(&path, "name"), errors);
            required_name(&from[kind]["key"], &at(&path, "key"), data_key, errors);
        }
    }
    if sources.is_empty() {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errors.push(FieldError::invalid(path, "", detail));
    } else if !text(&e["value"]).is_empty() {
        errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources.len() > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

/// A field of the pod that is told to its containers.
pub fn field_ref(f: &Value, path: &str, supported: &[&str], errors: &mut Errors) {
    required(&f["apiVersion"], &at(path, "apiVersion"), errors);
    if !required(&f["fieldPath"], &at(path, "fieldPath"), errors) {
        return;
    }
    let field = text(&f["fieldPath"]);
    let path = at(path, "fieldPath");
    if let Some((map, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        match map {
            "metadata.annotations" => syntax(&key.to_lowercase(), &path, names::qualified_name, errors),
            "metadata.labels" => syntax(key, &path, names::qualified_name, errors),
            _ => errors.push(FieldError::invalid(path, field, "does not support subscript")),
        }
    } else if !supported.contains(&field) {
        if ENV_FIELDS.contains(&field) || field.starts_with("metadata.") {
            errors.push(FieldError::not_supported(path, field, supported));
        } else {
            let detail = format!("error converting fieldPath: field label not supported: {field}");
            errors.push(FieldError::invalid(path, field, detail));
        }
    }
}

/// A resource amount that is told to containers.
pub fn resource_ref(f: &Value, path: &str, errors: &mut Errors) {
    const SUPPORTED: [&str; 6] =
        ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];
    let resource = text(&f["resource"]);
    if resource.is_empty() {
        errors.push(FieldError::required(at(path, "resource"), ""));
    } else if !SUPPORTED.contains(&resource) && !resource.contains(".hugepages-") {
        errors.push(FieldError::not_supported(at(path, "resource"), resource, &SUPPORTED));
    }
}

fn mounts(c: &Value, path: &str, volumes: &[&str], errors: &mut Errors) {
    let mut paths: Vec<&str> = Vec::new();
    for (i, m) in list(&c["volumeMounts"]).iter().enumerate() {
        let path = at_index(path, "volumeMounts", i);
        let (name, target) = (text(&m["name"]), text(&m["mountPath"]));
        if name.is_empty() {
            errors.push(FieldError::required(at(&path, "name"), ""));
        }
        if !volumes.contains(&name) {
            errors.push(FieldError::not_found(at(&path, "name"), name));
        }
        if target.is_empty() {
            errors.push(FieldError::required(at(&path, "mountPath"), ""));
        }
        if paths.contains(&target) {
            errors.push(FieldError::invalid(at(&path, "mountPath"), target, "must be unique"));
        }
        paths.push(target);
        for key in ["subPath", "subPathExpr"] {
            if !text(&m[key]).is_empty() {
                relative_path(text(&m[key]), &at(&path, key), errors);
            }
        }
        if !text(&m["subPath"]).is_empty() && !text(&m["subPathExpr"]).is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(at(&path, "subPathExpr"), text(&m["subPathExpr"]), detail));
        }
        let propagation = at(&path, "mountPropagation");
        maybe_one_of(&m["mountPropagation"], &propagation, &["Bidirectional", "HostToContainer", "None"], errors);
        if m["mountPropagation"] == "Bidirectional" && c["securityContext"]["privileged"] != true {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(propagation, detail));
        }
    }
    for (i, d) in list(&c["volumeDevices"]).iter().enumerate() {
        let path = at_index(path, "volumeDevices", i);
        let (name, target) = (text(&d["name"]), text(&d["devicePath"]));
        if name.is_empty() {
            errors.push(FieldError::required(at(&path, "name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(FieldError::not_found(at(&path, "name"), name));
        }
        if target.is_empty() {
            errors.push(FieldError::required(at(&path, "devicePath"), ""));
        }
        if paths.contains(&target) {
            errors.push(FieldError::invalid(at(&path, "devicePath"), target, "must be unique"));
        }
        no_backsteps(target, &at(&path, "devicePath"), errors);
    }
}

fn probe(p: &Value, path: &str, which: &str, errors: &mut Errors) {
    handler(p, path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        non_negative(&p[key], &at(path, key), errors);
    }
    if let Some(grace) = p["terminationGracePeriodSeconds"].as_i64() {
        let path = at(path, "terminationGracePeriodSeconds");
        if which == "readinessProbe" {
            errors.push(FieldError::invalid(path, grace, "must not be set for readinessProbes"));
        } else if grace <= 0 {
            errors.push(FieldError::invalid(path, grace, "must be greater than 0"));
        }
    }
    if which != "readinessProbe" && p["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        errors.push(FieldError::invalid(at(path, "successThreshold"), p["successThreshold"].clone(), "must be 1"));
    }
}

fn handler(h: &Value, path: &str, kinds: &[&'static str], errors: &mut Errors) {
    let chosen = given(h, kinds);
    if chosen.is_empty() {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    for (i, kind) in chosen.iter().enumerate() {
        let path = at(path, kind);
        if i > 0 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        let action = &h[*kind];
        match *kind {
            "exec" if list(&action["command"]).is_empty() => errors.push(FieldError::required(at(&path, "command"), "")),
            "httpGet" => {
                required(&action["path"], &at(&path, "path"), errors);
                port_or_name(&action["port"], &at(&path, "port"), errors);
                one_of(&action["scheme"], &at(&path, "scheme"), &["HTTP", "HTTPS"], errors);
                for (j, header) in list(&action["httpHeaders"]).iter().enumerate() {
                    let name = at(&at_index(&path, "httpHeaders", j), "name");
                    syntax(text(&header["name"]), &name, header_name, errors);
                }
            }
            "tcpSocket" => port_or_name(&action["port"], &at(&path, "port"), errors),
            "grpc" => port(&action["port"], &at(&path, "port"), errors),
            "sleep" if action["seconds"].as_i64().is_some_and(|s| s < 0) => {
                errors.push(FieldError::invalid(path, action["seconds"].clone(), "must be a non-negative integer"));
            }
            _ => {}
        }
    }
}

fn header_name(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let text = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![names::pattern_message(text, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Requests and limits of a container, or of a pod.
pub fn resources(r: &Value, path: &str, errors: &mut Errors) {
    for kind in ["limits", "requests"] {
        for (name, value) in entries(&r[kind]) {
            let path = format!("{}[{name}]", at(path, kind));
            let before = errors.len();
            syntax(name, &path, names::qualified_name, errors);
            if errors.len() == before && !name.contains('/') && !is_standard(name) {
                errors.push(FieldError::invalid(path.as_str(), name, "must be a standard resource for containers"));
            }
            amount(value, &path, !is_standard(name), errors);
        }
    }
    for (name, request) in entries(&r["requests"]) {
        let limit = &r["limits"][name];
        let (Some(asked), Some(most)) = (Quantity::from_value(request), Quantity::from_value(limit)) else {
            if !is_standard(name) && name.contains('/') {
                errors.push(FieldError::required(at(path, "limits"), "Limit must be set for non overcommitable resources"));
            }
            continue;
        };
        let fixed = !matches!(name, "cpu" | "memory" | "ephemeral-storage");
        if fixed && asked.nanos() != most.nanos() {
            let detail = format!("must be equal to {name} limit of {most}");
            errors.push(FieldError::invalid(at(path, "requests"), request.clone(), detail));
        } else if asked.nanos() > most.nanos() {
            let detail = format!("must be less than or equal to {name} limit of {most}");
            errors.push(FieldError::invalid(at(path, "requests"), request.clone(), detail));
        }
    }
}

fn security(s: &Value, path: &str, errors: &mut Errors) {
    for key in ["runAsUser", "runAsGroup"] {
        in_range(&s[key], &at(path, key), 0, i64::from(i32::MAX), errors);
    }
    maybe_one_of(&s["procMount"], &at(path, "procMount"), &["Default", "Unmasked"], errors);
    profiles(s, path, errors);
    if s["allowPrivilegeEscalation"] == false {
        if s["privileged"] == true {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, s.clone(), detail));
        }
        if crate::value::strings(&s["capabilities"]["add"]).any(|c| c == "CAP_SYS_ADMIN" || c == "SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, s.clone(), detail));
        }
    }
}

/// Seccomp and AppArmor profiles of a security context.
pub fn profiles(s: &Value, path: &str, errors: &mut Errors) {
    for kind in ["seccompProfile", "appArmorProfile"] {
        let profile = &s[kind];
        if profile.is_null() {
            continue;
        }
        let path = at(path, kind);
        one_of(&profile["type"], &at(&path, "type"), &["Localhost", "RuntimeDefault", "Unconfined"], errors);
        let local = at(&path, "localhostProfile");
        let name = text(&profile["localhostProfile"]);
        match (profile["type"] == "Localhost", name.is_empty()) {
            (true, true) => errors.push(FieldError::required(local, "must be set when seccomp type is Localhost")),
            (false, false) => errors.push(FieldError::invalid(local, name, "can only be set when seccomp type is Localhost")),
            (true, false) => relative_path(name, &local, errors),
            (false, true) => {}
        }
    }
}
