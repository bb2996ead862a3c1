//! What is said of a decision: addresses and a condition at the Service, counts and conditions at the pool.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::assign::{Assignment, Claim};
use super::pool::{LoadBalancerPool, Pool};

/// Condition of a Service that has, or should have, addresses from here. Nodes announce the addresses of Services with it.
pub const CONDITION: &str = "xebec.dev/LoadBalancerAddress";

/// Our condition of a Service.
pub fn condition(service: &Service) -> Option<&Condition> {
    service.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == CONDITION)
}

/// A condition whose time is that of its last change of status.
fn timed(old: Option<&Condition>, mut new: Condition) -> Condition {
    if let Some(old) = old.filter(|old| old.status == new.status) {
        new.last_transition_time = old.last_transition_time.clone();
    }
    new
}

/// The write a Service's status needs; none when it is right. No decision: the Service is no balancer any more.
pub fn service_patch(service: &Service, decided: Option<&Assignment>, now: Time) -> Option<Value> {
    let old = condition(service);
    let new = decided.map(|decided| {
        let addresses: Vec<String> = decided.addresses.iter().map(IpAddr::to_string).collect();
        let (status, reason, message) = match &decided.problem {
            None => ("True", "AddressAssigned", format!("assigned {}", addresses.join(", "))),
            Some(problem) => ("False", problem.reason(), problem.to_string()),
        };
        let new = Condition {
            type_: CONDITION.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            last_transition_time: now,
            observed_generation: None,
        };
        timed(old, new)
    });
    let ingress: Vec<Value> = decided.iter().flat_map(|d| &d.addresses).map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"})).collect();
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let had = balancer.and_then(|l| l.ingress.as_ref()).map(|i| serde_json::to_value(i).unwrap_or_default()).unwrap_or(json!([]));
    if had == json!(ingress) && old == new.as_ref() {
        return None;
    }
    let others = service.status.iter().flat_map(|s| s.conditions.iter().flatten()).filter(|c| c.type_ != CONDITION);
    let conditions: Vec<&Condition> = others.chain(new.as_ref()).collect();
    Some(json!({
        // A write by somebody else in between is seen first.
        "metadata": {"resourceVersion": service.metadata.resource_version},
        "status": {"loadBalancer": {"ingress": if ingress.is_empty() { Value::Null } else { json!(ingress) }}, "conditions": conditions},
    }))
}

/// The write a pool's status needs; none when it is right.
pub fn pool_patch(object: &LoadBalancerPool, pools: &[Pool], claims: &[Claim], now: Time) -> Option<Value> {
    let pool = Pool::of(object);
    let held: BTreeSet<IpAddr> = claims.iter().flat_map(|c| c.held.iter().copied()).filter(|ip| pool.contains(*ip)).collect();
    let (total, assigned) = (pool.total(), i64::try_from(held.len()).unwrap_or(i64::MAX));
    let available = if pool.disabled { 0 } else { total.saturating_sub(assigned).max(0) };
    let mut invalid = pool.invalid.clone();
    invalid.extend(
        pools.iter().filter(|p| p.name != pool.name && p.overlaps(&pool)).map(|p| format!("it overlaps LoadBalancerPool {}", p.name)),
    );
    let status = object.status.clone().unwrap_or_default();
    let make = |type_: &str, holds: bool, reason: &str, message: String| {
        let new = Condition {
            type_: type_.into(),
            status: if holds { "True" } else { "False" }.into(),
            reason: reason.into(),
            message,
            last_transition_time: now.clone(),
            observed_generation: object.metadata.generation,
        };
        timed(status.conditions.iter().find(|c| c.type_ == type_), new)
    };
    let conditions = vec![
        match invalid.is_empty() {
            true => make("Valid", true, "Understood", String::new()),
            false => make("Valid", false, "Invalid", invalid.join("; ")),
        },
        match (available, pool.disabled) {
            (0, false) => make("Available", false, "Exhausted", format!("all {total} addresses are assigned")),
            (_, true) => make("Available", false, "Disabled", "spec.disabled is set".into()),
            _ => make("Available", true, "AddressesLeft", String::new()),
        },
    ];
    let right = object.status.is_some()
        && (status.total, status.assigned, status.available) == (total, assigned, available)
        && status.conditions == conditions;
    (!right).then(|| json!({"status": {"total": total, "assigned": assigned, "available": available, "conditions": conditions}}))
}

#[cfg(test)]
mod tests {
    use super::super::assign::Problem;
    use super::*;
    use serde_json::from_value;
    use xebec_loops::clock;

    fn service(status: Value) -> Service {
        from_value(json!({"metadata": {"name": "s", "resourceVersion": "7"}, "spec": {"type": "LoadBalancer"}, "status": status})).unwrap()
    }

    #[test]
    fn a_decision_is_written_once_and_leaves_others_conditions_alone() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let decided = Assignment { addresses: vec![ip], problem: None };
        let foreign =
            json!({"type": "x/Other", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let patch = service_patch(&service(json!({"conditions": [foreign]})), Some(&decided), clock::now()).unwrap();
        assert_eq!(patch["status"]["loadBalancer"], json!({"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}));
        assert_eq!(patch["status"]["conditions"][0], foreign);
        assert_eq!(patch["status"]["conditions"][1]["status"], "True");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let after = service(patch["status"].clone());
        assert_eq!(service_patch(&after, Some(&decided), clock::plus_seconds(&clock::now(), 60)), None);
        let lost = Assignment { addresses: vec![], problem: Some(Problem::NotInPool(ip)) };
        let patch = service_patch(&after, Some(&lost), clock::now()).unwrap();
        assert_eq!(
            (&patch["status"]["loadBalancer"]["ingress"], &patch["status"]["conditions"][1]["reason"]),
            (&Value::Null, &json!("AddressNotInPool"))
        );
        // No balancer any more: the address and our condition go.
        let patch = service_patch(&after, None, clock::now()).unwrap();
        assert_eq!((&patch["status"]["loadBalancer"]["ingress"], &patch["status"]["conditions"]), (&Value::Null, &json!([foreign])));
    }

    #[test]
    fn a_pool_counts_and_says_what_is_wrong_with_it() {
        let mut object: LoadBalancerPool = from_value(
            json!({"metadata": {"name": "a", "generation": 3}, "spec": {"ranges": [{"start": "192.0.2.1", "stop": "192.0.2.2"}]}}),
        )
        .unwrap();
        let held = |ips: &[&str]| Claim { held: ips.iter().map(|ip| ip.parse().unwrap()).collect(), ..Claim::default() };
        let patch =
            pool_patch(&object, &[Pool::of(&object)], &[held(&["192.0.2.1"]), held(&["192.0.2.1", "198.51.100.1"])], clock::now()).unwrap();
        let status = &patch["status"];
        assert_eq!((&status["total"], &status["assigned"], &status["available"]), (&json!(2), &json!(1), &json!(1)));
        assert_eq!((&status["conditions"][0]["status"], &status["conditions"][1]["status"]), (&json!("True"), &json!("True")));
        object.status = Some(from_value(status.clone()).unwrap());
        assert_eq!(pool_patch(&object, &[Pool::of(&object)], &[held(&["192.0.2.1"])], clock::now()), None);
        let patch = pool_patch(&object, &[Pool::of(&object)], &[held(&["192.0.2.1", "192.0.2.2"])], clock::now()).unwrap();
        assert_eq!(patch["status"]["conditions"][1]["reason"], "Exhausted");
        let mut other = Pool::of(&object);
        other.name = "b".into();
        let patch = pool_patch(&object, &[Pool::of(&object), other], &[], clock::now()).unwrap();
        assert_eq!(patch["status"]["conditions"][0]["message"], "it overlaps LoadBalancerPool b");
    }
}
