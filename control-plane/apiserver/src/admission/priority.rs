//! Priority: a pod's class becomes a number; at most one class is the default.

use serde_json::Value;
use xebec_api::{meta, status::ApiError, value::text};

use super::refuse;
use crate::extension::{Change, Operation};
use crate::objects::Objects;

pub(super) fn mutate(objects: &dyn Objects, change: &mut Change<'_>) -> Result<(), ApiError> {
    let Some(spec) = change.object.as_ref().map(|pod| &pod["spec"]).filter(|spec| spec.is_object()) else { return Ok(()) };
    let name = text(&spec["priorityClassName"]);
    let class = if name.is_empty() {
        // Several defaults may be left from a race: the lowest counts.
        let defaults = objects.list("priorityclasses", "").into_iter().filter(|c| c["globalDefault"] == true);
        defaults.min_by_key(|c| c["value"].as_i64().unwrap_or(0))
    } else {
        let class = objects.get("priorityclasses", "", name);
        Some(class.ok_or_else(|| refuse(change, format!("no PriorityClass with name {name} was found")))?)
    };
    let priority = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let policy = class.as_ref().and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != priority) {
        return Err(refuse(
            change,
            format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            ),
        ));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != policy) {
        return Err(refuse(
            change,
            format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            ),
        ));
    }
    let found = class.as_ref().map(|c| meta::name(c).to_string());
    if let Some(pod) = change.object.as_mut() {
        pod["spec"]["priority"] = priority.into();
        pod["spec"]["preemptionPolicy"] = policy.into();
        if let Some(name) = found {
            pod["spec"]["priorityClassName"] = name.into();
        }
    }
    Ok(())
}

pub(super) fn validate_class(objects: &dyn Objects, change: &Change<'_>) -> Result<(), ApiError> {
    let writes = matches!(change.operation, Operation::Create | Operation::Update);
    let Some(class) = change.object.as_ref().filter(|class| writes && class["globalDefault"] == true) else { return Ok(()) };
    let own = meta::name(class);
    let other = |c: &Value| c["globalDefault"] == true && meta::name(c) != own;
    match objects.list("priorityclasses", "").iter().find(|c| other(c)) {
        Some(other) => {
            let why = format!("PriorityClass {} is already marked as default. Only one default can exist", meta::name(other));
            Err(refuse(change, why))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::*;
    use super::*;
    use crate::auth::UserInfo;
    use crate::objects::fixed::Fixed;

    fn admit(objects: &Fixed, spec: Value) -> Result<Value, ApiError> {
        let user = UserInfo::loopback();
        let mut change = change(&user, Operation::Create, ("v1", "Pod"), Some(json!({"metadata": {"name": "p"}, "spec": spec})), None);
        mutate(objects, &mut change)?;
        Ok(change.object.unwrap()["spec"].take())
    }

    #[test]
    fn classes_become_numbers() {
        let class = |name: &str, value: i64, default: bool| {
            ("priorityclasses", json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": "Never"}))
        };
        let none = Fixed::new(vec![class("high", 1000, false)]);
        assert_eq!(admit(&none, json!({})).unwrap(), json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        let high = admit(&none, json!({"priorityClassName": "high"})).unwrap();
        assert_eq!((&high["priority"], &high["preemptionPolicy"]), (&json!(1000), &json!("Never")));
        let error = |spec: Value| admit(&none, spec).unwrap_err().message;
        assert_eq!(error(json!({"priorityClassName": "no"})), "pods \"p\" is forbidden: no PriorityClass with name no was found");
        assert!(error(json!({"priority": 5})).contains("the integer value of priority (5) must not be provided"));
        assert!(admit(&none, json!({"priorityClassName": "high", "priority": 1000})).is_ok());
        let some = Fixed::new(vec![class("high", 1000, true), class("low", 10, true)]);
        assert_eq!(admit(&some, json!({})).unwrap()["priorityClassName"], "low");
    }

    #[test]
    fn one_default_class() {
        let objects = Fixed::new(vec![("priorityclasses", json!({"metadata": {"name": "x"}, "globalDefault": true}))]);
        let user = UserInfo::loopback();
        let of = |name: &str| {
            let doc = json!({"metadata": {"name": name}, "globalDefault": true});
            validate_class(&objects, &change(&user, Operation::Create, ("scheduling.k8s.io/v1", "PriorityClass"), Some(doc), None))
        };
        assert!(of("x").is_ok());
        assert!(of("y").unwrap_err().message.contains("PriorityClass x is already marked as default"));
    }
}
