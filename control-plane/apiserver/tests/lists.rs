//! Lists: freshness, pages, selectors, shapes, bad parameters.

mod common;

use common::{config_map, start, together};
use http::Method;
use serde_json::{Value, json};

const PATH: &str = "/api/v1/namespaces/n/configmaps";

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_show_one_state_whatever_happens_between_them() {
    let cluster = start().await;
    cluster.namespace("n").await;
    for i in 0..25 {
        assert_eq!(cluster.post(PATH, config_map(&format!("c{i:02}"), json!({}), json!({"v": "1"}))).await.status, 201);
    }
    let mut seen = Vec::new();
    let first = cluster.get(&format!("{PATH}?limit=7")).await.body;
    assert_eq!(first["metadata"]["remainingItemCount"], 18);
    let revision = first["metadata"]["resourceVersion"].clone();
    let mut page = first;
    let mut round = 0;
    loop {
        seen.extend(page["items"].as_array().unwrap().iter().map(|i| (i["metadata"]["name"].clone(), i["data"]["v"].clone())));
        assert_eq!(page["metadata"]["resourceVersion"], revision);
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        // Others write meanwhile: before, in and behind what is still to come.
        cluster.post(PATH, config_map(&format!("a{round}"), json!({}), json!({}))).await;
        cluster.delete(&format!("{PATH}/c2{round}"), Value::Null).await;
        cluster.patch(&format!("{PATH}/c23"), "merge-patch", json!({"data": {"v": "2"}})).await;
        round += 1;
        let next = cluster.get(&format!("{PATH}?limit=7&continue={token}")).await;
        assert_eq!(next.status, 200, "{}", next.text);
        page = next.body;
    }
    let expected: Vec<_> = (0..25).map(|i| (json!(format!("c{i:02}")), json!("1"))).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_list_holds_every_write_that_was_acknowledged_before_it() {
    let cluster = start().await;
    cluster.namespace("n").await;
    let cluster = &cluster;
    together((0..100).map(|i| async move {
        let name = format!("c{i}");
        assert_eq!(cluster.post(PATH, config_map(&name, json!({}), json!({}))).await.status, 201);
        let list = cluster.get(PATH).await.body;
        assert!(names(&list).contains(&name.as_str()), "{name} not in the list that follows its creation");
        assert_eq!(cluster.delete(&format!("{PATH}/{name}"), Value::Null).await.status, 200);
        let list = cluster.get(PATH).await.body;
        assert!(!names(&list).contains(&name.as_str()), "{name} in the list that follows its deletion");
    }))
    .await;
}

#[tokio::test]
async fn selectors_select() {
    let cluster = start().await;
    cluster.namespace("n").await;
    for (name, labels) in [("a", json!({"x": "1", "y": "2"})), ("b", json!({"x": "2"})), ("c", json!({}))] {
        cluster.post(PATH, config_map(name, labels, json!({}))).await;
    }
    for (query, expected) in [
        ("labelSelector=x", vec!["a", "b"]),
        ("labelSelector=x%3D1", vec!["a"]),
        ("labelSelector=x!%3D1", vec!["b", "c"]),
        ("labelSelector=x+in+(1,2),!y", vec!["b"]),
        ("labelSelector=x+notin+(2)", vec!["a", "c"]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name!%3Db", vec!["a", "c"]),
        ("fieldSelector=metadata.namespace%3Dother", vec![]),
        ("labelSelector=x&limit=1", vec!["a"]),
    ] {
        let list = cluster.get(&format!("{PATH}?{query}")).await.body;
        assert_eq!(names(&list), expected, "{query}");
    }
    let limited = cluster.get(&format!("{PATH}?labelSelector=x&limit=1")).await.body;
    assert!(limited["metadata"]["remainingItemCount"].is_null(), "unknown behind a selector");
    let all = cluster.get("/api/v1/configmaps?labelSelector=x").await.body;
    assert_eq!(names(&all), ["a", "b"]);
}

#[tokio::test]
async fn resource_versions_mean_what_they_should() {
    let cluster = start().await;
    cluster.namespace("n").await;
    cluster.post(PATH, config_map("a", json!({}), json!({"v": "1"}))).await;
    let revision = cluster.get(PATH).await.body["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    cluster.patch(&format!("{PATH}/a"), "merge-patch", json!({"data": {"v": "2"}})).await;
    let value = |list: &Value| list["items"][0]["data"]["v"].clone();
    let exact = cluster.get(&format!("{PATH}?resourceVersion={revision}&resourceVersionMatch=Exact")).await.body;
    assert_eq!((value(&exact), exact["metadata"]["resourceVersion"].as_str().unwrap()), (json!("1"), revision.as_str()));
    let limited = cluster.get(&format!("{PATH}?resourceVersion={revision}&limit=5")).await.body;
    assert_eq!(value(&limited), "1");
    cluster.get(PATH).await;
    let newer = cluster.get(&format!("{PATH}?resourceVersion={revision}&resourceVersionMatch=NotOlderThan")).await.body;
    assert_eq!(value(&newer), "2");
    let future = cluster.get(&format!("{PATH}?resourceVersion=99999999&resourceVersionMatch=NotOlderThan")).await;
    assert_eq!((future.status.as_u16(), future.body["details"]["causes"][0]["reason"].as_str().unwrap()), (504, "ResourceVersionTooLarge"));
}

#[tokio::test]
async fn bad_parameters_are_refused() {
    let cluster = start().await;
    cluster.namespace("n").await;
    for (query, code) in [
        ("labelSelector=x%3D%3D%3D", 400),
        ("labelSelector=,", 400),
        ("fieldSelector=spec.nodeName%3Dx", 400),
        ("limit=many", 400),
        ("continue=nonsense", 400),
        ("resourceVersion=abc", 400),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=1&resourceVersionMatch=Sometimes", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("sendInitialEvents=true", 422),
    ] {
        let answer = cluster.get(&format!("{PATH}?{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.body["kind"].as_str()), (code, Some("Status")), "{query}: {}", answer.text);
    }
    assert_eq!(cluster.get("/api/v1/nonsenses").await.status, 404);
    assert_eq!(cluster.get("/apis/none.example/v1/things").await.status, 404);
    assert_eq!(cluster.get("/api/v1/namespaces/n/nodes").await.status, 404);
}

#[tokio::test]
async fn shapes_and_formats() {
    let cluster = start().await;
    cluster.namespace("n").await;
    cluster.post(PATH, config_map("a", json!({}), json!({"k": "v"}))).await;
    let ask = async |accept: &str| cluster.call(Method::GET, PATH, &[("accept", accept)], "").await;
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await.body;
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(table["rows"][0]["cells"][0], "a");
    let metadata = ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.body;
    assert_eq!((&metadata["kind"], &metadata["items"][0]["kind"]), (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata")));
    assert!(metadata["items"][0]["data"].is_null());
    let yaml = ask("application/yaml").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(yaml.text.contains("kind: ConfigMapList"), "{}", yaml.text);
    assert_eq!(ask("application/vnd.kubernetes.protobuf").await.status, 406);
}

#[tokio::test]
async fn large_lists_are_compressed_for_those_who_take_it() {
    use std::io::Read;
    let cluster = start().await;
    cluster.namespace("n").await;
    for i in 0..40 {
        cluster.post(PATH, config_map(&format!("c{i}"), json!({}), json!({"v": "x".repeat(5000)}))).await;
    }
    let plain = cluster.get(PATH).await;
    assert!(!plain.headers.contains_key("content-encoding"));
    let response = cluster.raw(Method::GET, PATH, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert!(bytes.len() * 10 < plain.text.len());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["items"].as_array().unwrap().len(), 40);
}
