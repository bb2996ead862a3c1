//! Get, list in pages, watch: resumed, from the present, too old, with bookmarks.

use serde_json::{Value, json};

use super::server::{Cluster, cluster};

fn maps(ns: &str) -> String {
    format!("/api/v1/namespaces/{ns}/configmaps")
}

fn create(c: &Cluster, ns: &str, name: &str, labels: Value) -> Value {
    c.post(&maps(ns), &json!({"metadata": {"name": name, "labels": labels}, "data": {"k": "v"}})).expect(201)
}

fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_string()).collect()
}

fn version(doc: &Value) -> u64 {
    doc["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn pages_show_one_moment() {
    let c = cluster();
    let ns = c.namespace("pages");
    let own = |names: Vec<String>| names.into_iter().filter(|n| n != "kube-root-ca.crt").collect::<Vec<_>>();
    for i in 0..7 {
        create(c, &ns, &format!("m{i}"), json!({}));
    }
    let first = c.get(&format!("{}?limit=3", maps(&ns))).expect(200);
    assert_eq!(names(&first).len(), 3);
    assert!(first["metadata"]["remainingItemCount"].as_u64().unwrap() >= 4);
    c.delete(&format!("{}/m6", maps(&ns))).expect(200);
    create(c, &ns, "m5b", json!({}));
    let mut seen = names(&first);
    let mut token = first["metadata"]["continue"].as_str().unwrap().to_string();
    while !token.is_empty() {
        let page = c.get(&format!("{}?limit=3&continue={token}", maps(&ns))).expect(200);
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        seen.extend(names(&page));
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_string();
    }
    assert_eq!(own(seen), ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    let now = c.get(&maps(&ns)).expect(200);
    assert_eq!(own(names(&now)), ["m0", "m1", "m2", "m3", "m4", "m5", "m5b"]);
    for token in ["nonsense", "e30"] {
        assert_eq!(c.get(&format!("{}?continue={token}", maps(&ns))).code, 400, "{token}");
    }
}

#[test]
fn lists_at_revisions() {
    let c = cluster();
    let ns = c.namespace("revisions");
    let first = create(c, &ns, "a", json!({}));
    create(c, &ns, "b", json!({}));
    let at = version(&first);
    let exact = c.get(&format!("{}?resourceVersion={at}&resourceVersionMatch=Exact", maps(&ns))).expect(200);
    assert!(!names(&exact).contains(&"b".into()) && names(&exact).contains(&"a".into()));
    assert_eq!(version(&exact), at);
    let newer = c.get(&format!("{}?resourceVersion={at}&resourceVersionMatch=NotOlderThan", maps(&ns))).expect(200);
    assert!(version(&newer) >= at);
    let any = c.get(&format!("{}?resourceVersion=0", maps(&ns))).expect(200);
    assert!(names(&any).contains(&"a".into()));
    let future = c.get(&format!("{}?resourceVersion={}", maps(&ns), at + 1_000_000));
    assert_eq!((future.code, future.json()["reason"].clone()), (504, json!("Timeout")));
}

#[test]
fn selectors_choose() {
    let c = cluster();
    let ns = c.namespace("select");
    create(c, &ns, "a", json!({"app": "x", "tier": "1"}));
    create(c, &ns, "b", json!({"app": "y"}));
    create(c, &ns, "c", json!({"app": "x"}));
    for (query, expected) in [
        ("labelSelector=app%3Dx", vec!["a", "c"]),
        ("labelSelector=app%20in%20(x,y),tier", vec!["a"]),
        ("labelSelector=app,!tier", vec!["b", "c"]),
        ("labelSelector=app%20notin%20(x)", vec!["b", "kube-root-ca.crt"]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name!%3Db&labelSelector=app", vec!["a", "c"]),
    ] {
        c.until(query, || names(&c.get(&format!("{}?{query}", maps(&ns))).expect(200)) == expected);
    }
    let everywhere = c.get("/api/v1/configmaps?labelSelector=tier%3D1").expect(200);
    assert_eq!(everywhere["items"][0]["metadata"]["namespace"], *ns);
}

fn types(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .map(|e| format!("{} {}", e["type"].as_str().unwrap(), e["object"]["metadata"]["name"].as_str().unwrap_or_default()))
        .collect()
}

#[test]
fn a_watch_resumes_where_it_was() {
    let c = cluster();
    let ns = c.namespace("watch");
    let a = create(c, &ns, "a", json!({"w": "1"}));
    let at = version(&a);
    let b = create(c, &ns, "b", json!({"w": "1"}));
    c.patch(&format!("{}/a", maps(&ns)), "merge", &json!({"data": {"k": "2"}})).expect(200);
    c.delete(&format!("{}/b", maps(&ns))).expect(200);
    let events = c.watch(&format!("{}?watch=1&labelSelector=w&resourceVersion={at}", maps(&ns)), |e| e.len() >= 3);
    assert_eq!(types(&events), ["ADDED b", "MODIFIED a", "DELETED b"]);
    assert!(version(&events[0]["object"]) == version(&b) && version(&events[2]["object"]) > version(&events[1]["object"]));
    // From the middle: the rest and nothing twice.
    let middle = version(&events[0]["object"]);
    let rest = c.watch(&format!("{}?watch=1&labelSelector=w&resourceVersion={middle}", maps(&ns)), |e| e.len() >= 2);
    assert_eq!(types(&rest), ["MODIFIED a", "DELETED b"]);
    assert_eq!(rest, events[1..]);
    // An object that leaves the selection is deleted for the watcher, one that enters is added.
    let last = version(&events[2]["object"]);
    c.patch(&format!("{}/a", maps(&ns)), "merge", &json!({"metadata": {"labels": {"w": "2"}}})).expect(200);
    c.patch(&format!("{}/a", maps(&ns)), "merge", &json!({"metadata": {"labels": {"w": "1"}}})).expect(200);
    let moved = c.watch(&format!("{}?watch=1&labelSelector=w%3D1&resourceVersion={last}", maps(&ns)), |e| e.len() >= 2);
    assert_eq!(types(&moved), ["DELETED a", "ADDED a"]);
    // Without a revision: what is there first.
    let present = c.watch(&format!("{}?watch=1&labelSelector=w", maps(&ns)), |e| !e.is_empty());
    assert_eq!(types(&present), ["ADDED a"]);
}

#[test]
fn a_watch_ends_in_time_and_has_bookmarks() {
    let c = cluster();
    let ns = c.namespace("bookmarks");
    create(c, &ns, "a", json!({"b": "1"}));
    let path = format!(
        "{}?watch=1&labelSelector=b&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=2",
        maps(&ns)
    );
    let events = c.watch(&path, |_| false);
    assert_eq!(events[0]["type"], "ADDED");
    let bookmark = events.iter().find(|e| e["type"] == "BOOKMARK").expect("a bookmark ends the initial events");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!((&bookmark["object"]["kind"], &bookmark["object"]["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
}

#[test]
fn a_watch_from_forgotten_history_is_told() {
    let c = cluster();
    let ns = c.namespace("old");
    let a = create(c, &ns, "a", json!({}));
    // Far more changes than any cache keeps.
    let path = format!("{}/a", maps(&ns));
    for i in 0..700 {
        c.block_on(async {
            use k8s_openapi::api::core::v1::ConfigMap;
            let api: kube::Api<ConfigMap> = kube::Api::namespaced(c.server().client(xebec_apiserver::UserInfo::loopback()), &ns);
            api.patch("a", &Default::default(), &kube::api::Patch::Merge(json!({"data": {"i": i.to_string()}}))).await.unwrap();
        });
    }
    let old = version(&a);
    // Young history may be kept longer than it must; then the watch simply resumes.
    let first = c.watch(&format!("{}?watch=1&resourceVersion=2", maps(&ns)), |e| !e.is_empty());
    assert!(first[0]["type"] == "ERROR" && first[0]["object"]["code"] == 410, "revision 2 is before everything: {}", first[0]);
    assert_eq!(first[0]["object"]["reason"], "Expired");
    let resumed = c.watch(&format!("{}?watch=1&fieldSelector=metadata.name%3Da&resourceVersion={old}", maps(&ns)), |e| !e.is_empty());
    assert!(resumed[0]["type"] == "MODIFIED" || resumed[0]["object"]["code"] == 410, "{}", resumed[0]);
    assert_eq!(c.get(&path).expect(200)["data"]["i"], "699");
}

#[test]
fn tables_and_partial_objects() {
    let c = cluster();
    let ns = c.namespace("shapes");
    create(c, &ns, "a", json!({"s": "1"}));
    let accept = |kind: &str, path: &str| {
        let accept = format!("application/json;as={kind};v=v1;g=meta.k8s.io,application/json");
        c.send("GET", path, &[("accept", &accept)], b"", &super::server::Identity::Admin).expect(200)
    };
    let path = format!("{}?labelSelector=s", maps(&ns));
    let table = accept("Table", &path);
    assert_eq!((&table["kind"], &table["columnDefinitions"][0]["name"]), (&json!("Table"), &json!("Name")));
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = accept("PartialObjectMetadataList", &path);
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert_eq!(partial["items"][0].get("data"), None);
}
