//! What people do with kubectl.

use serde_json::Value;

use super::server::cluster;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: main, image: demo, ports: [{containerPort: 80}]}]
";

#[test]
fn apply_get_change_delete() {
    let c = cluster();
    let ns = c.namespace("kubectl");
    let k = |arguments: &str, input: &str| c.kubectl(&format!("-n {ns} {arguments}"), input);
    assert_eq!(k("apply -f -", DEPLOYMENT), "deployment.apps/web created\n");
    assert_eq!(k("apply -f -", DEPLOYMENT), "deployment.apps/web unchanged\n");
    assert_eq!(k("apply -f -", &DEPLOYMENT.replace("replicas: 2", "replicas: 1")), "deployment.apps/web configured\n");
    assert_eq!(k("get deploy web -o jsonpath={.spec.replicas}", ""), "1");
    let table = k("get deployments", "");
    assert!(table.starts_with("NAME   READY   UP-TO-DATE   AVAILABLE   AGE\nweb "), "{table}");
    assert!(k("get deploy -o wide", "").contains("CONTAINERS"), "wide columns");
    assert_eq!(k("get deploy -o name -l app=web", ""), "deployment.apps/web\n");
    assert_eq!(k("get deploy -o name -l app=other", ""), "");
    k("scale deployment web --replicas=3", "");
    assert_eq!(k("get deploy web -o jsonpath={.spec.replicas}", ""), "3");
    k("label deployment web tier=front", "");
    k("annotate deployment web note=x", "");
    k("set image deployment/web main=demo:2", "");
    assert_eq!(k("get deploy web -o jsonpath={.spec.template.spec.containers[0].image}", ""), "demo:2");
    let described = k("describe deployment web", "");
    assert!(described.contains("demo:2") && described.contains("tier=front"), "{described}");
    c.until("the replica sets", || k("get rs -o name", "").lines().count() == 2);
    assert!(k("rollout history deployment/web", "").contains("REVISION"));
    assert_eq!(
        k("delete deployment web", ""),
        format!("deployment.apps \"web\" deleted{}\n", of_namespace(&k("version --client -o json", ""), &ns))
    );
    let gone = c.try_kubectl(&["-n", &ns, "get", "deployment", "web"], "").unwrap_err();
    assert_eq!(gone.trim(), "Error from server (NotFound): deployments.apps \"web\" not found");
    c.until("the replica sets to be collected", || k("get rs -o name", "").is_empty());
}

/// Newer kubectl says where it deleted.
fn of_namespace(version: &str, namespace: &str) -> String {
    let minor = serde_json::from_str::<Value>(version).ok().and_then(|v| v["clientVersion"]["minor"].as_str()?.parse::<u32>().ok());
    if minor.unwrap_or(0) >= 34 { format!(" from {namespace} namespace") } else { String::new() }
}

#[test]
fn create_of_many_kinds() {
    let c = cluster();
    let ns = c.namespace("create");
    let k = |arguments: &str| c.kubectl(&format!("-n {ns} {arguments}"), "");
    k("create configmap settings --from-literal=a=1 --from-literal=b=2");
    assert_eq!(k("get cm settings -o jsonpath={.data.b}"), "2");
    k("create secret generic pass --from-literal=key=value");
    assert_eq!(k("get secret pass -o jsonpath={.data.key}"), "dmFsdWU=");
    k("create serviceaccount bot");
    k("create service clusterip web --tcp=80:8080");
    assert!(k("get svc web -o jsonpath={.spec.clusterIP}").starts_with("10."));
    k("create role reader --verb=get,list --resource=pods");
    k(&format!("create rolebinding readers --role=reader --serviceaccount={ns}:bot"));
    assert_eq!(k(&format!("auth can-i list pods --as=system:serviceaccount:{ns}:bot")), "yes\n");
    let refused = c.try_kubectl(&["-n", &ns, "auth", "can-i", "delete", "pods", &format!("--as=system:serviceaccount:{ns}:bot")], "");
    assert!(refused.is_err(), "{refused:?}");
    k("create deployment web --image=demo --replicas=1");
    k("expose deployment web --name=exposed --port=80");
    k("create job once --image=demo");
    k("create cronjob often --image=demo --schedule=@hourly");
    k("create quota q --hard=pods=10");
    k("run single --image=demo");
    assert_eq!(k("get pod single -o jsonpath={.spec.serviceAccountName}"), "default");
    assert!(k("get all").contains("pod/single"));
    let duplicate = c.try_kubectl(&["-n", &ns, "create", "configmap", "settings"], "").unwrap_err();
    assert!(duplicate.contains("configmaps \"settings\" already exists"), "{duplicate}");
}

#[test]
fn discovery_and_documentation() {
    let c = cluster();
    let resources = c.kubectl("api-resources", "");
    for expected in ["configmaps", "deployments", "networkpolicies", "customresourcedefinitions", "leases"] {
        assert!(resources.contains(expected), "{expected} in {resources}");
    }
    assert!(c.kubectl("api-versions", "").lines().any(|l| l == "apps/v1"));
    let explained = c.kubectl("explain pod.spec.containers", "");
    assert!(explained.contains("image") && explained.contains("FIELD"), "{explained}");
    let version: Value = serde_json::from_str(&c.kubectl("version -o json", "")).unwrap();
    assert_eq!(version["serverVersion"]["minor"], "36");
    assert!(c.kubectl("cluster-info", "").contains("is running at"));
    assert_eq!(c.kubectl("get --raw /readyz", ""), "ok");
}

#[test]
fn patch_replace_label_wait() {
    let c = cluster();
    let ns = c.namespace("change");
    let k = |arguments: &[&str], input: &str| {
        c.try_kubectl(&[&["-n", &ns], arguments].concat(), input).unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
    };
    k(
        &["create", "-f", "-"],
        "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"m\"},\"data\":{\"a\":\"1\",\"b\":\"1\"}}",
    );
    k(&["patch", "cm", "m", "--type=merge", "-p", r#"{"data":{"a":"2","b":null}}"#], "");
    k(&["patch", "cm", "m", "--type=json", "-p", r#"[{"op":"add","path":"/data/c","value":"3"}]"#], "");
    k(&["patch", "cm", "m", "-p", "data: {d: \"4\"}"], "");
    assert_eq!(k(&["get", "cm", "m", "-o", "jsonpath={.data}"], ""), r#"{"a":"2","c":"3","d":"4"}"#);
    let whole = k(&["get", "cm", "m", "-o", "yaml"], "");
    k(&["replace", "-f", "-"], &whole.replace("a: \"2\"", "a: \"5\""));
    let stale = c.try_kubectl(&["-n", &ns, "replace", "-f", "-"], &whole).unwrap_err();
    assert!(stale.contains("the object has been modified"), "{stale}");
    k(&["label", "cm", "m", "x=y"], "");
    k(&["wait", "cm/m", "--for=jsonpath={.metadata.labels.x}=y", "--timeout=30s"], "");
}

#[test]
fn server_side_apply() {
    let c = cluster();
    let ns = c.namespace("ssa");
    let k = |arguments: &[&str], input: &str| {
        c.try_kubectl(&[&["-n", &ns], arguments].concat(), input).unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
    };
    let mine = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {a: \"1\"}\n";
    k(&["apply", "--server-side", "--field-manager=one", "-f", "-"], mine);
    let conflict = c
        .try_kubectl(&["-n", &ns, "apply", "--server-side", "--field-manager=two", "-f", "-"], &mine.replace("\"1\"", "\"2\""))
        .unwrap_err();
    assert!(conflict.contains("conflict with \"one\""), "{conflict}");
    k(&["apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-"], &mine.replace("\"1\"", "\"2\""));
    assert_eq!(k(&["get", "cm", "s", "-o", "jsonpath={.data.a}"], ""), "2");
}

#[test]
fn a_namespace_takes_all_with_it() {
    let c = cluster();
    let ns = c.namespace("gone");
    c.kubectl(&format!("-n {ns} create configmap a"), "");
    c.kubectl(&format!("delete namespace {ns} --timeout=60s"), "");
    assert_eq!(c.get(&format!("/api/v1/namespaces/{ns}")).code, 404);
    assert_eq!(c.get(&format!("/api/v1/namespaces/{ns}/configmaps/a")).code, 404);
    let immortal = c.try_kubectl(&["delete", "namespace", "default"], "").unwrap_err();
    assert!(immortal.contains("this namespace may not be deleted"), "{immortal}");
}
