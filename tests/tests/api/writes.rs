//! Create, update, patch, delete: versions, generated names, dry runs, preconditions, finalizers, subresources.

use serde_json::{Value, json};

use super::server::cluster;

#[test]
fn versions_guard_updates() {
    let c = cluster();
    let ns = c.namespace("versions");
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    let first = c.post(&path, &json!({"metadata": {"name": "m"}, "data": {"a": "1"}})).expect(201);
    let mut second = first.clone();
    second["data"]["a"] = "2".into();
    let second = c.put(&format!("{path}/m"), &second).expect(200);
    assert_ne!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let conflict = c.put(&format!("{path}/m"), &first).expect(409);
    assert_eq!(conflict["reason"], "Conflict");
    assert_eq!(
        conflict["message"],
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // The same again changes nothing, not even the version.
    let same = c.put(&format!("{path}/m"), &second).expect(200);
    assert_eq!(same["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    // Without a version the last one wins.
    let unconditional = c.put(&format!("{path}/m"), &json!({"metadata": {"name": "m"}, "data": {"a": "3"}})).expect(200);
    assert_eq!((&unconditional["data"]["a"], &unconditional["metadata"]["uid"]), (&json!("3"), &first["metadata"]["uid"]));
    let stale = json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"a": "4"}});
    assert_eq!(c.patch(&format!("{path}/m"), "merge", &stale).code, 409);
    let other = json!({"metadata": {"name": "m", "uid": "00000000-0000-0000-0000-000000000000"}});
    assert_eq!(c.put(&format!("{path}/m"), &other).code, 409);
    let taken = c.post(&path, &json!({"metadata": {"name": "m"}})).expect(409);
    assert_eq!((&taken["reason"], &taken["message"]), (&json!("AlreadyExists"), &json!("configmaps \"m\" already exists")));
}

#[test]
fn names_are_generated() {
    let c = cluster();
    let ns = c.namespace("names");
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    let mut names: Vec<String> = (0..5)
        .map(|_| {
            c.post(&path, &json!({"metadata": {"generateName": "gen-"}})).expect(201)["metadata"]["name"].as_str().unwrap().to_string()
        })
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 5);
    assert!(names.iter().all(|n| n.starts_with("gen-") && n.len() == 9), "{names:?}");
}

#[test]
fn dry_runs_change_nothing() {
    let c = cluster();
    let ns = c.namespace("dry");
    let path = format!("/api/v1/namespaces/{ns}/services");
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let dry = c.post(&format!("{path}?dryRun=All"), &service).expect(201);
    assert!(dry["spec"]["clusterIP"].is_string() && dry["metadata"]["uid"].is_string());
    assert_eq!(c.get(&format!("{path}/s")).code, 404);
    let real = c.post(&path, &service).expect(201);
    assert_eq!(c.post(&format!("{path}?dryRun=All"), &service).code, 409);
    let patched = c.patch(&format!("{path}/s?dryRun=All"), "merge", &json!({"metadata": {"labels": {"a": "b"}}})).expect(200);
    assert_eq!(patched["metadata"]["labels"]["a"], "b");
    c.delete(&format!("{path}/s?dryRun=All")).expect(200);
    assert_eq!(c.get(&format!("{path}/s")).expect(200), real);
    let bad = c.post(&format!("{path}?dryRun=Some"), &service).expect(422);
    assert!(bad["message"].as_str().unwrap().contains("dryRun"), "{bad}");
}

#[test]
fn patches_of_every_type() {
    let c = cluster();
    let ns = c.namespace("patch");
    let path = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    let container = |name: &str| json!({"name": name, "image": "demo", "env": [{"name": "A", "value": "1"}]});
    let spec = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [container("one"), container("two")]}}});
    c.post(&path, &json!({"metadata": {"name": "d"}, "spec": spec})).expect(201);
    let at = format!("{path}/d");
    let env = |doc: &Value, i: usize| doc["spec"]["template"]["spec"]["containers"][i]["env"].clone();

    // Strategic: lists merge by key.
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "two", "env": [{"name": "B", "value": "2"}]}]}}}});
    let doc = c.patch(&at, "strategic-merge", &strategic).expect(200);
    assert_eq!(doc["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    let names: Vec<&str> =
        doc["spec"]["template"]["spec"]["containers"][1]["env"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"A") && names.contains(&"B"), "{names:?}");
    let remove = json!({"spec": {"template": {"spec": {"containers": [{"name": "two", "env": [{"name": "A", "$patch": "delete"}]}]}}}});
    let doc = c.patch(&at, "strategic-merge", &remove).expect(200);
    assert_eq!(env(&doc, 1), json!([{"name": "B", "value": "2"}]));
    // Merge: lists are replaced.
    let merge = json!({"spec": {"template": {"spec": {"containers": [container("three")]}}}});
    let doc = c.patch(&at, "merge", &merge).expect(200);
    assert_eq!(doc["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    // JSON: by position, with tests.
    let json = json!([{"op": "test", "path": "/spec/replicas", "value": 0}, {"op": "replace", "path": "/spec/replicas", "value": 1}]);
    assert_eq!(c.patch(&at, "json", &json).expect(200)["spec"]["replicas"], 1);
    assert_eq!(c.patch(&at, "json", &json).code, 422, "the test no longer holds");
}

#[test]
fn apply_is_by_manager() {
    let c = cluster();
    let ns = c.namespace("apply");
    let path = format!("/apis/apps/v1/namespaces/{ns}/deployments");
    let spec = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "demo"}]}}});
    c.post(&path, &json!({"metadata": {"name": "d"}, "spec": spec})).expect(201);
    let at = format!("{path}/d");
    let applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"paused": true}});
    let doc = c.patch(&format!("{at}?fieldManager=me"), "apply", &applied).expect(200);
    assert_eq!(doc["spec"]["paused"], true);
    let managers: Vec<&str> = doc["metadata"]["managedFields"].as_array().unwrap().iter().filter_map(|m| m["manager"].as_str()).collect();
    assert!(managers.contains(&"me"), "{managers:?}");
    let refused = c.patch(
        &format!("{at}?fieldManager=you"),
        "apply",
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"paused": false}}),
    );
    assert_eq!(refused.code, 409);
    // A field given up by its only manager goes.
    let doc = c
        .patch(
            &format!("{at}?fieldManager=me"),
            "apply",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}),
        )
        .expect(200);
    assert_ne!(doc["spec"]["paused"], true);
}

#[test]
fn status_and_scale_are_apart() {
    let c = cluster();
    let ns = c.namespace("subs");
    let path = format!("/apis/apps/v1/namespaces/{ns}/replicasets");
    let spec = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "demo"}]}}});
    let made = c.post(&path, &json!({"metadata": {"name": "r"}, "spec": spec, "status": {"replicas": 9}})).expect(201);
    assert_ne!(made["status"]["replicas"], 9, "a status is not created");
    let changed = c.patch(&format!("{path}/r"), "merge", &json!({"spec": {"minReadySeconds": 1}, "status": {"replicas": 9}})).expect(200);
    assert_ne!(changed["status"]["replicas"], 9);
    assert_eq!(changed["metadata"]["generation"], 2);
    let scale = c.get(&format!("{path}/r/scale")).expect(200);
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"], &scale["spec"].get("replicas").cloned().unwrap_or(json!(0))),
        (&json!("Scale"), &json!("autoscaling/v1"), &json!(0))
    );
    let scaled = c.patch(&format!("{path}/r/scale"), "merge", &json!({"spec": {"replicas": 2}})).expect(200);
    assert_eq!(scaled["spec"]["replicas"], 2);
    c.until("the pods", || c.get(&format!("/api/v1/namespaces/{ns}/pods")).expect(200)["items"].as_array().unwrap().len() == 2);
}

#[test]
fn deletion_waits_for_what_must_be_waited_for() {
    let c = cluster();
    let ns = c.namespace("delete");
    let path = format!("/api/v1/namespaces/{ns}/configmaps");
    let made = c.post(&path, &json!({"metadata": {"name": "f", "finalizers": ["example.com/hold"]}})).expect(201);
    let wrong = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    let refused = c.send_json("DELETE", &format!("{path}/f"), &wrong).expect(409);
    assert!(refused["message"].as_str().unwrap().contains("Precondition failed"), "{refused}");
    let held = c.send_json("DELETE", &format!("{path}/f"), &json!({"preconditions": {"uid": made["metadata"]["uid"]}})).expect(200);
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    assert_eq!(c.get(&format!("{path}/f")).code, 200);
    let added = c.patch(&format!("{path}/f"), "merge", &json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}));
    assert_eq!(added.code, 422, "no finalizer is added to what is being deleted");
    c.patch(&format!("{path}/f"), "merge", &json!({"metadata": {"finalizers": null}})).expect(200);
    assert_eq!(c.get(&format!("{path}/f")).code, 404);

    // A pod that is on no node goes at once; one with a node waits for its kubelet.
    let pods = format!("/api/v1/namespaces/{ns}/pods");
    let pod = |name: &str, node: Value| json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "demo"}]}});
    c.post(&pods, &pod("free", Value::Null)).expect(201);
    c.delete(&format!("{pods}/free")).expect(200);
    assert_eq!(c.get(&format!("{pods}/free")).code, 404);
    c.post(&pods, &pod("bound", json!("some-node"))).expect(201);
    let going = c.delete(&format!("{pods}/bound")).expect(200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(c.get(&format!("{pods}/bound")).code, 200);
    c.send_json("DELETE", &format!("{pods}/bound"), &json!({"gracePeriodSeconds": 0})).expect(200);
    c.until("the pod to go", || c.get(&format!("{pods}/bound")).code == 404);

    for i in 0..3 {
        c.post(&path, &json!({"metadata": {"name": format!("c{i}"), "labels": {"x": "y"}}})).expect(201);
    }
    c.delete(&format!("{path}?labelSelector=x")).expect(200);
    assert_eq!(c.get(&format!("{path}?labelSelector=x")).expect(200)["items"], json!([]));
}

#[test]
fn cluster_addresses_and_node_ports() {
    let c = cluster();
    let ns = c.namespace("addresses");
    let path = format!("/api/v1/namespaces/{ns}/services");
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let a = c.post(&path, &service("a", json!({"type": "NodePort", "ports": [{"port": 80}]}))).expect(201);
    let (ip, port) = (a["spec"]["clusterIP"].clone(), a["spec"]["ports"][0]["nodePort"].clone());
    let same_ip = c.post(&path, &service("b", json!({"clusterIP": ip, "ports": [{"port": 80}]}))).expect(422);
    assert!(same_ip["message"].as_str().unwrap().contains("provided IP is already allocated"), "{same_ip}");
    let same_port = c.post(&path, &service("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}))).expect(422);
    assert!(same_port["message"].as_str().unwrap().contains("provided port is already allocated"), "{same_port}");
    let moved = c
        .patch(&format!("{path}/a"), "merge", &json!({"spec": {"clusterIP": "10.96.200.200", "clusterIPs": ["10.96.200.200"]}}))
        .expect(422);
    assert!(moved["message"].as_str().unwrap().contains("may not change once set"), "{moved}");
    c.delete(&format!("{path}/a")).expect(200);
    c.post(&path, &service("c", json!({"clusterIP": ip, "type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}))).expect(201);
}

#[test]
fn a_custom_resource_is_served_like_any_other() {
    let c = cluster();
    let ns = c.namespace("custom");
    let group = format!("{ns}.example.com");
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "default": "red"}}}}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("widgets.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
                 "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    c.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).expect(201);
    let path = format!("/apis/{group}/v1/namespaces/{ns}/widgets");
    c.until("the new kind", || c.get(&path).code == 200);
    let widget =
        |size: Value| json!({"apiVersion": format!("{group}/v1"), "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": size}});
    assert_eq!(c.post(&path, &widget(json!("big"))).code, 422);
    assert_eq!(c.post(&path, &widget(json!(0))).code, 422);
    let made = c.post(&path, &widget(json!(3))).expect(201);
    assert_eq!(made["spec"]["color"], "red");
    assert_eq!(c.patch(&format!("{path}/w"), "merge", &json!({"spec": {"size": 5}})).expect(200)["metadata"]["generation"], 2);
    c.delete(&format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.{group}")).expect(200);
    c.until("the kind to go", || c.get(&path).code == 404);
}

#[test]
fn namespaces_bound_what_they_hold() {
    let c = cluster();
    let ns = c.namespace("bounds");
    let base = format!("/api/v1/namespaces/{ns}");
    c.post(&format!("{base}/resourcequotas"), &json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1", "configmaps": "10"}}}))
        .expect(201);
    c.post(
        &format!("{base}/limitranges"),
        &json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}, "max": {"cpu": "2"}}]}}),
    )
    .expect(201);
    let pod = |name: &str, cpu: Value| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": cpu}}]}});
    c.until("the limits to be in force", || c.post(&format!("{base}/pods?dryRun=All"), &pod("a", json!({"cpu": "3"}))).code == 403);
    let made = c.post(&format!("{base}/pods"), &pod("a", json!({}))).expect(201);
    assert_eq!(made["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
    let over = c.post(&format!("{base}/pods"), &pod("b", json!({}))).expect(403);
    assert_eq!(over["message"], "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1");
    c.until("the status of the quota", || {
        c.get(&format!("{base}/resourcequotas/q")).expect(200)["status"]["used"] == json!({"pods": "1", "configmaps": "1"})
    });
    c.send_json("DELETE", &format!("{base}/pods/a"), &json!({"gracePeriodSeconds": 0})).expect(200);
    c.until("the place to be free", || c.post(&format!("{base}/pods"), &pod("b", json!({}))).code == 201);

    c.patch(&format!("/api/v1/namespaces/{ns}"), "merge", &json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}}})).expect(200);
    let privileged =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]}});
    c.until("the security level to be in force", || {
        c.post(&format!("{base}/pods?dryRun=All"), &privileged).json()["message"]
            .as_str()
            .is_some_and(|m| m.contains("violates PodSecurity \"baseline:latest\": privileged"))
    });
}
