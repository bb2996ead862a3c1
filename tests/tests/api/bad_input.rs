//! Requests no sound client sends: each gets upstream's answer, and the server goes on.

use serde_json::{Value, json};

use super::server::{Identity, cluster};

/// method, path below the namespace, content type, body, code, reason, words of the message
type Case<'a> = (&'a str, &'a str, &'a str, Vec<u8>, u16, &'a str, &'a str);

#[test]
fn a_table_of_nonsense() {
    let c = cluster();
    let ns = c.namespace("bad");
    let base = format!("/api/v1/namespaces/{ns}");
    c.post(&format!("{base}/configmaps"), &json!({"metadata": {"name": "there"}})).expect(201);
    const JSON: &str = "application/json";
    const YAML: &str = "application/yaml";
    let text = |t: &str| t.as_bytes().to_vec();
    let map = |doc: Value| doc.to_string().into_bytes();
    let deep = format!("{{\"metadata\":{{\"name\":\"d\"}},\"data\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = format!("{{\"metadata\":{{\"name\":\"h\"}},\"data\":{{\"k\":\"{}\"}}}}", "x".repeat(4 << 20));
    let cases: Vec<Case<'_>> = vec![
        ("POST", "/configmaps", JSON, text("{\"metadata\":"), 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, text("not json"), 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, text(""), 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, vec![0xff, 0xfe, 0x00], 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, text("[]"), 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, text("null"), 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, deep.into_bytes(), 400, "BadRequest", ""),
        ("POST", "/configmaps", YAML, text("a: [1, 2"), 400, "BadRequest", ""),
        ("POST", "/configmaps", YAML, text("a: &a [*a, *a]"), 400, "BadRequest", ""),
        ("POST", "/configmaps", "text/plain", text("{}"), 415, "UnsupportedMediaType", "accepted media types include"),
        ("POST", "/configmaps", "application/vnd.kubernetes.protobuf", text("k8s\0\x0a\x7f"), 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, huge.into_bytes(), 413, "RequestEntityTooLarge", "Request entity too large"),
        (
            "POST",
            "/configmaps",
            JSON,
            map(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})),
            400,
            "BadRequest",
            "cannot be handled as a ConfigMap",
        ),
        (
            "POST",
            "/configmaps",
            JSON,
            map(json!({"apiVersion": "v9", "kind": "ConfigMap", "metadata": {"name": "x"}})),
            400,
            "BadRequest",
            "",
        ),
        (
            "POST",
            "/configmaps",
            JSON,
            map(json!({"metadata": {"name": "x", "namespace": "other"}})),
            400,
            "BadRequest",
            "does not match the namespace",
        ),
        ("POST", "/configmaps", JSON, map(json!({"metadata": {}})), 422, "Invalid", "name or generateName is required"),
        ("POST", "/configmaps", JSON, map(json!({"metadata": {"name": "Not_A_Name"}})), 422, "Invalid", "lowercase RFC 1123 subdomain"),
        ("POST", "/configmaps", JSON, map(json!({"metadata": {"name": "x".repeat(300)}})), 422, "Invalid", "must be no more than 253"),
        ("POST", "/configmaps", JSON, map(json!({"metadata": {"name": "x", "labels": {"a b": "c"}}})), 422, "Invalid", "metadata.labels"),
        ("POST", "/configmaps", JSON, map(json!({"metadata": {"name": "x", "labels": {"a": 1}}})), 400, "BadRequest", ""),
        ("POST", "/configmaps", JSON, map(json!({"metadata": {"name": "x"}, "data": "text"})), 400, "BadRequest", ""),
        (
            "POST",
            "/configmaps?fieldValidation=Strict",
            JSON,
            map(json!({"metadata": {"name": "x"}, "dada": {}})),
            400,
            "BadRequest",
            "unknown field \"dada\"",
        ),
        (
            "POST",
            "/configmaps?fieldValidation=Strict",
            JSON,
            text(r#"{"metadata":{"name":"x"},"data":{"a":"1","a":"2"}}"#),
            400,
            "BadRequest",
            "duplicate field",
        ),
        ("POST", "/configmaps?fieldValidation=Maybe", JSON, map(json!({"metadata": {"name": "x"}})), 422, "Invalid", "fieldValidation"),
        (
            "POST",
            "/pods",
            JSON,
            map(
                json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "lots"}}}]}}),
            ),
            400,
            "BadRequest",
            "quantit",
        ),
        ("POST", "/services", JSON, map(json!({"metadata": {"name": "x"}, "spec": {"ports": [{"port": "http"}]}})), 400, "BadRequest", ""),
        ("GET", "/configmaps/nowhere", "", vec![], 404, "NotFound", "configmaps \"nowhere\" not found"),
        ("PUT", "/configmaps/nowhere", JSON, map(json!({"metadata": {"name": "nowhere"}})), 404, "NotFound", ""),
        ("PUT", "/configmaps/there", JSON, map(json!({"metadata": {"name": "other"}})), 400, "BadRequest", "does not match"),
        ("PUT", "/configmaps/there", JSON, map(json!({"metadata": {"name": "there", "resourceVersion": "1"}})), 409, "Conflict", ""),
        (
            "PUT",
            "/configmaps/there",
            JSON,
            map(json!({"metadata": {"name": "there", "resourceVersion": "x"}})),
            422,
            "Invalid",
            "resourceVersion",
        ),
        ("PATCH", "/configmaps/there", "application/json", text("{}"), 415, "UnsupportedMediaType", ""),
        ("PATCH", "/configmaps/there", "application/merge-patch+json", text("{"), 400, "BadRequest", ""),
        ("PATCH", "/configmaps/there", "application/json-patch+json", text("{}"), 400, "BadRequest", ""),
        ("PATCH", "/configmaps/there", "application/json-patch+json", text(r#"[{"op":"remove","path":"/nothing"}]"#), 422, "Invalid", ""),
        ("PATCH", "/configmaps/there", "application/merge-patch+json", text(r#"{"metadata":{"name":"else"}}"#), 400, "BadRequest", ""),
        ("DELETE", "/configmaps/nowhere", "", vec![], 404, "NotFound", ""),
        ("DELETE", "/configmaps/there", JSON, text("{\"gracePeriodSeconds\": \"soon\"}"), 400, "BadRequest", ""),
        ("GET", "/configmaps?labelSelector=a%3D%3D%3Db", "", vec![], 400, "BadRequest", "found '=', expected: identifier"),
        ("GET", "/configmaps?labelSelector=a%20in%20(", "", vec![], 400, "BadRequest", ""),
        ("GET", "/configmaps?fieldSelector=spec.nothing%3Dx", "", vec![], 400, "BadRequest", "is not a known field selector"),
        ("GET", "/configmaps?resourceVersion=abc", "", vec![], 400, "BadRequest", "invalid"),
        ("GET", "/configmaps?limit=many", "", vec![], 400, "BadRequest", ""),
        ("GET", "/configmaps?watch=1&resourceVersion=abc", "", vec![], 400, "BadRequest", ""),
        ("GET", "/nonsense", "", vec![], 404, "NotFound", "the server could not find the requested resource"),
        ("POST", "/configmaps/there", JSON, map(json!({})), 405, "MethodNotAllowed", ""),
        ("POST", "/configmaps", JSON, map(json!({"metadata": {"name": "x"}, "data": {"bad key": "v"}})), 422, "Invalid", "data[bad key]"),
        (
            "POST",
            "/pods",
            JSON,
            map(json!({"metadata": {"name": "x"}, "spec": {"containers": []}})),
            422,
            "Invalid",
            "spec.containers: Required value",
        ),
        (
            "POST",
            "/services",
            JSON,
            map(json!({"metadata": {"name": "x"}, "spec": {"ports": [{"port": 99999}]}})),
            422,
            "Invalid",
            "spec.ports[0].port",
        ),
        ("PUT", "/configmaps", JSON, map(json!({})), 405, "MethodNotAllowed", ""),
    ];
    ask(&ns, cases);
}

#[test]
fn nonsense_to_apply() {
    let ns = cluster().namespace("worse");
    cluster().post(&format!("/api/v1/namespaces/{ns}/configmaps"), &json!({"metadata": {"name": "there"}})).expect(201);
    let text = |t: &str| t.as_bytes().to_vec();
    ask(
        &ns,
        vec![(
            "PATCH",
            "/configmaps/there",
            "application/apply-patch+yaml",
            text("apiVersion: v1\nkind: ConfigMap"),
            422,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        )],
    );
}

/// Sends each and compares; the server must be well afterwards.
fn ask(ns: &str, cases: Vec<Case<'_>>) {
    let c = cluster();
    let base = format!("/api/v1/namespaces/{ns}");
    let mut wrong = Vec::new();
    for (method, path, media_type, body, code, reason, words) in cases {
        let headers: Vec<(&str, &str)> = if media_type.is_empty() { vec![] } else { vec![("content-type", media_type)] };
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let response = match c.try_send(method, &format!("{base}{path}"), &headers, &body, &Identity::Admin) {
            Ok(response) => response,
            Err(error) => {
                wrong.push(format!("{method} {path} {shown}: no answer: {error:#}"));
                continue;
            }
        };
        let status: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let message = status["message"].as_str().unwrap_or_default();
        let sound = response.code == code
            && status["kind"] == "Status"
            && status["reason"] == reason
            && status["code"] == code
            && message.contains(words)
            && !message.is_empty();
        if !sound {
            wrong.push(format!(
                "{method} {path} {shown}: expected {code} {reason} {words:?}, got {} {}",
                response.code,
                response.text().chars().take(300).collect::<String>()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(c.get("/readyz").text(), "ok");
    c.get(&format!("{base}/configmaps/there")).expect(200);
}

#[test]
fn unknown_groups_and_versions() {
    let c = cluster();
    for path in ["/apis/none.example.com/v1/things", "/apis/apps/v9/deployments", "/api/v2/pods", "/apis/apps/v1/pods", "/nothing"] {
        let status = c.get(path).expect(404);
        assert_eq!(status["reason"], "NotFound", "{path}");
    }
    let unknown = c.post("/apis/apps/v1/namespaces/default/gadgets", &json!({}));
    assert_eq!(unknown.code, 404);
}

#[test]
fn warnings_name_unknown_fields() {
    let c = cluster();
    let ns = c.namespace("warn");
    let path = format!("/api/v1/namespaces/{ns}/configmaps?fieldValidation=Warn");
    let response = c.post(&path, &json!({"metadata": {"name": "w"}, "dada": {}}));
    assert_eq!(response.code, 201);
    let warning = response.headers.get("warning").expect("a warning").to_str().unwrap().to_string();
    assert!(warning.starts_with("299 - ") && warning.contains("unknown field \\\"dada\\\""), "{warning}");
}

#[test]
fn limits_of_the_connection() {
    let c = cluster();
    // Headers larger than any server takes, and a request line that is no HTTP.
    let long = "x".repeat(2 << 20);
    match c.try_send("GET", "/version", &[("x-long", &long)], b"", &Identity::Admin) {
        Ok(response) => assert!(response.code >= 400, "{}", response.code),
        Err(_closed) => {}
    }
    assert_eq!(c.get("/readyz").code, 200);
}
