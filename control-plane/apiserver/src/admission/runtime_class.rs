//! RuntimeClass: its overhead and scheduling constraints become the pod's.

use serde_json::Value;
use xebec_api::{
    status::ApiError,
    value::{entries, list, text},
};

use super::refuse;
use crate::extension::Change;
use crate::objects::Objects;

pub(super) fn mutate(objects: &dyn Objects, change: &mut Change<'_>) -> Result<(), ApiError> {
    let Some(spec) = change.object.as_ref().map(|pod| pod["spec"].clone()).filter(Value::is_object) else { return Ok(()) };
    let name = text(&spec["runtimeClassName"]);
    if name.is_empty() {
        if entries(&spec["overhead"]).next().is_some() {
            return Err(refuse(change, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"));
        }
        return Ok(());
    }
    let Some(class) = objects.get("runtimeclasses", "", name) else {
        return Err(refuse(change, format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let overhead = &class["overhead"]["podFixed"];
    let own = &spec["overhead"];
    if entries(own).next().is_some() && !xebec_api::meta::same(own, overhead) {
        return Err(refuse(change, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
    }
    let mut selector = spec["nodeSelector"].as_object().cloned().unwrap_or_default();
    for (key, value) in entries(&class["scheduling"]["nodeSelector"]) {
        match selector.get(key) {
            Some(other) if other != value => {
                let why = format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(other)
                );
                return Err(refuse(change, why));
            }
            _ => {
                selector.insert(key.to_string(), value.clone());
            }
        }
    }
    let mut tolerations = list(&spec["tolerations"]).to_vec();
    for toleration in list(&class["scheduling"]["tolerations"]) {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    let overhead = overhead.clone();
    if let Some(pod) = change.object.as_mut() {
        let spec = &mut pod["spec"];
        if overhead.is_object() {
            spec["overhead"] = overhead;
        }
        if !selector.is_empty() {
            spec["nodeSelector"] = selector.into();
        }
        if !tolerations.is_empty() {
            spec["tolerations"] = tolerations.into();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::*;
    use super::*;
    use crate::auth::UserInfo;
    use crate::extension::Operation;
    use crate::objects::fixed::Fixed;

    #[test]
    fn classes_constrain_pods() {
        let objects = Fixed::new(vec![(
            "runtimeclasses",
            json!({"metadata": {"name": "vm"}, "overhead": {"podFixed": {"memory": "10Mi"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}}),
        )]);
        let user = UserInfo::loopback();
        let admit = |spec: Value| {
            let mut change = change(&user, Operation::Create, ("v1", "Pod"), Some(json!({"metadata": {"name": "p"}, "spec": spec})), None);
            mutate(&objects, &mut change).map(|()| change.object.unwrap()["spec"].take())
        };
        let spec = admit(json!({"runtimeClassName": "vm", "nodeSelector": {"zone": "a"}})).unwrap();
        assert_eq!(spec["nodeSelector"], json!({"zone": "a", "vm": "yes"}));
        assert_eq!((&spec["overhead"], list(&spec["tolerations"]).len()), (&json!({"memory": "10Mi"}), 1));
        assert_eq!(
            admit(json!({"runtimeClassName": "no"})).unwrap_err().message,
            "pods \"p\" is forbidden: pod rejected: RuntimeClass \"no\" not found"
        );
        assert!(admit(json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}})).is_err());
        assert!(admit(json!({"overhead": {"cpu": "1"}})).is_err());
        assert_eq!(admit(json!({"containers": []})).unwrap(), json!({"containers": []}));
    }
}
