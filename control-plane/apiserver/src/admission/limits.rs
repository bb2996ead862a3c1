//! LimitRanger: defaults and bounds for what containers, pods and claims ask for.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use xebec_api::{
    Document,
    quantity::Quantity,
    status::ApiError,
    value::{entries, list, text},
};

use super::{is, refuse};
use crate::extension::{Change, Operation};
use crate::objects::Objects;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn items(objects: &dyn Objects, namespace: &str) -> Vec<Value> {
    objects.list("limitranges", namespace).iter().flat_map(|range| list(&range["spec"]["limits"]).to_vec()).collect()
}

/// Fills requests and limits a container does not state.
pub(super) fn mutate(objects: &dyn Objects, change: &mut Change<'_>) {
    let items = items(objects, change.namespace);
    let Some(pod) = change.object.as_mut().filter(|pod| pod["spec"].is_object()) else { return };
    let (mut limits, mut requests) = (BTreeMap::new(), BTreeMap::new());
    for item in items.iter().filter(|item| item["type"] == "Container") {
        let mut default: Map<String, Value> = item["default"].as_object().cloned().unwrap_or_default();
        for (name, max) in entries(&item["max"]) {
            default.entry(name).or_insert_with(|| max.clone());
        }
        let mut request: Map<String, Value> = item["defaultRequest"].as_object().cloned().unwrap_or_default();
        for (name, value) in &default {
            request.entry(name).or_insert_with(|| value.clone());
        }
        for (name, min) in entries(&item["min"]) {
            request.entry(name).or_insert_with(|| min.clone());
        }
        limits.extend(default);
        requests.extend(request);
    }
    let mut set = Vec::new();
    for (kind, word) in [("initContainers", "init container"), ("containers", "container")] {
        if pod["spec"].get(kind).is_none() {
            continue;
        }
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
            let name = text(&container["name"]).to_string();
            let stated: Map<String, Value> = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
            for (field, defaults) in [("request", &requests), ("limit", &limits)] {
                let mut filled = Vec::new();
                for (resource, value) in defaults {
                    let own = &container["resources"][format!("{field}s")];
                    // A stated limit is also the request.
                    if own.get(resource).is_none() && !(field == "request" && stated.contains_key(resource)) {
                        container["resources"][format!("{field}s")][resource] = value.clone();
                        filled.push(resource.as_str());
                    }
                }
                if !filled.is_empty() {
                    set.push(format!("{} {field} for {word} {name}", filled.join(", ")));
                }
            }
            if let Some(resources) = container["resources"].as_object_mut() {
                resources.retain(|_, value| !value.is_null());
            }
        }
    }
    if !set.is_empty() {
        pod["metadata"]["annotations"][ANNOTATION] = format!("LimitRanger plugin set: {}", set.join("; ")).into();
    }
}

/// Refuses what is outside of the bounds.
pub(super) fn validate(objects: &dyn Objects, change: &Change<'_>) -> Result<(), ApiError> {
    let Some(object) = change.object.as_ref().filter(|_| matches!(change.operation, Operation::Create | Operation::Update)) else {
        return Ok(());
    };
    let pod = is(change, "", "pods") && change.operation == Operation::Create;
    if !pod && !is(change, "", "persistentvolumeclaims") {
        return Ok(());
    }
    let mut errors = Vec::new();
    for item in items(objects, change.namespace) {
        let kind = text(&item["type"]);
        let asked: Vec<(Document, Document)> = match (kind, pod) {
            ("Container", true) => ["initContainers", "containers"]
                .iter()
                .flat_map(|list_name| list(&object["spec"][*list_name]))
                .map(|c| (c["resources"]["requests"].clone(), c["resources"]["limits"].clone()))
                .collect(),
            ("Pod", true) => vec![(total(object, "requests"), total(object, "limits"))],
            ("PersistentVolumeClaim", false) => vec![(object["spec"]["resources"]["requests"].clone(), Value::Null)],
            _ => Vec::new(),
        };
        for (requests, limits) in asked {
            errors.extend(bounds(kind, &item, &requests, &limits));
        }
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(refuse(change, &errors[0])),
        _ => Err(refuse(change, format!("[{}]", errors.join(", ")))),
    }
}

fn bounds(kind: &str, item: &Value, requests: &Value, limits: &Value) -> Vec<String> {
    let claim = kind == "PersistentVolumeClaim";
    let amount = |of: &Value, name: &str| Quantity::from_value(&of[name]);
    let mut errors = Vec::new();
    for (name, min) in entries(&item["min"]) {
        let Some(bound) = Quantity::from_value(min) else { continue };
        let start = format!("minimum {name} usage per {kind} is {}", text(min));
        match (amount(requests, name), amount(limits, name)) {
            (None, _) => errors.push(format!("{start}.  No request is specified")),
            (Some(request), _) if request.nanos() < bound.nanos() => {
                errors.push(format!("{start}, but request is {}", text(&requests[name])))
            }
            (_, Some(limit)) if limit.nanos() < bound.nanos() => errors.push(format!("{start}, but limit is {}", text(&limits[name]))),
            _ => {}
        }
    }
    for (name, max) in entries(&item["max"]) {
        let Some(bound) = Quantity::from_value(max) else { continue };
        let start = format!("maximum {name} usage per {kind} is {}", text(max));
        match (amount(requests, name), amount(limits, name)) {
            (_, None) if !claim => errors.push(format!("{start}.  No limit is specified")),
            (_, Some(limit)) if limit.nanos() > bound.nanos() => errors.push(format!("{start}, but limit is {}", text(&limits[name]))),
            (Some(request), _) if request.nanos() > bound.nanos() => {
                errors.push(format!("{start}, but request is {}", text(&requests[name])))
            }
            _ => {}
        }
    }
    for (name, ratio) in entries(&item["maxLimitRequestRatio"]) {
        let Some(bound) = Quantity::from_value(ratio) else { continue };
        let start = format!("{name} max limit to request ratio per {kind} is {}", text(ratio));
        match (amount(requests, name), amount(limits, name)) {
            (Some(request), Some(limit)) if request.nanos() > 0 => {
                let provided = limit.nanos() as f64 / request.nanos() as f64;
                if provided > bound.nanos() as f64 / 1e9 {
                    errors.push(format!("{start}, but provided ratio is {provided:.6}"));
                }
            }
            _ => errors.push(format!("{start}, but no request is specified or request is 0")),
        }
    }
    errors
}

/// A pod's whole: the sum of its containers, or the largest init container if that is more.
pub(super) fn total(pod: &Value, field: &str) -> Value {
    let spec = &pod["spec"];
    let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
    for container in list(&spec["containers"]) {
        for (name, value) in entries(&container["resources"][field]) {
            let Some(value) = Quantity::from_value(value) else { continue };
            sum.entry(name.into()).and_modify(|q| *q = plus(q, &value)).or_insert(value);
        }
    }
    for container in list(&spec["initContainers"]) {
        for (name, value) in entries(&container["resources"][field]) {
            let Some(value) = Quantity::from_value(value) else { continue };
            let most = sum.get(name).is_none_or(|q| q.nanos() < value.nanos());
            if most {
                sum.insert(name.into(), value);
            }
        }
    }
    Value::Object(sum.into_iter().map(|(name, value)| (name, value.to_string().into())).collect())
}

/// The sum as a quantity that prints exactly.
fn plus(a: &Quantity, b: &Quantity) -> Quantity {
    let nanos = a.nanos() + b.nanos();
    let text = if nanos % 1_000_000_000 == 0 { (nanos / 1_000_000_000).to_string() } else { format!("{}n", nanos) };
    Quantity::parse(&text).unwrap_or(*a)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::change;
    use super::*;
    use crate::auth::UserInfo;
    use crate::objects::fixed::Fixed;

    fn admit(item: Value, resources: Value) -> Result<Value, ApiError> {
        let objects = Fixed::new(vec![("limitranges", json!({"metadata": {"name": "l", "namespace": "a"}, "spec": {"limits": [item]}}))]);
        let user = UserInfo::loopback();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}});
        let mut change = change(&user, Operation::Create, ("v1", "Pod"), Some(pod), None);
        mutate(&objects, &mut change);
        validate(&objects, &change)?;
        Ok(change.object.unwrap())
    }

    #[test]
    fn defaults_are_filled_and_told() {
        let item = json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "100m", "memory": "1Mi"}});
        let pod = admit(item.clone(), Value::Null).unwrap();
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m", "memory": "1Mi"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c"
        );
        let stated = admit(item, json!({"limits": {"cpu": "2"}})).unwrap();
        assert_eq!(stated["spec"]["containers"][0]["resources"]["requests"], json!({"memory": "1Mi"}));
    }

    #[test]
    fn bounds_are_kept() {
        let max = json!({"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "500m"}});
        assert_eq!(
            admit(max.clone(), json!({"limits": {"cpu": "2"}})).unwrap_err().message,
            "pods \"p\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        );
        assert!(admit(max, json!({"limits": {"cpu": "1000m"}})).is_ok());
        let min = json!({"type": "Pod", "min": {"memory": "10Mi"}});
        assert!(admit(min.clone(), Value::Null).unwrap_err().message.contains("No request is specified"));
        assert!(admit(min.clone(), json!({"requests": {"memory": "9Mi"}})).unwrap_err().message.contains("but request is"));
        assert!(admit(min, json!({"requests": {"memory": "10Mi"}})).is_ok());
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        assert!(admit(ratio.clone(), json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}})).is_err());
        assert!(admit(ratio, json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})).is_ok());
    }
}
