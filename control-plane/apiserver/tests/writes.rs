//! Writes: create, update, patch, delete, with everything that may go wrong.

mod common;

use common::{Cluster, config_map, start, together};
use http::Method;
use serde_json::{Value, json};

const PATH: &str = "/api/v1/namespaces/n/configmaps";

async fn cluster() -> Cluster {
    let cluster = start().await;
    cluster.namespace("n").await;
    cluster
}

fn version(doc: &Value) -> u64 {
    doc["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn create_sets_what_the_server_sets_and_refuses_duplicates() {
    let cluster = cluster().await;
    let made = cluster.post(PATH, config_map("a", json!({"x": "y"}), json!({"k": "v"}))).await;
    assert_eq!(made.status, 201);
    let metadata = &made.body["metadata"];
    assert!(metadata["uid"].is_string() && metadata["creationTimestamp"].is_string() && metadata["namespace"] == "n");
    assert_eq!(cluster.get(&format!("{PATH}/a")).await.body, made.body);
    let again = cluster.post(PATH, config_map("a", json!({}), json!({}))).await;
    assert_eq!((again.status.as_u16(), again.body["reason"].as_str().unwrap()), (409, "AlreadyExists"));
    assert_eq!(again.body["message"], "configmaps \"a\" already exists");
}

#[tokio::test]
async fn generated_names_do_not_collide() {
    let cluster = cluster().await;
    let cluster = &cluster;
    let names = together((0..60).map(|_| async move {
        let made = cluster.post(PATH, json!({"metadata": {"generateName": "g-"}})).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.body["metadata"]["name"].as_str().unwrap().to_string()
    }))
    .await;
    assert!(names.iter().all(|name| name.starts_with("g-") && name.len() == 7));
    assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 60);
}

#[tokio::test]
async fn dry_run_changes_nothing() {
    let cluster = cluster().await;
    assert_eq!(cluster.post(&format!("{PATH}?dryRun=All"), config_map("a", json!({}), json!({}))).await.status, 201);
    assert_eq!(cluster.get(&format!("{PATH}/a")).await.status, 404);
    let made = cluster.post(PATH, config_map("a", json!({}), json!({"k": "1"}))).await.body;
    assert_eq!(cluster.post(&format!("{PATH}?dryRun=All"), config_map("a", json!({}), json!({}))).await.status, 409);
    let patched = cluster.patch(&format!("{PATH}/a?dryRun=All"), "merge-patch", json!({"data": {"k": "2"}})).await.body;
    assert_eq!(patched["data"]["k"], "2");
    assert_eq!(cluster.delete(&format!("{PATH}/a?dryRun=All"), Value::Null).await.status, 200);
    assert_eq!(cluster.get(&format!("{PATH}/a")).await.body, made);
    assert_eq!(cluster.post(&format!("{PATH}?dryRun=Some"), config_map("b", json!({}), json!({}))).await.status, 422);
}

#[tokio::test]
async fn update_needs_the_version_it_read() {
    let cluster = cluster().await;
    let made = cluster.post(PATH, config_map("a", json!({}), json!({"k": "1"}))).await.body;
    let mut newer = made.clone();
    newer["data"]["k"] = "2".into();
    let updated = cluster.put(&format!("{PATH}/a"), newer.clone()).await;
    assert_eq!(updated.status, 200);
    assert!(version(&updated.body) > version(&made));
    let stale = cluster.put(&format!("{PATH}/a"), newer).await;
    assert_eq!((stale.status.as_u16(), stale.body["reason"].as_str().unwrap()), (409, "Conflict"));
    assert!(
        stale.body["message"]
            .as_str()
            .unwrap()
            .contains("the object has been modified; please apply your changes to the latest version and try again")
    );
    // Without a version it is unconditional for this kind, and the same content is no write.
    let mut blind = updated.body.clone();
    blind["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let same = cluster.put(&format!("{PATH}/a"), blind.clone()).await.body;
    assert_eq!(version(&same), version(&updated.body));
    blind["data"]["k"] = "3".into();
    assert!(version(&cluster.put(&format!("{PATH}/a"), blind.clone()).await.body) > version(&same));
    blind["metadata"]["uid"] = "another".into();
    assert_eq!(cluster.put(&format!("{PATH}/a"), blind).await.status, 409);
    assert_eq!(cluster.put(&format!("{PATH}/b"), config_map("b", json!({}), json!({}))).await.status, 404);
    assert_eq!(cluster.put(&format!("{PATH}/a"), config_map("b", json!({}), json!({}))).await.status, 400);
    // Leases may be created by a PUT.
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "x"}});
    assert_eq!(cluster.put("/apis/coordination.k8s.io/v1/namespaces/n/leases/l", lease).await.status, 201);
}

#[tokio::test]
async fn concurrent_counters_lose_nothing() {
    let cluster = cluster().await;
    cluster.post(PATH, config_map("a", json!({}), json!({}))).await;
    let cluster = &cluster;
    together((0..40).map(|i| async move {
        let patch = json!({"data": {format!("k{i}"): "v"}});
        assert_eq!(cluster.patch(&format!("{PATH}/a"), "merge-patch", patch).await.status, 200);
    }))
    .await;
    let data = cluster.get(&format!("{PATH}/a")).await.body["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 40);
}

#[tokio::test]
async fn patches_of_each_kind() {
    let cluster = cluster().await;
    let path = "/apis/apps/v1/namespaces/n/deployments";
    let template = |image: &str| json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}, {"name": "d", "image": "y"}]}});
    let made = cluster
        .post(path, json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template("x")}}))
        .await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.body["metadata"]["generation"], 1);
    let one = format!("{path}/d");
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "z"}]}}}});
    let patched = cluster.patch(&one, "strategic-merge-patch", strategic.clone()).await.body;
    assert_eq!(patched["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(patched["metadata"]["generation"], 2);
    let patched = cluster.patch(&one, "json-patch", json!([{"op": "replace", "path": "/spec/replicas", "value": 3}])).await.body;
    assert_eq!((&patched["spec"]["replicas"], &patched["metadata"]["generation"]), (&json!(3), &json!(3)));
    let patched = cluster.patch(&one, "merge-patch", strategic).await.body;
    assert_eq!(patched["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    // Through status only the status changes, and the generation does not count it.
    let patched =
        cluster.patch(&format!("{one}/status"), "merge-patch", json!({"spec": {"replicas": 9}, "status": {"replicas": 3}})).await.body;
    assert_eq!(
        (&patched["spec"]["replicas"], &patched["status"]["replicas"], &patched["metadata"]["generation"]),
        (&json!(3), &json!(3), &json!(4))
    );
    let patched = cluster.patch(&one, "merge-patch", json!({"status": {"replicas": 7}})).await.body;
    assert_eq!(patched["status"]["replicas"], 3);
    // The scale is a view.
    let scale = cluster.get(&format!("{one}/scale")).await.body;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!("Scale"), &json!(3), &json!("a=b")));
    let scaled = cluster.patch(&format!("{one}/scale"), "merge-patch", json!({"spec": {"replicas": 5}})).await;
    assert_eq!((scaled.status.as_u16(), &scaled.body["spec"]["replicas"]), (200, &json!(5)));
    assert_eq!(cluster.get(&one).await.body["metadata"]["generation"], 5);
    for (kind, patch, code) in [
        ("json-patch", json!([{"op": "remove", "path": "/spec/nope"}]), 422),
        ("json-patch", json!({"op": "remove"}), 400),
        ("merge-patch", json!([1]), 400),
        ("merge-patch", json!({"metadata": {"resourceVersion": "1"}}), 409),
        ("merge-patch", json!({"metadata": {"name": "other"}}), 400),
        ("nonsense-patch", json!({}), 415),
    ] {
        let answer = cluster.patch(&one, kind, patch.clone()).await;
        assert_eq!(answer.status.as_u16(), code, "{kind} {patch}: {}", answer.text);
    }
    assert_eq!(cluster.patch(&format!("{path}/none"), "merge-patch", json!({})).await.status, 404);
}

#[tokio::test]
async fn deletion_waits_for_finalizers() {
    let cluster = cluster().await;
    let one = format!("{PATH}/a");
    let mut doc = config_map("a", json!({}), json!({}));
    doc["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(PATH, doc).await;
    let deleted = cluster.delete(&one, Value::Null).await;
    assert_eq!((deleted.status.as_u16(), &deleted.body["kind"]), (200, &json!("ConfigMap")));
    assert!(deleted.body["metadata"]["deletionTimestamp"].is_string());
    // No new finalizers while it goes, labels still may change.
    assert_eq!(cluster.patch(&one, "merge-patch", json!({"metadata": {"labels": {"a": "b"}}})).await.status, 200);
    let mut watch = cluster.watch(&format!("{PATH}?watch=true")).await;
    watch.expect("ADDED", "a").await;
    assert_eq!(cluster.patch(&one, "merge-patch", json!({"metadata": {"finalizers": null}})).await.status, 200);
    watch.expect("DELETED", "a").await;
    assert_eq!(cluster.get(&one).await.status, 404);
}

#[tokio::test]
async fn deletion_options() {
    let cluster = cluster().await;
    let one = format!("{PATH}/a");
    let make = async || cluster.post(PATH, config_map("a", json!({}), json!({}))).await.body;
    let made = make().await;
    for (options, code) in [
        (json!({"preconditions": {"uid": "other"}}), 409),
        (json!({"preconditions": {"resourceVersion": "1"}}), 409),
        (json!({"propagationPolicy": "Sideways"}), 422),
        (json!({"propagationPolicy": "Orphan", "orphanDependents": true}), 422),
        (json!({"kind": "Pod"}), 400),
        (json!({"gracePeriodSeconds": "x"}), 400),
    ] {
        let answer = cluster.delete(&one, options.clone()).await;
        assert_eq!(answer.status.as_u16(), code, "{options}: {}", answer.text);
    }
    let gone = cluster.delete(&one, json!({"preconditions": {"uid": made["metadata"]["uid"]}})).await;
    assert_eq!(
        (&gone.body["kind"], &gone.body["status"], &gone.body["details"]["uid"]),
        (&json!("Status"), &json!("Success"), &made["metadata"]["uid"])
    );
    assert_eq!(cluster.delete(&one, Value::Null).await.status, 404);
    make().await;
    let foreground = cluster.delete(&one, json!({"propagationPolicy": "Foreground"})).await;
    assert_eq!((foreground.status.as_u16(), &foreground.body["metadata"]["finalizers"]), (202, &json!(["foregroundDeletion"])));
    cluster.patch(&one, "merge-patch", json!({"metadata": {"finalizers": []}})).await;
    make().await;
    let orphan = cluster.delete(&format!("{one}?propagationPolicy=Orphan"), Value::Null).await;
    assert_eq!(orphan.body["metadata"]["finalizers"], json!(["orphan"]));
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let cluster = cluster().await;
    for i in 0..30 {
        cluster.post(PATH, config_map(&format!("c{i}"), json!({"half": (i % 2).to_string()}), json!({}))).await;
    }
    let deleted = cluster.delete(&format!("{PATH}?labelSelector=half%3D1"), Value::Null).await;
    assert_eq!((deleted.status.as_u16(), deleted.body["items"].as_array().unwrap().len()), (200, 15));
    let left = cluster.get(PATH).await.body;
    assert!(
        left["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|i| i["metadata"]["labels"]["half"] == "0" || i["metadata"]["name"] == "kube-root-ca.crt")
    );
    assert_eq!(cluster.call(Method::DELETE, "/api/v1/configmaps", &[], "").await.status, 405);
}

#[tokio::test]
async fn namespaces_end_when_finalized() {
    let cluster = cluster().await;
    let made = cluster.get("/api/v1/namespaces/n").await.body;
    assert_eq!((&made["spec"]["finalizers"], &made["status"]["phase"]), (&json!(["kubernetes"]), &json!("Active")));
    let going = cluster.delete("/api/v1/namespaces/n", Value::Null).await.body;
    assert_eq!(going["status"]["phase"], "Terminating");
    // Nothing new in it.
    let refused = cluster.post(PATH, config_map("late", json!({}), json!({}))).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    let mut finalized = cluster.get("/api/v1/namespaces/n").await.body;
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(cluster.put("/api/v1/namespaces/n/finalize", finalized).await.status, 200);
    assert_eq!(cluster.get("/api/v1/namespaces/n").await.status, 404);
    assert_eq!(cluster.post("/api/v1/namespaces/none/configmaps", config_map("a", json!({}), json!({}))).await.status, 404);
}

#[tokio::test]
async fn pods_are_bound_once_and_evicted_within_budget() {
    let cluster = cluster().await;
    let pods = "/api/v1/namespaces/n/pods";
    cluster.post("/api/v1/namespaces/n/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let made = cluster
        .post(pods, json!({"metadata": {"name": "p", "labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}))
        .await;
    assert_eq!(made.status, 201, "{}", made.text);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "node-1"}});
    assert_eq!(cluster.post(&format!("{pods}/p/binding"), binding.clone()).await.status, 201);
    let again = cluster.post(&format!("{pods}/p/binding"), binding).await;
    assert_eq!(
        (again.status.as_u16(), again.body["message"].as_str().unwrap()),
        (409, "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"node-1\"")
    );
    let bound = cluster.get(&format!("{pods}/p")).await.body;
    assert_eq!(bound["spec"]["nodeName"], "node-1");
    // Selected by its node, as a kubelet does.
    assert_eq!(cluster.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1").await.body["items"].as_array().unwrap().len(), 1);
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(cluster.patch(&format!("{pods}/p/status"), "strategic-merge-patch", running).await.status, 200);
    let budgets = "/apis/policy/v1/namespaces/n/poddisruptionbudgets";
    cluster.post(budgets, json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}})).await;
    let status = |allowed: i64| json!({"status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    assert_eq!(cluster.patch(&format!("{budgets}/b/status"), "merge-patch", status(0)).await.status, 200);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let refused = cluster.post(&format!("{pods}/p/eviction"), eviction.clone()).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["details"]["causes"][0]["reason"]),
        (429, &json!("DisruptionBudget")),
        "{}",
        refused.text
    );
    cluster.patch(&format!("{budgets}/b/status"), "merge-patch", status(1)).await;
    assert_eq!(cluster.post(&format!("{pods}/p/eviction"), eviction).await.status, 201);
    assert!(cluster.get(&format!("{pods}/p")).await.body["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(cluster.get(&format!("{budgets}/b")).await.body["status"]["disruptionsAllowed"], 0);
    // The kubelet's last word.
    assert_eq!(cluster.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await.status, 200);
    assert_eq!(cluster.get(&format!("{pods}/p")).await.status, 404);
}

#[tokio::test]
async fn bad_bodies_get_a_status() {
    let cluster = cluster().await;
    let post = async |type_: &str, body: String| cluster.call(Method::POST, PATH, &[("content-type", type_)], body).await;
    for (type_, body, code) in [
        ("application/json", "{".to_string(), 400),
        ("application/json", "[]".into(), 400),
        ("application/json", "null".into(), 400),
        ("application/json", String::new(), 400),
        ("application/json", r#"{"metadata": 3}"#.into(), 400),
        ("application/json", r#"{"metadata": {"name": "a"}, "data": {"k": 1}}"#.into(), 400),
        ("application/json", r#"{"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}}"#.into(), 400),
        ("application/json", r#"{"metadata": {"name": "UPPER_case"}}"#.into(), 422),
        ("application/json", r#"{"metadata": {"name": "a", "namespace": "other"}}"#.into(), 400),
        ("application/json", r#"{"metadata": {}}"#.into(), 422),
        ("application/json", "\u{0}\u{1}".into(), 400),
        ("application/json", "[".repeat(100_000), 400),
        ("application/yaml", "a: [".into(), 400),
        ("application/yaml", "metadata: {name: y1}\ndata: {k: v}".into(), 201),
        ("text/plain", "{}".into(), 415),
        ("application/json", format!(r#"{{"metadata": {{"name": "big"}}, "data": {{"k": "{}"}}}}"#, "x".repeat(3 * 1024 * 1024)), 413),
    ] {
        let answer = post(type_, body.clone()).await;
        assert_eq!(answer.status.as_u16(), code, "{type_} {:.80}: {:.300}", body, answer.text);
        assert!(answer.headers.contains_key("audit-id"));
        if code >= 400 {
            assert_eq!((answer.body["kind"].as_str(), answer.body["code"].as_u64()), (Some("Status"), Some(code.into())), "{:.80}", body);
        }
    }
    let unknown = r#"{"metadata": {"name": "u"}, "nonsense": 1}"#;
    let warned = post("application/json", unknown.to_string()).await;
    assert_eq!((warned.status.as_u16(), warned.headers["warning"].to_str().unwrap()), (201, "299 - \"unknown field \\\"nonsense\\\"\""));
    let strict = cluster
        .call(Method::POST, &format!("{PATH}?fieldValidation=Strict"), &[("content-type", "application/json")], unknown.to_string())
        .await;
    assert_eq!(strict.status, 400);
    assert!(strict.body["message"].as_str().unwrap().contains("unknown field \"nonsense\""), "{}", strict.text);
    assert_eq!(cluster.call(Method::POST, &format!("{PATH}/a"), &[], "{}").await.status, 405);
    assert_eq!(cluster.call(Method::OPTIONS, PATH, &[], "").await.status, 405);
}

#[tokio::test]
async fn events_and_autoscalers_are_one_object_in_two_versions() {
    let cluster = cluster().await;
    let v2 = "/apis/autoscaling/v2/namespaces/n/horizontalpodautoscalers";
    let v1 = "/apis/autoscaling/v1/namespaces/n/horizontalpodautoscalers";
    let spec = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 3, "targetCPUUtilizationPercentage": 70});
    let made = cluster.post(v1, json!({"metadata": {"name": "h"}, "spec": spec})).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let in_v2 = cluster.get(&format!("{v2}/h")).await.body;
    assert_eq!(in_v2["apiVersion"], "autoscaling/v2");
    assert_eq!(in_v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 70);
    let in_v1 = cluster.get(v1).await.body;
    assert_eq!(in_v1["items"][0]["spec"]["targetCPUUtilizationPercentage"], 70);
    assert_eq!(in_v1["items"][0]["apiVersion"], "autoscaling/v1");
}

#[tokio::test]
async fn who_applied_a_field_is_asked_before_another_applies_it() {
    let cluster = cluster().await;
    let one = format!("{PATH}/a");
    let apply = async |manager: &str, value: &str, force: bool| {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}}).to_string();
        cluster
            .call(
                Method::PATCH,
                &format!("{one}?fieldManager={manager}&force={force}"),
                &[("content-type", "application/apply-patch+yaml")],
                body,
            )
            .await
    };
    assert_eq!(apply("one", "1", false).await.status, 201);
    let again = apply("one", "1", false).await;
    assert_eq!(again.status, 200);
    // A whole update takes the field over, the server's own fields aside.
    let mut doc = again.body.clone();
    doc["data"]["k"] = "2".into();
    let updated =
        cluster.call(Method::PUT, &one, &[("content-type", "application/json"), ("user-agent", "tool/1.0")], doc.to_string()).await.body;
    let managers: Vec<&str> =
        updated["metadata"]["managedFields"].as_array().unwrap().iter().map(|e| e["manager"].as_str().unwrap()).collect();
    assert!(managers.contains(&"tool"), "{updated}");
    let refused = apply("one", "3", false).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["details"]["causes"][0]["reason"]),
        (409, &json!("FieldManagerConflict")),
        "{}",
        refused.text
    );
    assert_eq!(apply("one", "3", true).await.body["data"]["k"], "3");
    assert_eq!(apply("", "3", true).await.status, 422);
    // An update that changes nothing is no write, whoever sends it.
    let now = cluster.get(&one).await.body;
    let same =
        cluster.call(Method::PUT, &one, &[("content-type", "application/json"), ("user-agent", "other/1")], now.to_string()).await.body;
    assert_eq!(version(&same), version(&now));
}
