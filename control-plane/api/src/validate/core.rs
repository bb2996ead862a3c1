//! The simpler kinds: data, events, quotas, nodes, leases, classes.

use base64::Engine;
use serde_json::Value;

use super::{
    affinity,
    check::{Errors, amount, at, at_index, cidr, data_key, one_of, port, required, required_name, syntax},
    names, network,
};
use crate::{
    Document,
    kinds::immutable,
    meta::same,
    quantity::Quantity,
    status::FieldError,
    value::{entries, has, list, strings, text},
};

/// Bytes that the data of a config map or secret may have.
const MAX_DATA: usize = 1024 * 1024;

/// Length of what base64 text stands for.
fn decoded(value: &Value) -> usize {
    base64::engine::general_purpose::STANDARD.decode(text(value)).map_or(0, |bytes| bytes.len())
}

pub fn config_map(doc: &Document, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(&doc["data"]) {
        let path = format!("data[{key}]");
        syntax(key, &path, data_key, errors);
        if has(&doc["binaryData"], key) {
            errors.push(FieldError::invalid(path, key, "duplicate of key present in binaryData"));
        }
        size += text(value).len();
    }
    for (key, value) in entries(&doc["binaryData"]) {
        syntax(key, &format!("binaryData[{key}]"), data_key, errors);
        size += decoded(value);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("", MAX_DATA));
    }
}

pub fn config_map_update(new: &Document, old: &Document, _sub: &str, errors: &mut Errors) {
    frozen(new, old, &["data", "binaryData"], errors);
}

fn frozen(new: &Document, old: &Document, keys: &[&str], errors: &mut Errors) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for key in keys {
        if !same(&new[*key], &old[*key]) {
            errors.push(FieldError::forbidden(*key, "field is immutable when `immutable` is set"));
        }
    }
}

pub fn secret(doc: &Document, errors: &mut Errors) {
    let data = &doc["data"];
    let mut size = 0;
    for (key, value) in entries(data) {
        syntax(key, &format!("data[{key}]"), data_key, errors);
        size += decoded(value);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA));
    }
    let mut needs = |keys: &[&str]| {
        for key in keys.iter().filter(|k| !has(data, k)) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(&doc["type"]) {
        "kubernetes.io/service-account-token" if text(&doc["metadata"]["annotations"]["kubernetes.io/service-account.name"]).is_empty() => {
            errors.push(FieldError::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
        }
        "kubernetes.io/dockercfg" => needs(&[".dockercfg"]),
        "kubernetes.io/dockerconfigjson" => {
            needs(&[".dockerconfigjson"]);
            let bytes = base64::engine::general_purpose::STANDARD.decode(text(&data[".dockerconfigjson"])).unwrap_or_default();
            if has(data, ".dockerconfigjson") && serde_json::from_slice::<Value>(&bytes).is_err() {
                let path = "data[.dockerconfigjson]";
                errors.push(FieldError::invalid(path, "<secret contents redacted>", "invalid character in JSON input"));
            }
        }
        "kubernetes.io/basic-auth" if !has(data, "username") && !has(data, "password") => needs(&["username", "password"]),
        "kubernetes.io/ssh-auth" => needs(&["ssh-privatekey"]),
        "kubernetes.io/tls" => needs(&["tls.crt", "tls.key"]),
        _ => {}
    }
}

pub fn secret_update(new: &Document, old: &Document, _sub: &str, errors: &mut Errors) {
    immutable(new, old, "/type", errors);
    frozen(new, old, &["data"], errors);
}

/// Core events must be in the namespace of what they are about.
pub fn event(doc: &Document, errors: &mut Errors) {
    let (own, about) = (text(&doc["metadata"]["namespace"]), text(&doc["involvedObject"]["namespace"]));
    let wanted = if about.is_empty() { "default" } else { about };
    if own != wanted && !(about.is_empty() && own == "kube-system") {
        errors.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
}

pub fn new_event(doc: &Document, errors: &mut Errors) {
    required(&doc["eventTime"], "eventTime", errors);
    required_name(&doc["reportingController"], "reportingController", names::qualified_name, errors);
    required(&doc["reportingInstance"], "reportingInstance", errors);
    for key in ["action", "reason"] {
        if required(&doc[key], key, errors) && text(&doc[key]).len() > 128 {
            errors.push(FieldError::invalid(key, "", "can have at most 128 characters"));
        }
    }
    if text(&doc["note"]).len() > 1024 {
        errors.push(FieldError::invalid("note", "", "can have at most 1024 characters"));
    }
    one_of(&doc["type"], "type", &["Normal", "Warning"], errors);
}

pub fn binding(doc: &Document, errors: &mut Errors) {
    let target = &doc["target"];
    if !matches!(text(&target["kind"]), "" | "Node") {
        errors.push(FieldError::not_supported("target.kind", text(&target["kind"]), &["Node", "<empty>"]));
    }
    if text(&target["name"]).is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
}

pub fn limit_range(doc: &Document, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, item) in list(&doc["spec"]["limits"]).iter().enumerate() {
        let path = at_index("spec", "limits", i);
        let type_ = text(&item["type"]);
        required_name(&item["type"], &at(&path, "type"), names::qualified_name, errors);
        if seen.contains(&type_) {
            errors.push(FieldError::duplicate(at(&path, "type"), type_));
        }
        seen.push(type_);
        if type_ == "Pod" {
            for key in ["default", "defaultRequest"] {
                if entries(&item[key]).next().is_some() {
                    errors.push(FieldError::forbidden(at(&path, key), "may not be specified when `type` is 'Pod'"));
                }
            }
        }
        let kinds = ["min", "max", "default", "defaultRequest"];
        let mut named: Vec<&str> = kinds.iter().flat_map(|k| entries(&item[*k])).map(|(name, _)| name).collect();
        named.sort_unstable();
        named.dedup();
        for name in named {
            ordered(item, &path, name, errors);
        }
    }
}

/// min <= defaultRequest <= default <= max
fn ordered(item: &Value, path: &str, name: &str, errors: &mut Errors) {
    let get = |key: &str| Quantity::from_value(&item[key][name]);
    for (low, high, words) in [
        ("min", "max", "min value {} is greater than max value {}"),
        ("min", "defaultRequest", "min value {} is greater than default request value {}"),
        ("defaultRequest", "max", "default request value {} is greater than max value {}"),
        ("defaultRequest", "default", "default request value {} is greater than default limit value {}"),
        ("min", "default", "min value {} is greater than default value {}"),
        ("default", "max", "default value {} is greater than max value {}"),
    ] {
        if let (Some(a), Some(b)) = (get(low), get(high))
            && a.nanos() > b.nanos()
        {
            let at_key = if low == "min" && high != "max" { high } else { low };
            let detail = words.replacen("{}", &a.to_string(), 1).replacen("{}", &b.to_string(), 1);
            errors.push(FieldError::invalid(format!("{path}.{at_key}[{name}]"), item[at_key][name].clone(), detail));
        }
    }
}

pub fn resource_quota(doc: &Document, errors: &mut Errors) {
    for (name, value) in entries(&doc["spec"]["hard"]) {
        let path = format!("spec.hard[{name}]");
        syntax(name, &path, names::qualified_name, errors);
        let counted = name.starts_with("count/")
            || matches!(
                name,
                "pods"
                    | "services"
                    | "replicationcontrollers"
                    | "resourcequotas"
                    | "secrets"
                    | "configmaps"
                    | "persistentvolumeclaims"
                    | "services.nodeports"
                    | "services.loadbalancers"
            );
        amount(value, &path, counted, errors);
    }
    const SCOPES: [&str; 7] = [
        "Terminating",
        "NotTerminating",
        "BestEffort",
        "NotBestEffort",
        "PriorityClass",
        "CrossNamespacePodAffinity",
        "VolumeAttributesClass",
    ];
    for scope in strings(&doc["spec"]["scopes"]).filter(|s| !SCOPES.contains(s)) {
        errors.push(FieldError::invalid("spec.scopes", scope, "unsupported scope"));
    }
}

pub fn node(doc: &Document, errors: &mut Errors) {
    affinity::taints(&doc["spec"]["taints"], "spec.taints", errors);
    let cidrs = list(&doc["spec"]["podCIDRs"]);
    for (i, block) in strings(&doc["spec"]["podCIDRs"]).enumerate() {
        cidr(block, &at_index("spec", "podCIDRs", i), errors);
    }
    if cidrs.len() > 2 {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid("spec.podCIDRs", doc["spec"]["podCIDRs"].clone(), detail));
    }
    if let (Some(first), Some(single)) = (cidrs.first(), doc["spec"]["podCIDR"].as_str())
        && first != single
    {
        let detail = "spec.podCIDRs[0] must match spec.podCIDR";
        errors.push(FieldError::invalid("spec.podCIDRs", doc["spec"]["podCIDRs"].clone(), detail));
    }
}

pub fn node_update(new: &Document, old: &Document, _sub: &str, errors: &mut Errors) {
    for key in ["podCIDRs", "providerID"] {
        let (after, before) = (&new["spec"][key], &old["spec"][key]);
        if !crate::value::is_zero(before) && !same(after, before) {
            let detail = if key == "podCIDRs" {
                "node updates may not change podCIDR except from \"\" to valid"
            } else {
                "node updates may not change providerID except from \"\" to valid"
            };
            errors.push(FieldError::forbidden(at("spec", key), detail));
        }
    }
    for (name, value) in entries(&new["status"]["capacity"]) {
        amount(value, &format!("status.capacity[{name}]"), false, errors);
    }
}

pub fn lease(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|s| *s <= 0) {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    if let Some(n) = spec["leaseTransitions"].as_i64().filter(|n| *n < 0) {
        errors.push(FieldError::invalid("spec.leaseTransitions", n, "must be greater than or equal to 0"));
    }
    if has(spec, "holderIdentity") && text(&spec["holderIdentity"]).is_empty() {
        errors.push(FieldError::invalid("spec.holderIdentity", "", "must not be empty"));
    }
}

pub fn runtime_class(doc: &Document, errors: &mut Errors) {
    syntax(text(&doc["handler"]), "handler", names::dns1123_label, errors);
}

pub fn certificate_request(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    if list(&spec["usages"]).is_empty() {
        errors.push(FieldError::required("spec.usages", "usages must be specified"));
    }
    match text(&spec["signerName"]) {
        "" => errors.push(FieldError::required("spec.signerName", "")),
        name if !name.contains('/') || name.ends_with('/') => errors.push(FieldError::invalid(
            "spec.signerName",
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        )),
        _ => {}
    }
    required(&spec["request"], "spec.request", errors);
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|s| *s < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, detail));
    }
}

pub fn endpoints(doc: &Document, errors: &mut Errors) {
    for (i, subset) in list(&doc["subsets"]).iter().enumerate() {
        let path = format!("subsets[{i}]");
        let addresses = ["addresses", "notReadyAddresses"];
        if addresses.iter().all(|k| list(&subset[*k]).is_empty()) {
            errors.push(FieldError::required(path.as_str(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for kind in addresses {
            for (j, address) in list(&subset[kind]).iter().enumerate() {
                network::endpoint_address(address, &at_index(&path, kind, j), errors);
            }
        }
        let ports = list(&subset["ports"]);
        for (j, p) in ports.iter().enumerate() {
            let path = at_index(&path, "ports", j);
            match text(&p["name"]) {
                "" if ports.len() > 1 => errors.push(FieldError::required(at(&path, "name"), "")),
                "" => {}
                name => syntax(name, &at(&path, "name"), names::dns1123_label, errors),
            }
            port(&p["port"], &at(&path, "port"), errors);
            one_of(&p["protocol"], &at(&path, "protocol"), &["SCTP", "TCP", "UDP"], errors);
        }
    }
}

/// The highest priority users may define.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

pub fn priority_class(doc: &Document, errors: &mut Errors) {
    let (name, value) = (text(&doc["metadata"]["name"]), doc["value"].as_i64().unwrap_or(0));
    let system = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    if name.starts_with("system-") {
        if !system.contains(&(name, value)) {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: only system \
                          priority classes may have this prefix";
            errors.push(FieldError::forbidden("metadata.name", detail));
        }
    } else if value > HIGHEST_PRIORITY {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}");
        errors.push(FieldError::forbidden("value", detail));
    }
    one_of(&doc["preemptionPolicy"], "preemptionPolicy", &["Never", "PreemptLowerPriority"], errors);
}

pub fn priority_class_update(new: &Document, old: &Document, _sub: &str, errors: &mut Errors) {
    if new["value"] != old["value"] {
        errors.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    immutable(new, old, "/preemptionPolicy", errors);
}

#[cfg(test)]
mod tests {
    use crate::builtin::by_kind;
    use serde_json::{Value, json};

    fn messages(kind: &str, doc: Value) -> Vec<String> {
        by_kind("v1", kind).unwrap().hooks.validate_create(&doc).iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn data_has_keys_and_bounds() {
        assert!(messages("ConfigMap", json!({"data": {"a.b-c_D": "x"}})).is_empty());
        assert!(
            messages("ConfigMap", json!({"data": {"a b": "x"}}))[0]
                .starts_with("data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters")
        );
        assert_eq!(
            messages("ConfigMap", json!({"data": {"a": "x".repeat(super::MAX_DATA + 1)}})),
            ["Too long: may not be more than 1048576 bytes"]
        );
        assert_eq!(messages("Secret", json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})), ["data[tls.key]: Required value"]);
        let (old, new) = (json!({"immutable": true, "data": {"a": "1"}}), json!({"immutable": true, "data": {"a": "2"}}));
        let errors = by_kind("v1", "ConfigMap").unwrap().hooks.validate_update(&new, &old, "");
        assert_eq!(errors[0].to_string(), "data: Forbidden: field is immutable when `immutable` is set");
    }

    #[test]
    fn others_name_what_is_wrong() {
        assert_eq!(
            messages("LimitRange", json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}})),
            ["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]
        );
        assert_eq!(
            messages("ResourceQuota", json!({"spec": {"hard": {"pods": "1.5"}}})),
            ["spec.hard[pods]: Invalid value: \"1.5\": must be an integer"]
        );
        assert_eq!(messages("Binding", json!({"target": {}})), ["target.name: Required value"]);
    }
}
