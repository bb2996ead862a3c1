//! ResourceQuota: what a namespace may hold, enforced on create and kept in the quota's status.
//!
//! Usage is counted from the live objects, so it cannot drift; objects that were let through and are not in the
//! watch cache yet are remembered until they are, so that two creates at once do not both take the last place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use xebec_api::{
    Document, builtin, meta,
    quantity::Quantity,
    status::ApiError,
    value::{entries, list, strings, text},
};
use xebec_store::{Compare, Op, Store, Txn};

use super::{limits, refuse};
use crate::extension::{Change, Operation};
use crate::objects::Objects;

/// A create that was let through and is not seen for so long has failed.
const PENDING: Duration = Duration::from_secs(10);
/// How often usage in status follows the objects.
const RECOUNT: Duration = Duration::from_millis(500);

/// Amounts by resource name, in nanos: quantities add up exactly.
type Amounts = BTreeMap<String, i128>;

#[derive(Default)]
pub(super) struct Pending(Mutex<Vec<(Instant, String, Document)>>);

/// Refuses what would exceed a quota of the namespace.
pub(super) fn validate(objects: &dyn Objects, pending: &Pending, change: &Change<'_>) -> Result<(), ApiError> {
    let Some(object) = change.object.as_ref() else { return Ok(()) };
    let relevant = change.subresource.is_empty() && change.resource.is_namespaced() && change.resource.is_stored();
    if !relevant || !matches!(change.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let quotas = objects.list("resourcequotas", change.namespace);
    if quotas.is_empty() {
        return Ok(());
    }
    let prefix = change.resource.storage_prefix.as_str();
    let mut waiting = pending.0.lock();
    waiting.retain(|(at, prefix, doc)| at.elapsed() < PENDING && objects.get(prefix, meta::namespace(doc), meta::name(doc)).is_none());
    for quota in &quotas {
        let name = meta::name(quota);
        let hard = amounts(&quota["spec"]["hard"]);
        let charge = charge(quota, &hard, prefix, object);
        let before = change.old.map(|old| self::charge(quota, &hard, prefix, old)).unwrap_or_default();
        if change.operation == Operation::Create
            && prefix == "pods"
            && in_scope(quota, prefix, object)
            && let Some(missing) = unstated(&hard, object)
        {
            return Err(refuse(change, format!("failed quota: {name}: must specify {missing}")));
        }
        let grows: Amounts = charge
            .into_iter()
            .map(|(resource, amount)| (resource.clone(), amount - before.get(&resource).copied().unwrap_or(0)))
            .filter(|(_, amount)| *amount > 0)
            .collect();
        if grows.is_empty() {
            continue;
        }
        let mut used = usage(objects, quota);
        for (_, prefix, doc) in waiting.iter().filter(|(_, _, doc)| meta::namespace(doc) == change.namespace) {
            for (resource, amount) in self::charge(quota, &hard, prefix, doc) {
                *used.entry(resource).or_default() += amount;
            }
        }
        let of = |map: &Amounts, resource: &str| map.get(resource).copied().unwrap_or(0);
        let over: Vec<&String> = grows.keys().filter(|r| of(&used, r) + grows[*r] > of(&hard, r)).collect();
        if !over.is_empty() {
            let show = |map: &Amounts| over.iter().map(|r| format!("{r}={}", print(r, of(map, r)))).collect::<Vec<_>>().join(",");
            let why = format!("exceeded quota: {name}, requested: {}, used: {}, limited: {}", show(&grows), show(&used), show(&hard));
            return Err(refuse(change, why));
        }
    }
    if change.operation == Operation::Create && !change.dry_run {
        waiting.push((Instant::now(), prefix.to_string(), object.clone()));
    }
    Ok(())
}

/// Keeps `status.hard` and `status.used` of all quotas until cancelled.
pub async fn maintain(objects: Arc<dyn Objects>, store: Arc<dyn Store>, cancel: CancellationToken) {
    let prefixes: Vec<&str> =
        builtin::resources().iter().filter(|r| r.is_namespaced() && r.is_stored()).map(|r| r.storage_prefix.as_str()).collect();
    let mut seen = Vec::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RECOUNT) => {}
        }
        let quotas = objects.list("resourcequotas", "");
        if quotas.is_empty() {
            continue;
        }
        let now: Vec<u64> = prefixes.iter().map(|p| objects.changed(p)).collect();
        if now == seen {
            continue;
        }
        seen = now;
        for quota in quotas {
            if let Err(error) = recount(&*objects, &*store, &quota).await {
                tracing::warn!(%error, quota = meta::name(&quota), "usage not written");
                seen.clear();
            }
        }
    }
}

async fn recount(objects: &dyn Objects, store: &dyn Store, quota: &Document) -> Result<(), xebec_store::StoreError> {
    let used = usage(objects, quota);
    let used: Value = entries(&quota["spec"]["hard"])
        .map(|(name, _)| (name.to_string(), Value::from(print(name, used.get(name).copied().unwrap_or(0)))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let status = json!({"hard": quota["spec"]["hard"], "used": used});
    if quota["status"] == status {
        return Ok(());
    }
    let key = format!("{}resourcequotas/{}/{}", crate::cache::ROOT, meta::namespace(quota), meta::name(quota));
    let Some(kv) = store.get(&key).await?.kv else { return Ok(()) };
    let Ok(mut stored) = serde_json::from_slice::<Document>(&kv.value) else { return Ok(()) };
    if stored["spec"]["hard"] != quota["spec"]["hard"] || stored["status"] == status {
        return Ok(());
    }
    stored["status"] = status;
    let value = serde_json::to_vec(&stored).unwrap_or_default().into();
    let compares = vec![Compare::ModRevision { key: key.clone(), revision: kv.mod_revision }];
    // Somebody else's write comes back as a change and is counted again.
    store.txn(Txn { compares, ops: vec![Op::Put { key, value, ttl: None }] }).await.map(|_| ())
}

fn amounts(map: &Value) -> Amounts {
    entries(map).filter_map(|(name, value)| Some((name.to_string(), Quantity::from_value(value)?.nanos()))).collect()
}

/// As a quantity of the kind the resource is counted in.
fn print(resource: &str, nanos: i128) -> String {
    let whole = nanos / 1_000_000_000;
    let cpu = resource == "cpu" || resource.ends_with(".cpu");
    if nanos % 1_000_000_000 != 0 || (cpu && whole == 0 && nanos != 0) {
        return format!("{}m", (nanos + 999_999) / 1_000_000);
    }
    let bytes = ["memory", "storage"].iter().any(|b| resource.ends_with(b));
    if bytes && whole != 0 {
        for (suffix, power) in [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            if whole % (1i128 << power) == 0 {
                return format!("{}{suffix}", whole >> power);
            }
        }
    }
    whole.to_string()
}

/// What the live objects of the quota's namespace take of what it bounds.
fn usage(objects: &dyn Objects, quota: &Document) -> Amounts {
    let hard = amounts(&quota["spec"]["hard"]);
    let mut used = Amounts::new();
    let rows = builtin::resources().iter().filter(|r| r.is_namespaced() && r.is_stored() && r.api_version() == r.storage_api_version);
    for row in rows.filter(|row| hard.keys().any(|name| bounds(name, &row.storage_prefix))) {
        for object in objects.list(&row.storage_prefix, meta::namespace(quota)) {
            for (resource, amount) in charge(quota, &hard, &row.storage_prefix, &object) {
                *used.entry(resource).or_default() += amount;
            }
        }
    }
    used
}

/// Whether the amount is about objects of the storage prefix.
fn bounds(name: &str, prefix: &str) -> bool {
    if name == counted_as(prefix) {
        return true;
    }
    match prefix {
        "pods" => name == "pods" || is_compute(name),
        "services/specs" => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        "persistentvolumeclaims" => {
            name == prefix || name.ends_with("requests.storage") || name.ends_with(".storageclass.storage.k8s.io/persistentvolumeclaims")
        }
        "controllers" => name == "replicationcontrollers",
        "configmaps" | "secrets" | "resourcequotas" => name == prefix,
        _ => false,
    }
}

/// `count/deployments.apps`, `count/pods`.
fn counted_as(prefix: &str) -> String {
    match builtin::resources().iter().find(|r| r.storage_prefix == prefix) {
        Some(row) => format!("count/{}", row.qualified_plural()),
        None => String::new(),
    }
}

fn is_compute(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
        || name.starts_with("hugepages-")
        || name.starts_with("limits.")
        || (name.starts_with("requests.") && name != "requests.storage")
}

/// What one object takes of what the quota bounds.
fn charge(quota: &Document, hard: &Amounts, prefix: &str, object: &Document) -> Amounts {
    const ONE: i128 = 1_000_000_000;
    let mut charge = Amounts::new();
    if !in_scope(quota, prefix, object) {
        return charge;
    }
    let count = counted_as(prefix);
    for name in hard.keys().filter(|name| bounds(name, prefix)) {
        let amount = if *name == count {
            ONE
        } else {
            match prefix {
                "pods" if is_over(object) => 0,
                "pods" if name == "pods" => ONE,
                "pods" => pod_amount(object, name),
                "services/specs" => service_amount(object, name) * ONE,
                "persistentvolumeclaims" => claim_amount(object, name),
                _ => ONE,
            }
        };
        if amount != 0 {
            charge.insert(name.clone(), amount);
        }
    }
    charge
}

/// A pod that has ended holds nothing but its count.
fn is_over(pod: &Document) -> bool {
    matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed")
}

fn pod_amount(pod: &Document, name: &str) -> i128 {
    let (field, resource) = match name.split_once('.') {
        Some(("limits", resource)) => ("limits", resource),
        Some(("requests", resource)) => ("requests", resource),
        _ => ("requests", name),
    };
    let total = limits::total(pod, field);
    let overhead = Quantity::from_value(&pod["spec"]["overhead"][resource]).map_or(0, |q| q.nanos());
    Quantity::from_value(&total[resource]).map_or(0, |q| q.nanos()) + overhead
}

fn service_amount(service: &Document, name: &str) -> i128 {
    let kind = text(&service["spec"]["type"]);
    let ports = list(&service["spec"]["ports"]).len() as i128;
    match (name, kind) {
        ("services", _) => 1,
        ("services.nodeports", "NodePort") => ports,
        ("services.nodeports", "LoadBalancer") if service["spec"]["allocateLoadBalancerNodePorts"] != false => ports,
        ("services.loadbalancers", "LoadBalancer") => 1,
        _ => 0,
    }
}

fn claim_amount(claim: &Document, name: &str) -> i128 {
    let size = Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]).map_or(0, |q| q.nanos());
    match name.split_once(".storageclass.storage.k8s.io/") {
        Some((class, _)) if claim["spec"]["storageClassName"] != *class => 0,
        Some((_, "requests.storage")) => size,
        None if name == "requests.storage" => size,
        _ => 1_000_000_000,
    }
}

/// Whether the quota is about this object.
fn in_scope(quota: &Document, prefix: &str, object: &Document) -> bool {
    let plain = strings(&quota["spec"]["scopes"]).map(|scope| (scope, "Exists", &Value::Null));
    let selected = list(&quota["spec"]["scopeSelector"]["matchExpressions"]);
    let selected = selected.iter().map(|e| (text(&e["scopeName"]), text(&e["operator"]), &e["values"]));
    plain.chain(selected).all(|(scope, operator, values)| prefix == "pods" && pod_in_scope(object, scope, operator, values))
}

fn pod_in_scope(pod: &Document, scope: &str, operator: &str, values: &Value) -> bool {
    let spec = &pod["spec"];
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    let best_effort = || {
        let all = ["initContainers", "containers"].iter().flat_map(|kind| list(&spec[*kind]));
        all.flat_map(|c| [&c["resources"]["requests"], &c["resources"]["limits"]])
            .all(|map| entries(map).all(|(name, _)| !["cpu", "memory"].contains(&name)))
    };
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = text(&spec["priorityClassName"]);
            match operator {
                "In" => strings(values).any(|v| v == class),
                "NotIn" => !strings(values).any(|v| v == class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

/// Compute amounts that the quota bounds and a container does not state.
fn unstated(hard: &Amounts, pod: &Document) -> Option<String> {
    let mut missing = Vec::new();
    for name in hard.keys().filter(|name| is_compute(name)) {
        let (field, resource) = match name.split_once('.') {
            Some((field @ ("limits" | "requests"), resource)) => (field, resource),
            _ => ("requests", name.as_str()),
        };
        if !["cpu", "memory"].contains(&resource) {
            continue;
        }
        let containers = ["initContainers", "containers"].iter().flat_map(|kind| list(&pod["spec"][*kind]));
        let without: Vec<&str> = containers.filter(|c| c["resources"][field][resource].is_null()).map(|c| text(&c["name"])).collect();
        if !without.is_empty() {
            missing.push(format!("{name} for: {}", without.join(",")));
        }
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

#[cfg(test)]
mod tests {
    use super::super::testing::change;
    use super::*;
    use crate::auth::UserInfo;
    use crate::objects::fixed::Fixed;

    fn quota(spec: Value) -> Vec<(&'static str, Value)> {
        vec![("resourcequotas", json!({"metadata": {"name": "q", "namespace": "a"}, "spec": spec}))]
    }

    fn pod(name: &str, cpu: &str) -> Value {
        let resources = if cpu.is_empty() { json!({}) } else { json!({"requests": {"cpu": cpu}}) };
        json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    fn ask(objects: &Fixed, pending: &Pending, kind: (&str, &str), object: Value) -> Result<(), ApiError> {
        let user = UserInfo::loopback();
        validate(objects, pending, &change(&user, Operation::Create, kind, Some(object), None))
    }

    #[test]
    fn the_last_place_is_given_once() {
        let objects = Fixed::new(quota(json!({"hard": {"pods": "2", "cpu": "1"}})));
        let pending = Pending::default();
        let kind = ("v1", "Pod");
        ask(&objects, &pending, kind, pod("a", "500m")).unwrap();
        let error = ask(&objects, &pending, kind, pod("b", "600m")).unwrap_err();
        assert_eq!(error.message, "pods \"b\" is forbidden: exceeded quota: q, requested: cpu=600m, used: cpu=500m, limited: cpu=1");
        ask(&objects, &pending, kind, pod("b", "500m")).unwrap();
        // The cache sees them: still counted once.
        objects.add("pods", pod("a", "500m"));
        objects.add("pods", pod("b", "500m"));
        let error = ask(&objects, &pending, kind, pod("c", "0")).unwrap_err();
        assert_eq!(error.message, "pods \"c\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2");
        assert_eq!(
            ask(&objects, &pending, kind, pod("c", "")).unwrap_err().message,
            "pods \"c\" is forbidden: failed quota: q: must specify cpu for: c"
        );
    }

    #[test]
    fn counts_scopes_and_services() {
        let objects = Fixed::new(quota(json!({"hard": {"count/deployments.apps": "0", "services.nodeports": "1", "configmaps": "0"}})));
        let pending = Pending::default();
        let named = || json!({"metadata": {"name": "x", "namespace": "a"}});
        assert!(ask(&objects, &pending, ("apps/v1", "Deployment"), named()).is_err());
        assert!(ask(&objects, &pending, ("v1", "ConfigMap"), named()).is_err());
        assert!(ask(&objects, &pending, ("v1", "Secret"), named()).is_ok());
        let service = |ports: Value| json!({"metadata": {"name": "s", "namespace": "a"}, "spec": {"type": "NodePort", "ports": ports}});
        assert!(ask(&objects, &pending, ("v1", "Service"), service(json!([{}, {}]))).is_err());
        assert!(ask(&objects, &pending, ("v1", "Service"), service(json!([{}]))).is_ok());
        let scoped = Fixed::new(quota(json!({"hard": {"pods": "0"}, "scopes": ["BestEffort"]})));
        assert!(ask(&scoped, &pending, ("v1", "Pod"), pod("a", "1")).is_ok());
        assert!(ask(&scoped, &pending, ("v1", "Pod"), pod("b", "")).is_err());
    }

    #[tokio::test]
    async fn status_follows_the_objects() {
        let dir = tempfile::tempdir().unwrap();
        let store = xebec_store::embedded::open(dir.path().join("s"), xebec_store::embedded::Options::default()).unwrap();
        let objects = Fixed::new(quota(json!({"hard": {"pods": "2", "requests.cpu": "1", "requests.memory": "1Gi"}})));
        let doc = objects.get("resourcequotas", "a", "q").unwrap();
        let key = "/registry/resourcequotas/a/q".to_string();
        let op = Op::Put { key: key.clone(), value: serde_json::to_vec(&doc).unwrap().into(), ttl: None };
        store.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
        objects.add("pods", pod("a", "250m"));
        let mut ended = pod("b", "1");
        ended["status"] = json!({"phase": "Succeeded"});
        objects.add("pods", ended);
        recount(&objects, &store, &doc).await.unwrap();
        let stored: Value = serde_json::from_slice(&store.get(&key).await.unwrap().kv.unwrap().value).unwrap();
        assert_eq!(stored["status"]["used"], json!({"pods": "1", "requests.cpu": "250m", "requests.memory": "0"}));
        assert_eq!(stored["status"]["hard"], doc["spec"]["hard"]);
    }
}
