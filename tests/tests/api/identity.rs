//! Who may ask: certificates of the cluster and of others, tokens, nobody; roles, nodes, impersonation.

use serde_json::{Value, json};

use super::server::{Identity, cluster};

#[test]
fn without_and_with_foreign_certificates() {
    let c = cluster();
    let ask = |path: &str, identity: Identity| c.try_send("GET", path, &[], b"", &identity);
    let nobody = ask("/api/v1/pods", Identity::Nobody).unwrap().expect(403);
    assert_eq!(
        nobody["message"],
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
    );
    for path in ["/version", "/healthz", "/readyz", "/livez"] {
        assert_eq!(ask(path, Identity::Nobody).unwrap().code, 200, "{path}");
    }
    // A certificate nobody here signed: the handshake or the request fails, it is never somebody.
    if let Ok(response) = ask("/api/v1/pods", Identity::Foreign("admin")) {
        assert_eq!(response.expect(401)["reason"], "Unauthorized");
    }
    for token in ["nonsense", "a.b.c", "abcdef.0123456789abcdef"] {
        assert_eq!(ask("/version", Identity::Token(token.into())).unwrap().expect(401)["message"], "Unauthorized", "{token}");
    }
    let user = ask("/api/v1/secrets", Identity::User("jo", &["devs"])).unwrap().expect(403);
    assert_eq!(
        user["message"],
        "secrets is forbidden: User \"jo\" cannot list resource \"secrets\" in API group \"\" at the cluster scope"
    );
    assert_eq!(ask("/api", Identity::User("jo", &[])).unwrap().code, 200, "discovery is for everybody authenticated");
}

#[test]
fn roles_grant_what_they_say() {
    let c = cluster();
    let ns = c.namespace("roles");
    let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}");
    let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get", "create"], "apiGroups": [""], "resources": ["configmaps"]}]});
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "writers"}]});
    c.post(&format!("{path}/roles"), &role).expect(201);
    c.post(&format!("{path}/rolebindings"), &binding).expect(201);
    let writer = Identity::User("wi", &["writers"]);
    let send = |method: &str, path: &str, body: Value| {
        c.send(method, path, &[("content-type", "application/json")], body.to_string().as_bytes(), &writer)
    };
    let maps = format!("/api/v1/namespaces/{ns}/configmaps");
    c.until("the role to be in force", || send("GET", &format!("{maps}/x"), json!({})).code == 404);
    send("POST", &maps, json!({"metadata": {"name": "m"}})).expect(201);
    send("DELETE", &format!("{maps}/m"), json!({})).expect(403);
    send("GET", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", json!({})).expect(403);
    let own = send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {"namespace": ns, "verb": "create", "resource": "configmaps"}}})).expect(201);
    assert_eq!(own["status"]["allowed"], true);
    let me = send(
        "POST",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}),
    )
    .expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "wi");
    assert!(me["status"]["userInfo"]["groups"].as_array().unwrap().contains(&json!("writers")));
    // The administrator may try what another can do; others may not.
    let as_writer = [("impersonate-user", "x"), ("impersonate-group", "writers")];
    assert_eq!(c.send("GET", &format!("{maps}/m"), &as_writer, b"", &Identity::Admin).code, 200);
    assert_eq!(c.send("DELETE", &format!("{maps}/m"), &as_writer, b"", &Identity::Admin).code, 403);
    assert_eq!(c.send("GET", &format!("{maps}/m"), &as_writer, b"", &writer).code, 403);
}

#[test]
fn nobody_grants_more_than_they_hold() {
    let c = cluster();
    let ns = c.namespace("escalate");
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}");
    let grant = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "local"}]});
    c.post(&format!("{rbac}/rolebindings"), &grant).expect(201);
    let local = Identity::User("local", &[]);
    let send = |path: &str, body: Value| c.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes(), &local);
    c.until("the binding to be in force", || {
        send(&format!("/api/v1/namespaces/{ns}/configmaps?dryRun=All"), json!({"metadata": {"name": "x"}})).code == 201
    });
    let role = |verbs: Value, resources: Value| json!({"metadata": {"name": "r"}, "rules": [{"verbs": verbs, "apiGroups": [""], "resources": resources}]});
    send(&format!("{rbac}/roles"), role(json!(["get"]), json!(["pods"]))).expect(201);
    let refused = send(&format!("{rbac}/roles"), role(json!(["*"]), json!(["nodes"]))).expect(403);
    assert!(refused["message"].as_str().unwrap().contains("is attempting to grant RBAC permissions not currently held"), "{refused}");
    let mut binding = grant.clone();
    binding["metadata"]["name"] = "c".into();
    binding["roleRef"]["name"] = "cluster-admin".into();
    send(&format!("{rbac}/rolebindings"), binding).expect(403);
}

#[test]
fn service_accounts_speak_with_tokens() {
    let c = cluster();
    let ns = c.namespace("tokens");
    let account = format!("/api/v1/namespaces/{ns}/serviceaccounts/default");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
    let issued = c.post(&format!("{account}/token"), &request).expect(201);
    let token = issued["status"]["token"].as_str().unwrap().to_string();
    let bot = Identity::Token(token.clone());
    let denied = c.send("GET", "/api/v1/pods", &[], b"", &bot).expect(403);
    assert!(
        denied["message"].as_str().unwrap().starts_with(&format!("pods is forbidden: User \"system:serviceaccount:{ns}:default\"")),
        "{denied}"
    );
    let review = c
        .post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}),
        )
        .expect(201);
    assert_eq!(review["status"]["user"]["username"], format!("system:serviceaccount:{ns}:default"));
    assert_eq!(c.send("GET", "/openid/v1/jwks", &[], b"", &bot).expect(200)["keys"][0]["kty"], "EC");
    let other = json!({"spec": {"audiences": ["elsewhere"]}});
    let elsewhere = c.post(&format!("{account}/token"), &other).expect(201)["status"]["token"].as_str().unwrap().to_string();
    assert_eq!(c.send("GET", "/version", &[], b"", &Identity::Token(elsewhere)).code, 401);
    // With the account its tokens end, also when one of the same name follows.
    c.delete(&account).expect(200);
    c.until("the token to end", || c.send("GET", "/api", &[], b"", &bot).code == 401);
}

#[test]
fn nodes_reach_only_their_own() {
    let c = cluster();
    let ns = c.namespace("nodes");
    let node = Identity::User("system:node:n1", &["system:nodes"]);
    let send = |method: &str, path: &str, body: Value| {
        c.send(method, path, &[("content-type", "application/json")], body.to_string().as_bytes(), &node)
    };
    for name in ["mine", "other"] {
        c.post(&format!("/api/v1/namespaces/{ns}/secrets"), &json!({"metadata": {"name": name}})).expect(201);
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "mine"}}]}]}});
    let pod = c.post(&format!("/api/v1/namespaces/{ns}/pods"), &pod).expect(201);
    c.until("the pod to be known", || send("GET", &format!("/api/v1/namespaces/{ns}/secrets/mine"), json!({})).code == 200);
    let refused = send("GET", &format!("/api/v1/namespaces/{ns}/secrets/other"), json!({})).expect(403);
    assert!(refused["message"].as_str().unwrap().ends_with("no relationship found between node 'n1' and this object"), "{refused}");
    send("GET", &format!("/api/v1/namespaces/{ns}/secrets"), json!({})).expect(403);
    send("POST", "/api/v1/nodes", json!({"metadata": {"name": "n1"}})).expect(201);
    send("POST", "/api/v1/nodes", json!({"metadata": {"name": "n2"}})).expect(403);
    send(
        "POST",
        &format!("/api/v1/namespaces/{ns}/pods"),
        json!({"metadata": {"name": "q"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}}),
    )
    .expect(403);
    let token = |uid: &Value| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}});
    send("POST", &format!("/api/v1/namespaces/{ns}/serviceaccounts/default/token"), token(&pod["metadata"]["uid"])).expect(201);
    send("POST", &format!("/api/v1/namespaces/{ns}/serviceaccounts/default/token"), json!({"spec": {}})).expect(403);
    c.delete("/api/v1/nodes/n1").expect(200);
}
