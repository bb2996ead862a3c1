//! Custom resources: defined, used, changed and taken away while the server runs.

mod common;

use common::{Cluster, start};
use http::Method;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const PATH: &str = "/apis/example.com/v1/namespaces/n/widgets";

fn definition() -> Value {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "default": "red", "enum": ["red", "blue"]},
            "replicas": {"type": "integer"}, "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}, {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [version("v1", true), version("v1beta1", false)]}})
}

async fn established() -> Cluster {
    let cluster = start().await;
    cluster.namespace("n").await;
    let made = cluster.post(CRDS, definition()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let mut watch = cluster.watch(&format!("{CRDS}?watch=true&fieldSelector=metadata.name%3Dwidgets.example.com")).await;
    loop {
        let event = watch.next().await.unwrap();
        let conditions = event["object"]["status"]["conditions"].clone();
        if conditions.as_array().into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True") {
            assert_eq!(event["object"]["status"]["acceptedNames"]["listKind"], "WidgetList");
            return cluster;
        }
    }
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn once_established_it_is_like_any_kind() {
    let cluster = established().await;
    let groups = cluster.get("/apis").await.body;
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "example.com"));
    let list = cluster.get("/apis/example.com/v1").await.body;
    assert_eq!(list["resources"][0]["shortNames"], json!(["wd"]));
    let openapi = cluster.get("/openapi/v3/apis/example.com/v1").await.body;
    let schema = &openapi["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        (&schema["properties"]["spec"]["properties"]["color"]["default"], &schema["properties"]["kind"]["type"]),
        (&json!("red"), &json!("string"))
    );
    let made = cluster.post(PATH, widget("a", json!({"size": 3, "nope": 1, "any": {"x": {"y": 1}}}))).await;
    assert_eq!((made.status.as_u16(), &made.body["spec"]), (201, &json!({"size": 3, "color": "red", "any": {"x": {"y": 1}}})));
    assert_eq!(made.headers["warning"].to_str().unwrap(), "299 - \"unknown field \\\"spec.nope\\\"\"");
    let table = cluster.call(Method::GET, PATH, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "").await.body;
    assert_eq!((&table["columnDefinitions"][1]["name"], &table["rows"][0]["cells"][1]), (&json!("Size"), &json!(3)));
    let other = cluster.get("/apis/example.com/v1beta1/namespaces/n/widgets/a").await.body;
    assert_eq!((&other["apiVersion"], &other["metadata"]["uid"]), (&json!("example.com/v1beta1"), &made.body["metadata"]["uid"]));
    let selected = |query: &str| format!("{PATH}?fieldSelector={query}");
    assert_eq!(cluster.get(&selected("spec.color%3Dred")).await.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(cluster.get(&selected("spec.color%3Dblue")).await.body["items"].as_array().unwrap().len(), 0);
    assert_eq!(cluster.get(&selected("spec.size%3D3")).await.status, 400);
}

#[tokio::test]
async fn the_schema_decides() {
    let cluster = established().await;
    let bad = cluster.post(PATH, widget("a", json!({"size": 0, "color": "green"}))).await;
    assert_eq!(bad.status, 422);
    let message = bad.body["message"].as_str().unwrap();
    assert!(message.contains("spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"), "{message}");
    assert!(message.contains("spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\""), "{message}");
    let missing = cluster.post(PATH, widget("a", json!({}))).await;
    assert!(missing.body["message"].as_str().unwrap().contains("spec.size: Required value"), "{}", missing.text);
    let strict = cluster
        .call(
            Method::POST,
            &format!("{PATH}?fieldValidation=Strict"),
            &[("content-type", "application/json")],
            widget("a", json!({"size": 1, "x": 1})).to_string(),
        )
        .await;
    assert_eq!(strict.status, 400, "{}", strict.text);
    assert_eq!(cluster.post(PATH, widget("a", json!({"size": 1}))).await.status, 201);
    assert_eq!(cluster.patch(&format!("{PATH}/a"), "merge-patch", json!({"spec": {"size": "x"}})).await.status, 422);
    assert_eq!(cluster.patch(&format!("{PATH}/a"), "strategic-merge-patch", json!({})).await.status, 415);
    let mut stale = widget("a", json!({"size": 2}));
    assert_eq!(cluster.put(&format!("{PATH}/a"), stale.clone()).await.status, 422, "a custom resource is updated from what was read");
    stale["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(cluster.put(&format!("{PATH}/a"), stale).await.status, 409);
}

#[tokio::test]
async fn status_and_scale_are_apart() {
    let cluster = established().await;
    let mut doc = widget("a", json!({"size": 1, "replicas": 2}));
    doc["status"] = json!({"replicas": 9});
    let made = cluster.post(PATH, doc).await.body;
    assert!(made.get("status").is_none());
    let one = format!("{PATH}/a");
    let patched = cluster
        .patch(&format!("{one}/status"), "merge-patch", json!({"spec": {"size": 5}, "status": {"replicas": 2, "selector": "a=b"}}))
        .await
        .body;
    assert_eq!(
        (&patched["spec"]["size"], &patched["status"]["replicas"], &patched["metadata"]["generation"]),
        (&json!(1), &json!(2), &json!(1))
    );
    let scale = cluster.get(&format!("{one}/scale")).await.body;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("a=b")));
    assert_eq!(cluster.patch(&format!("{one}/scale"), "merge-patch", json!({"spec": {"replicas": 7}})).await.body["spec"]["replicas"], 7);
    let after = cluster.get(&one).await.body;
    assert_eq!((&after["spec"]["replicas"], &after["metadata"]["generation"]), (&json!(7), &json!(2)));
}

#[tokio::test]
async fn with_the_definition_go_the_instances() {
    let cluster = established().await;
    for i in 0..5 {
        assert_eq!(cluster.post(PATH, widget(&format!("w{i}"), json!({"size": 1}))).await.status, 201);
    }
    let mut held = widget("held", json!({"size": 1}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(PATH, held).await;
    let mut watch = cluster.watch(&format!("{PATH}?watch=true")).await;
    let mut gone = cluster.watch(&format!("{CRDS}?watch=true")).await;
    let answer = cluster.delete(&format!("{CRDS}/widgets.example.com"), Value::Null).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["metadata"]["finalizers"]),
        (200, &json!(["customresourcecleanup.apiextensions.k8s.io"]))
    );
    let mut deleted = 0;
    while deleted < 5 {
        deleted += usize::from(watch.next().await.unwrap()["type"] == "DELETED");
    }
    cluster.patch(&format!("{PATH}/held"), "merge-patch", json!({"metadata": {"finalizers": null}})).await;
    while gone.next().await.unwrap()["type"] != "DELETED" {}
    // Rows go with the definition; the server hears of it from the same events we do.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while cluster.get(PATH).await.status != 404 {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}
