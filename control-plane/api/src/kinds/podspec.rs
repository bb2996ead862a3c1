//! Defaults of pod specs, shared by pods and every template, and what is derived from a spec.

use serde_json::{Value, json};

use crate::{
    quantity::Quantity,
    value::{self, child, default, each, entries, has, list, set, text, with},
};

/// The three lists of containers of a pod spec.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// `SetDefaults_PodSpec` and all below it.
pub fn default_pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    child(spec, "securityContext");
    mirror_service_account(spec);
    for key in CONTAINER_LISTS {
        each(spec, key, default_container);
    }
    each(spec, "volumes", default_volume);
}

/// A pod template: its spec.
pub fn default_template(owner_spec: &mut Value) {
    with(owner_spec, "template", |template| {
        if let Some(spec) = child(template, "spec") {
            default_pod_spec(spec);
        }
        child(template, "metadata");
    });
}

/// The deprecated alias `serviceAccount` always tells the same as `serviceAccountName`.
pub fn mirror_service_account(spec: &mut Value) {
    let name = match (text(&spec["serviceAccountName"]), text(&spec["serviceAccount"])) {
        ("", "") => return,
        ("", alias) => alias.to_owned(),
        (name, _) => name.to_owned(),
    };
    set(spec, "serviceAccountName", name.as_str());
    set(spec, "serviceAccount", name);
}

fn default_container(container: &mut Value) {
    let policy = if tag_is_latest(text(&container["image"])) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    child(container, "resources");
    each(container, "ports", |port| default(port, "protocol", "TCP"));
    each(container, "env", |env| {
        with(env, "valueFrom", |from| {
            with(from, "fieldRef", |f| default(f, "apiVersion", "v1"));
            with(from, "resourceFieldRef", |f| default(f, "divisor", "0"));
        });
    });
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        with(container, probe, default_probe);
    }
    with(container, "lifecycle", |lifecycle| {
        for hook in ["postStart", "preStop"] {
            with(lifecycle, hook, |h| with(h, "httpGet", default_http_get));
        }
    });
}

fn default_probe(probe: &mut Value) {
    for (key, fallback) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        if value::is_zero(&probe[key]) {
            set(probe, key, fallback);
        }
    }
    with(probe, "httpGet", default_http_get);
    with(probe, "grpc", |grpc| {
        if !has(grpc, "service") {
            set(grpc, "service", "");
        }
    });
}

fn default_http_get(action: &mut Value) {
    default(action, "path", "/");
    default(action, "scheme", "HTTP");
}

/// Whether an image reference means `latest`: no tag and no digest, or that tag.
fn tag_is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, false), |(n, _)| (n, true));
    match name.rsplit('/').next().and_then(|last| last.split_once(':')) {
        Some((_, tag)) => tag == "latest",
        None => !digest,
    }
}

fn default_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|m| m.keys().all(|k| k == "name")) {
        set(volume, "emptyDir", json!({}));
    }
    with(volume, "hostPath", |v| {
        if !has(v, "type") {
            set(v, "type", "");
        }
    });
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        with(volume, kind, |v| default(v, "defaultMode", 0o644));
    }
    with(volume, "downwardAPI", default_downward_items);
    with(volume, "projected", |projected| {
        each(projected, "sources", |source| {
            with(source, "serviceAccountToken", |token| default(token, "expirationSeconds", 3600));
            with(source, "downwardAPI", default_downward_items);
        });
    });
    with(volume, "ephemeral", |e| {
        with(e, "volumeClaimTemplate", |t| with(t, "spec", |s| default(s, "volumeMode", "Filesystem")));
    });
    with(volume, "iscsi", |v| default(v, "iscsiInterface", "default"));
    with(volume, "image", |v| {
        let policy = if tag_is_latest(text(&v["reference"])) { "Always" } else { "IfNotPresent" };
        default(v, "pullPolicy", policy);
    });
}

fn default_downward_items(volume: &mut Value) {
    each(volume, "items", |item| {
        with(item, "fieldRef", |f| default(f, "apiVersion", "v1"));
        with(item, "resourceFieldRef", |f| default(f, "divisor", "0"));
    });
}

/// What only a pod, not a template, gets: service links, requests from limits, host ports of the host's network.
pub fn default_pod_only(spec: &mut Value) {
    default(spec, "enableServiceLinks", true);
    let host_network = spec["hostNetwork"] == true;
    for key in ["initContainers", "containers"] {
        each(spec, key, |container| {
            with(container, "resources", requests_from_limits);
            if host_network {
                each(container, "ports", |port| {
                    let own = port["containerPort"].clone();
                    if value::is_zero(&port["hostPort"]) && !own.is_null() {
                        set(port, "hostPort", own);
                    }
                });
            }
        });
    }
    with(spec, "resources", requests_from_limits);
}

fn requests_from_limits(resources: &mut Value) {
    let limits: Vec<(String, Value)> = entries(&resources["limits"]).map(|(k, v)| (k.into(), v.clone())).collect();
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = child(resources, "requests") {
        for (name, amount) in limits {
            default(requests, &name, amount);
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &Value) -> &'static str {
    let pod_level = &spec["resources"];
    let all: Vec<&Value> = if has(pod_level, "limits") || has(pod_level, "requests") {
        vec![pod_level]
    } else {
        ["containers", "initContainers"].iter().flat_map(|k| list(&spec[*k])).map(|c| &c["resources"]).collect()
    };
    let amount =
        |resources: &Value, kind: &str, name: &str| Quantity::from_value(&resources[kind][name]).map(|q| q.nanos()).filter(|n| *n > 0);
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let any = |r: &&Value| COUNTED.iter().any(|n| amount(r, "limits", n).is_some() || amount(r, "requests", n).is_some());
    if !all.iter().any(any) {
        return "BestEffort";
    }
    let full = |r: &Value| {
        COUNTED.iter().all(|name| {
            let limit = amount(r, "limits", name);
            limit.is_some() && amount(r, "requests", name).is_none_or(|request| Some(request) == limit)
        })
    };
    if all.iter().all(|r| full(r)) { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_upstreams_and_stay() {
        let mut spec = json!({"serviceAccount": "sa", "containers": [{"name": "a", "image": "x:1",
            "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 1}},
            "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "c"}}]});
        default_pod_spec(&mut spec);
        assert_eq!(spec["serviceAccountName"], "sa");
        assert_eq!(spec["securityContext"], json!({}));
        let c = &spec["containers"][0];
        assert_eq!((&c["imagePullPolicy"], &c["ports"][0]["protocol"]), (&json!("IfNotPresent"), &json!("TCP")));
        assert_eq!(
            c["livenessProbe"],
            json!({"httpGet": {"port": 1, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                   "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(c["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!((&spec["volumes"][0]["emptyDir"], &spec["volumes"][1]["configMap"]["defaultMode"]), (&json!({}), &json!(420)));
        let once = spec.clone();
        default_pod_spec(&mut spec);
        assert_eq!(spec, once);
    }

    #[test]
    fn tags() {
        for (image, latest) in
            [("a", true), ("a:latest", true), ("a:1", false), ("h:5000/a", true), ("h:5000/a:1", false), ("a@sha256:00", false)]
        {
            assert_eq!(tag_is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn qos_follows_resources() {
        let spec = |resources: Value| json!({"containers": [{"resources": resources}]});
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(qos_class(&spec(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let limits = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&spec(json!({"limits": limits, "requests": {"cpu": "1000m"}}))), "Guaranteed");
        assert_eq!(qos_class(&spec(json!({"limits": limits, "requests": {"cpu": "500m"}}))), "Burstable");
    }
}
