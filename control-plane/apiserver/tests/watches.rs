//! Watches: nothing lost, nothing twice, selections entered and left, resumed, cut off.

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{Cluster, config_map, start};
use serde_json::{Value, json};

const PATH: &str = "/api/v1/namespaces/n/configmaps";

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let cluster = start().await;
    cluster.namespace("n").await;
    let mut watch = cluster.watch(&format!("{PATH}?watch=true&labelSelector=app%3Dx")).await;
    cluster.post(PATH, config_map("a", json!({}), json!({}))).await;
    cluster.patch(&format!("{PATH}/a"), "merge-patch", json!({"metadata": {"labels": {"app": "x"}}})).await;
    watch.expect("ADDED", "a").await;
    cluster.patch(&format!("{PATH}/a"), "merge-patch", json!({"data": {"k": "1"}})).await;
    assert_eq!(watch.expect("MODIFIED", "a").await["object"]["data"]["k"], "1");
    let left = cluster.patch(&format!("{PATH}/a"), "merge-patch", json!({"metadata": {"labels": {"app": "y"}}})).await.body;
    let event = watch.expect("DELETED", "a").await;
    // The last selected state, at the revision at which it left.
    assert_eq!(event["object"]["metadata"]["labels"]["app"], "x");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    cluster.patch(&format!("{PATH}/a"), "merge-patch", json!({"metadata": {"labels": {"app": "x"}}})).await;
    watch.expect("ADDED", "a").await;
    cluster.delete(&format!("{PATH}/a"), Value::Null).await;
    watch.expect("DELETED", "a").await;
}

#[tokio::test]
async fn a_watch_resumes_where_it_was() {
    let cluster = start().await;
    cluster.namespace("n").await;
    let created = cluster.post(PATH, config_map("a", json!({}), json!({}))).await.body;
    let revision = created["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    cluster.post(PATH, config_map("b", json!({}), json!({}))).await;
    cluster.delete(&format!("{PATH}/a"), Value::Null).await;
    cluster.get(PATH).await;
    let mut watch = cluster.watch(&format!("{PATH}?watch=true&resourceVersion={revision}")).await;
    watch.expect("ADDED", "b").await;
    watch.expect("DELETED", "a").await;
    cluster.post(PATH, config_map("c", json!({}), json!({}))).await;
    watch.expect("ADDED", "c").await;
}

#[tokio::test]
async fn a_revision_from_before_the_cache_is_gone() {
    let cluster = start().await;
    let mut watch = cluster.watch("/api/v1/configmaps?watch=true&resourceVersion=1").await;
    // Bootstrap may have written after revision 1; then the history before the cache's start is missing.
    let core = cluster.server.core();
    if core.hub.kind("configmaps").unwrap().subscribe(Default::default(), xebec_apiserver::cache::Start::After(1)).is_err() {
        let event = watch.next().await.unwrap();
        assert_eq!(
            (event["type"].as_str(), event["object"]["code"].as_i64(), event["object"]["reason"].as_str()),
            (Some("ERROR"), Some(410), Some("Expired"))
        );
        assert!(watch.next().await.is_none());
    }
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let cluster = start().await;
    cluster.namespace("n").await;
    for name in ["a", "b"] {
        cluster.post(PATH, config_map(name, json!({}), json!({}))).await;
    }
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = cluster.watch(&format!("{PATH}?{query}")).await;
    watch.expect("ADDED", "a").await;
    watch.expect("ADDED", "b").await;
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let revision: u64 = bookmark["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let next = cluster.post(PATH, config_map("c", json!({}), json!({}))).await.body;
    assert!(next["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > revision);
    watch.expect("ADDED", "c").await;
    assert_eq!(cluster.get(&format!("{PATH}?watch=true&sendInitialEvents=true")).await.status, 422);
}

#[tokio::test]
async fn a_watch_ends_with_its_time_and_a_last_bookmark() {
    let cluster = start().await;
    cluster.namespace("n").await;
    let mut watch = cluster.watch(&format!("{PATH}?watch=true&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion=0")).await;
    assert_eq!(watch.next().await.unwrap()["type"], "BOOKMARK");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn one_object_is_watched_by_name() {
    let cluster = start().await;
    cluster.namespace("n").await;
    let mut by_field = cluster.watch(&format!("{PATH}?watch=true&fieldSelector=metadata.name%3Db")).await;
    let mut by_path = cluster.watch("/api/v1/watch/namespaces/n/configmaps/b").await;
    for name in ["a", "b"] {
        cluster.post(PATH, config_map(name, json!({}), json!({}))).await;
    }
    by_field.expect("ADDED", "b").await;
    by_path.expect("ADDED", "b").await;
}

#[tokio::test]
async fn a_table_watch_names_its_columns_once() {
    let cluster = start().await;
    cluster.namespace("n").await;
    let response = cluster
        .raw(http::Method::GET, &format!("{PATH}?watch=true"), &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "")
        .await;
    let mut watch = common::Watch::of(response);
    for name in ["a", "b"] {
        cluster.post(PATH, config_map(name, json!({}), json!({}))).await;
    }
    let columns = |event: &Value| event["object"]["columnDefinitions"].as_array().map_or(0, Vec::len);
    let first = watch.next().await.unwrap();
    assert!(columns(&first) > 1 && first["object"]["rows"][0]["cells"][0] == "a", "{first}");
    let second = watch.next().await.unwrap();
    assert_eq!((columns(&second), &second["object"]["rows"][0]["cells"][0]), (0, &json!("b")));
}

/// What a client believes: list, then watch; resume by revision; list again when told the revision is gone.
async fn follow(cluster: Arc<Cluster>, selector: &'static str, seed: u64, last: String) -> BTreeMap<String, Value> {
    let mut seed = seed;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    let mut revision: Option<u64> = None;
    loop {
        let from = match revision {
            Some(revision) => revision,
            None => {
                let list = cluster.get(&format!("{PATH}?labelSelector={selector}")).await.body;
                known = list["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|i| (i["metadata"]["name"].as_str().unwrap().to_string(), i.clone()))
                    .collect();
                list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
            }
        };
        revision = Some(from);
        if known.contains_key(&last) {
            return known;
        }
        let mut watch =
            cluster.watch(&format!("{PATH}?watch=true&allowWatchBookmarks=true&labelSelector={selector}&resourceVersion={from}")).await;
        // Clients break off now and then.
        for _ in 0..1 + random(40) {
            let Some(event) = watch.next().await else { break };
            let object = event["object"].clone();
            if event["type"] == "ERROR" {
                assert_eq!(object["code"], 410);
                revision = None;
                break;
            }
            let at: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            assert!(revision.is_some_and(|before| at > before), "revisions only grow: {at} after {revision:?}");
            revision = Some(at);
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
            match event["type"].as_str().unwrap() {
                "ADDED" => assert!(known.insert(name.clone(), object).is_none(), "{name} added twice"),
                "MODIFIED" => assert!(known.insert(name.clone(), object).is_some(), "{name} modified before it was added"),
                "DELETED" => assert!(known.remove(&name).is_some(), "{name} deleted without being there"),
                "BOOKMARK" => {}
                other => panic!("{other}"),
            }
            if name == last {
                return known;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lists_and_watches_ends_with_the_state_of_the_store() {
    let cluster = Arc::new(start().await);
    cluster.namespace("n").await;
    let selectors = ["", "app%3Dx", "app!%3Dx", "app"];
    let followers: Vec<_> = (0..8)
        .map(|i| tokio::spawn(follow(cluster.clone(), selectors[i % selectors.len()], 7 + i as u64, format!("zz{}", i % selectors.len()))))
        .collect();
    let writers: Vec<_> = (0..4_u64)
        .map(|w| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                for step in 0..120_u64 {
                    let name = format!("c{}", (step * 7 + w * 3) % 9);
                    let path = format!("{PATH}/{name}");
                    let app = ["x", "y"][(step + w) as usize % 2];
                    match (step * 5 + w) % 4 {
                        0 => drop(cluster.delete(&path, Value::Null).await),
                        1 => drop(cluster.patch(&path, "merge-patch", json!({"metadata": {"labels": {"app": app}}})).await),
                        2 => drop(
                            cluster
                                .patch(
                                    &path,
                                    "merge-patch",
                                    json!({"metadata": {"labels": {"app": null}}, "data": {"s": step.to_string()}}),
                                )
                                .await,
                        ),
                        _ => drop(cluster.post(PATH, config_map(&name, json!({"app": app}), json!({}))).await),
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    // One last object for each selection tells its followers that they have seen all.
    for (i, labels) in [json!({"app": "q"}), json!({"app": "x"}), json!({"app": "q"}), json!({"app": "q"})].into_iter().enumerate() {
        assert_eq!(cluster.post(PATH, config_map(&format!("zz{i}"), labels, json!({}))).await.status, 201);
    }
    for (i, follower) in followers.into_iter().enumerate() {
        let known = follower.await.unwrap();
        let list = cluster.get(&format!("{PATH}?labelSelector={}", selectors[i % selectors.len()])).await.body;
        // Those behind a follower's last object came after it looked.
        let last = format!("zz{}", i % selectors.len());
        let expected: BTreeMap<String, Value> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| (item["metadata"]["name"].as_str().unwrap().to_string(), item.clone()))
            .filter(|(name, _)| !name.starts_with("zz") || *name <= last)
            .collect();
        let known: BTreeMap<_, _> = known.into_iter().filter(|(name, _)| !name.starts_with("zz") || *name <= last).collect();
        assert_eq!(known, expected, "follower {i}");
    }
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_nobody_waits_for_it() {
    let cluster = start().await;
    cluster.namespace("n").await;
    cluster.post(PATH, config_map("a", json!({}), json!({}))).await;
    let mut slow = cluster.watch(&format!("{PATH}?watch=true")).await;
    slow.expect("ADDED", "a").await;
    for i in 0..1500 {
        let answer = cluster.patch(&format!("{PATH}/a"), "merge-patch", json!({"data": {"i": i.to_string()}})).await;
        assert_eq!(answer.status, 200);
    }
    let mut last = 0;
    while let Some(event) = slow.next().await {
        last = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    }
    // It goes on from where it was.
    let mut again = cluster.watch(&format!("{PATH}?watch=true&resourceVersion={last}")).await;
    loop {
        let event = again.next().await.unwrap();
        assert_eq!(event["type"], "MODIFIED");
        if event["object"]["data"]["i"] == "1499" {
            break;
        }
    }
}
