//! Pods: specs in full, and the few things an update may change.

use serde_json::Value;

use super::{
    affinity,
    check::{Errors, at, at_index, in_range, ip, maybe_one_of, non_negative, one_of, optional_name, syntax},
    container::{self, Role, container},
    names, volume,
};
use crate::{
    Document, meta,
    status::FieldError,
    value::{copy, each, entries, has, list, strings, text, unset},
};

/// A whole pod.
pub fn validate(pod: &Document, errors: &mut Errors) {
    validate_spec(&pod["spec"], "spec", errors);
}

/// What only a new pod must not have.
pub fn validate_new(pod: &Document, errors: &mut Errors) {
    if !list(&pod["spec"]["ephemeralContainers"]).is_empty() {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
}

/// A pod template at `path`.
pub fn validate_template(template: &Value, path: &str, errors: &mut Errors) {
    errors.extend(crate::meta::validate_labels(&template["metadata"]["labels"], &at(path, "labels")));
    errors.extend(crate::meta::validate_annotations(&template["metadata"]["annotations"], &at(path, "annotations")));
    validate_spec(&template["spec"], &at(path, "spec"), errors);
}

/// A pod spec at `path`.
pub fn validate_spec(spec: &Value, path: &str, errors: &mut Errors) {
    volume::volumes(spec, path, errors);
    containers(spec, path, errors);
    one_of(&spec["restartPolicy"], &at(path, "restartPolicy"), &["Always", "OnFailure", "Never"], errors);
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(&spec["dnsPolicy"], &at(path, "dnsPolicy"), &dns, errors);
    dns_config(spec, path, errors);
    for (key, value) in entries(&spec["nodeSelector"]) {
        let path = at(path, "nodeSelector");
        syntax(key, &path, names::qualified_name, errors);
        syntax(text(value), &path, names::label_value, errors);
    }
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        optional_name(&spec[key], &at(path, key), names::dns1123_subdomain, errors);
    }
    for key in ["hostname", "subdomain"] {
        optional_name(&spec[key], &at(path, key), names::dns1123_label, errors);
    }
    in_range(&spec["activeDeadlineSeconds"], &at(path, "activeDeadlineSeconds"), 1, i64::from(i32::MAX), errors);
    non_negative(&spec["terminationGracePeriodSeconds"], &at(path, "terminationGracePeriodSeconds"), errors);
    for (i, alias) in list(&spec["hostAliases"]).iter().enumerate() {
        let path = at_index(path, "hostAliases", i);
        ip(text(&alias["ip"]), &at(&path, "ip"), errors);
        for (j, host) in strings(&alias["hostnames"]).enumerate() {
            syntax(host, &at_index(&path, "hostnames", j), names::dns1123_subdomain, errors);
        }
    }
    for (i, secret) in list(&spec["imagePullSecrets"]).iter().enumerate() {
        if text(&secret["name"]).is_empty() {
            errors.push(FieldError::required(at(&at_index(path, "imagePullSecrets", i), "name"), ""));
        }
    }
    for (i, gate) in list(&spec["readinessGates"]).iter().enumerate() {
        let path = at(&at_index(path, "readinessGates", i), "conditionType");
        syntax(text(&gate["conditionType"]), &path, names::qualified_name, errors);
    }
    for (i, gate) in list(&spec["schedulingGates"]).iter().enumerate() {
        syntax(text(&gate["name"]), &at_index(path, "schedulingGates", i), names::qualified_name, errors);
    }
    if !list(&spec["schedulingGates"]).is_empty() && !text(&spec["nodeName"]).is_empty() {
        errors.push(FieldError::forbidden(at(path, "nodeName"), "cannot be set until all schedulingGates have been cleared"));
    }
    affinity::affinity(&spec["affinity"], &at(path, "affinity"), errors);
    affinity::tolerations(&spec["tolerations"], &at(path, "tolerations"), errors);
    affinity::topology_spread(&spec["topologySpreadConstraints"], &at(path, "topologySpreadConstraints"), errors);
    container::resources(&spec["resources"], &at(path, "resources"), errors);
    pod_security(&spec["securityContext"], &at(path, "securityContext"), errors);
    maybe_one_of(&spec["preemptionPolicy"], &at(path, "preemptionPolicy"), &["PreemptLowerPriority", "Never"], errors);
    maybe_one_of(&spec["os"]["name"], &at(path, "os.name"), &["linux", "windows"], errors);
}

fn containers(spec: &Value, path: &str, errors: &mut Errors) {
    let volumes: Vec<&str> = list(&spec["volumes"]).iter().map(|v| text(&v["name"])).collect();
    if list(&spec["containers"]).is_empty() {
        errors.push(FieldError::required(at(path, "containers"), ""));
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut host_ports: Vec<String> = Vec::new();
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        let role = match key {
            "containers" => Role::Main,
            "initContainers" => Role::Init,
            _ => Role::Ephemeral,
        };
        for (i, c) in list(&spec[key]).iter().enumerate() {
            let path = at_index(path, key, i);
            container(c, &path, role, &volumes, errors);
            let name = text(&c["name"]);
            if !name.is_empty() && seen.contains(&name) {
                errors.push(FieldError::duplicate(at(&path, "name"), name));
            }
            seen.push(name);
            let shares_ports = key == "containers" || c["restartPolicy"] == "Always";
            for (j, port) in list(&c["ports"]).iter().enumerate() {
                let path = at_index(&path, "ports", j);
                let number = port["hostPort"].as_i64().unwrap_or(0);
                if spec["hostNetwork"] == true && port["hostPort"] != port["containerPort"] {
                    let detail = "must match `hostPort` when `hostNetwork` is true";
                    errors.push(FieldError::invalid(at(&path, "containerPort"), port["containerPort"].clone(), detail));
                }
                if number == 0 || !shares_ports {
                    continue;
                }
                let id = format!("{}/{}/{number}", text(&port["protocol"]), text(&port["hostIP"]));
                if host_ports.contains(&id) {
                    errors.push(FieldError::duplicate(at(&path, "hostPort"), id.as_str()));
                }
                host_ports.push(id);
            }
            if let Some(target) = c["targetContainerName"].as_str().filter(|t| !t.is_empty())
                && !list(&spec["containers"]).iter().any(|c| c["name"] == target)
            {
                errors.push(FieldError::not_found(at(&path, "targetContainerName"), target));
            }
        }
    }
}

fn dns_config(spec: &Value, path: &str, errors: &mut Errors) {
    let (config, path) = (&spec["dnsConfig"], at(path, "dnsConfig"));
    let servers = list(&config["nameservers"]);
    if spec["dnsPolicy"] == "None" && !has(spec, "dnsConfig") {
        errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
        return;
    }
    if spec["dnsPolicy"] == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(at(&path, "nameservers"), detail));
    }
    if servers.len() > 3 {
        errors.push(FieldError::invalid(at(&path, "nameservers"), config["nameservers"].clone(), "must not have more than 3 nameservers"));
    }
    for (i, server) in servers.iter().enumerate() {
        ip(text(server), &at_index(&path, "nameservers", i), errors);
    }
    if list(&config["searches"]).len() > 32 {
        errors.push(FieldError::invalid(at(&path, "searches"), config["searches"].clone(), "must not have more than 32 search paths"));
    }
    for (i, search) in strings(&config["searches"]).enumerate() {
        let name = search.strip_suffix('.').filter(|n| !n.is_empty()).unwrap_or(search);
        if name != "." {
            syntax(&name.replace('_', "-"), &at_index(&path, "searches", i), names::dns1123_subdomain, errors);
        }
    }
    for (i, option) in list(&config["options"]).iter().enumerate() {
        if text(&option["name"]).is_empty() {
            errors.push(FieldError::required(at_index(&path, "options", i), "must not be empty"));
        }
    }
}

fn pod_security(s: &Value, path: &str, errors: &mut Errors) {
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        in_range(&s[key], &at(path, key), 0, i64::from(i32::MAX), errors);
    }
    for (i, group) in list(&s["supplementalGroups"]).iter().enumerate() {
        in_range(group, &at_index(path, "supplementalGroups", i), 0, i64::from(i32::MAX), errors);
    }
    maybe_one_of(&s["fsGroupChangePolicy"], &at(path, "fsGroupChangePolicy"), &["Always", "OnRootMismatch"], errors);
    container::profiles(s, path, errors);
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in list(&s["sysctls"]).iter().enumerate() {
        let path = at(&at_index(path, "sysctls", i), "name");
        let name = text(&sysctl["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if seen.contains(&name) {
            errors.push(FieldError::duplicate(path, name));
        }
        seen.push(name);
    }
}

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What an update changes that it may not.
pub fn validate_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    match sub {
        "" => spec_update(&new["spec"], &old["spec"], errors),
        "ephemeralcontainers" => {
            validate(new, errors);
            let kept = list(&new["spec"]["ephemeralContainers"]);
            for before in list(&old["spec"]["ephemeralContainers"]) {
                match kept.iter().find(|c| c["name"] == before["name"]) {
                    None => errors.push(FieldError::forbidden(
                        "spec.ephemeralContainers",
                        format!("existing ephemeral containers {} may not be removed\n", before["name"]),
                    )),
                    Some(after) if after != before => errors.push(FieldError::forbidden(
                        "spec.ephemeralContainers",
                        format!("existing ephemeral containers {} may not be changed\n", before["name"]),
                    )),
                    Some(_) => {}
                }
            }
        }
        "resize" => {
            validate(new, errors);
            let (before, after) = (&old["status"]["qosClass"], crate::kinds::podspec::qos_class(&new["spec"]));
            if !before.is_null() && before != after {
                errors.push(FieldError::invalid("spec", after, "Pod QOS Class may not change as a result of resizing"));
            }
        }
        _ => {}
    }
}

fn spec_update(new: &Value, old: &Value, errors: &mut Errors) {
    for (key, what) in [("containers", "containers"), ("initContainers", "initContainers")] {
        if list(&new[key]).len() != list(&old[key]).len() {
            errors.push(FieldError::forbidden(format!("spec.{key}"), format!("pod updates may not add or remove {what}")));
            return;
        }
    }
    deadline(new, old, errors);
    tolerations(&new["tolerations"], &old["tolerations"], errors);
    for (i, gate) in list(&new["schedulingGates"]).iter().enumerate() {
        if !list(&old["schedulingGates"]).contains(gate) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", text(&gate["name"]));
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}]"), detail));
        }
    }
    // What may change is made equal; whatever differs then, may not.
    let mut rest = new.clone();
    for key in ["containers", "initContainers"] {
        let before = list(&old[key]);
        let mut i = 0;
        each(&mut rest, key, |c| {
            if !text(&c["image"]).is_empty() {
                copy(c, &before[i], "image");
            }
            i += 1;
        });
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy(&mut rest, old, key);
    }
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) && new["terminationGracePeriodSeconds"] == 1 {
        copy(&mut rest, old, "terminationGracePeriodSeconds");
    }
    if !list(&old["schedulingGates"]).is_empty() {
        // A pod that is not yet handed to the scheduler may still be directed.
        for key in ["nodeSelector", "affinity"] {
            copy(&mut rest, old, key);
        }
    }
    let mut old = old.clone();
    for spec in [&mut rest, &mut old] {
        if crate::value::is_zero(&spec["securityContext"]) {
            unset(spec, "securityContext");
        }
    }
    let changed: Vec<&str> = {
        let keys = entries(&rest).map(|(k, _)| k).chain(entries(&old).map(|(k, _)| k));
        let mut keys: Vec<&str> = keys.filter(|k| !meta::same(&rest[*k], &old[*k])).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    if !changed.is_empty() {
        let lines: String = changed.iter().map(|k| format!("-\t{k}: {}\n+\t{k}: {}\n", short(&old[*k]), short(&rest[*k]))).collect();
        errors.push(FieldError::forbidden("spec", format!("{MAY_CHANGE}\n{lines}")));
    }
}

/// A value as far as a message has room for it.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn deadline(new: &Value, old: &Value, errors: &mut Errors) {
    const PATH: &str = "spec.activeDeadlineSeconds";
    match (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64()) {
        (None, Some(_)) => errors.push(FieldError::invalid(PATH, Value::Null, "must not update from a positive integer to nil value")),
        (Some(after), Some(before)) if after > before => {
            errors.push(FieldError::invalid(PATH, after, "must be less than or equal to previous value"));
        }
        _ => {}
    }
}

fn tolerations(new: &Value, old: &Value, errors: &mut Errors) {
    let like = |a: &Value, b: &Value| ["key", "operator", "value", "effect"].iter().all(|k| meta::same(&a[*k], &b[*k]));
    for before in list(old) {
        if !list(new).iter().any(|after| like(after, before)) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            errors.push(FieldError::forbidden("spec.tolerations", detail));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use serde_json::json;

    fn pod(change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        change(&mut pod["spec"]);
        by_kind("v1", "Pod").unwrap().hooks.default(&mut pod);
        pod
    }

    fn messages(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut errors = Vec::new();
        validate(&pod(change), &mut errors);
        errors.iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn a_plain_pod_is_valid() {
        assert_eq!(messages(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn messages_are_upstreams() {
        let case = |change: fn(&mut Value), want: &str| assert_eq!(messages(change), [want]);
        case(|s| s["containers"] = json!([]), "spec.containers: Required value");
        case(|s| unset(&mut s["containers"][0], "image"), "spec.containers[0].image: Required value");
        case(
            |s| s["restartPolicy"] = "x".into(),
            "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        );
        case(
            |s| s["containers"] = json!([{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]),
            "spec.containers[1].name: Duplicate value: \"c\"",
        );
        case(
            |s| s["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/x"}]),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        );
        case(
            |s| s["containers"][0]["ports"] = json!([{"containerPort": 70000}]),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        );
        case(
            |s| s["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        );
        case(
            |s| s["containers"][0]["livenessProbe"] = json!({}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        );
        case(
            |s| s["tolerations"] = json!([{"operator": "Equal"}]),
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which \
             means \"match all values and all keys\"",
        );
        case(|s| s["volumes"] = json!([{"name": "v", "hostPath": {}}]), "spec.volumes[0].hostPath.path: Required value");
        case(
            |s| s["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}, "emptyDir": {}}]),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        );
        case(
            |s| s["initContainers"] = json!([{"name": "i", "image": "i", "readinessProbe": {"exec": {"command": ["x"]}}}]),
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        );
        case(
            |s| s["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {}}]),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
             `configMapKeyRef` or `secretKeyRef`",
        );
        case(
            |s| s["topologySpreadConstraints"] = json!([{"maxSkew": 0, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}]),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
        );
    }

    #[test]
    fn updates_change_little() {
        let old = pod(|s| s["activeDeadlineSeconds"] = 10.into());
        let update = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new["spec"]);
            let mut errors = Vec::new();
            validate_update(&new, &old, "", &mut errors);
            errors.iter().map(|e| e.to_string()).collect::<Vec<_>>()
        };
        assert!(update(|s| s["containers"][0]["image"] = "j".into()).is_empty());
        assert!(update(|s| s["activeDeadlineSeconds"] = 5.into()).is_empty());
        assert!(update(|s| s["tolerations"] = json!([{"key": "a", "operator": "Exists"}])).is_empty());
        assert!(
            update(|s| s["hostNetwork"] = true.into())[0].starts_with(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers"
            )
        );
        assert_eq!(update(|s| s["containers"] = json!([])), ["spec.containers: Forbidden: pod updates may not add or remove containers"]);
        assert_eq!(
            update(|s| s["activeDeadlineSeconds"] = 50.into()),
            ["spec.activeDeadlineSeconds: Invalid value: 50: must be less than or equal to previous value"]
        );
        let mut set_to = old.clone();
        crate::value::set(&mut set_to["spec"], "nodeName", "n");
        let mut errors = Vec::new();
        validate_update(&set_to, &old, "status", &mut errors);
        assert!(errors.is_empty());
    }
}
