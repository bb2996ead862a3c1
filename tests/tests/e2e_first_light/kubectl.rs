//! The commands people use most, each against what it is supposed to do.

use xebec_tests::cluster::{Cluster, IMAGE, until};

#[test]
fn kubectl_works_as_its_users_expect() {
    let cluster = Cluster::up("kubectl");
    let kubectl = |line: &str| cluster.kubectl(&line.split(' ').collect::<Vec<_>>());

    for kind in ["pods", "deployments", "networkpolicies", "endpointslices", "leases", "clusterroles"] {
        assert!(kubectl("api-resources -o name").lines().any(|line| line.split('.').next() == Some(kind)), "{kind}");
    }
    assert!(kubectl("explain deployment.spec.strategy").contains("rollingUpdate"));
    assert!(kubectl("version").contains("Server Version: v1.36"));

    kubectl("create namespace shop");
    kubectl("create configmap settings -n shop --from-literal=color=blue");
    let serve = ["--", "httpd", "-f", "-p", "8080"];
    let create = ["create", "deployment", "web", "-n", "shop", "--image", IMAGE, "--replicas=2"];
    cluster.kubectl(&[&create[..], &serve[..]].concat());
    kubectl("rollout status deployment/web -n shop --timeout=120s");
    assert_eq!(kubectl("get pods -n shop -l app=web --no-headers").lines().count(), 2);
    let wide = kubectl("get pods -n shop -o wide");
    assert!(wide.lines().next().unwrap().contains("NOMINATED NODE") && wide.contains("Running"), "{wide}");

    kubectl("scale deployment/web -n shop --replicas=3");
    kubectl("wait deployment/web -n shop --for=jsonpath={.status.readyReplicas}=3 --timeout=120s");
    kubectl("label deployment/web -n shop tier=front");
    assert_eq!(kubectl("get deployments -n shop -l tier=front -o name").trim(), "deployment.apps/web");
    kubectl("annotate deployment/web -n shop note=kept");
    let patch = r#"{"spec":{"template":{"metadata":{"labels":{"v":"2"}}}}}"#;
    cluster.kubectl(&["patch", "deployment/web", "-n", "shop", "-p", patch]);
    kubectl("rollout status deployment/web -n shop --timeout=120s");
    assert_eq!(kubectl("rollout history deployment/web -n shop").lines().filter(|line| line.starts_with(['1', '2'])).count(), 2);
    kubectl("rollout undo deployment/web -n shop");
    kubectl("rollout status deployment/web -n shop --timeout=120s");
    assert_eq!(kubectl("get deployment web -n shop -o jsonpath={.spec.template.metadata.labels.v}"), "");
    let described = kubectl("describe deployment web -n shop");
    assert!(described.contains("ScalingReplicaSet") && described.contains("note: kept"), "{described}");

    // An editor that changes the object, as a person would.
    let mut edit = cluster.kubectl_command(&["edit", "configmap", "settings", "-n", "shop"]);
    let output = edit.env("KUBE_EDITOR", "sed -i s/blue/green/").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(kubectl("get configmap settings -n shop -o jsonpath={.data.color}"), "green");

    kubectl("expose deployment web -n shop --port=80 --target-port=8080");
    until("the Service has three endpoints", || {
        kubectl("get endpointslices -n shop -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].addresses[0]}")
            .split(' ')
            .count()
            == 3
    });
    kubectl("delete namespace shop --timeout=120s");
    let gone = cluster.try_kubectl(&["get", "namespace", "shop"], "");
    assert!(String::from_utf8_lossy(&gone.stderr).contains("NotFound"));
}

#[test]
fn apply_creates_changes_and_reports_what_is_wrong() {
    let cluster = Cluster::up("apply");
    let manifest = |image: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: one\nspec:\n  containers:\n  - name: main\n    image: {image}\n    command: [sleep, '100000']\n"
        )
    };
    cluster.apply(&manifest(IMAGE));
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=120s"]);
    let again = cluster.kubectl_with(&["apply", "-f", "-"], &manifest(IMAGE));
    assert_eq!(again.trim(), "pod/one unchanged");

    let mistakes = [
        (manifest(IMAGE).replace("image:", "imagee:"), "unknown field"),
        (manifest(IMAGE).replace("name: one", "name: One"), "Invalid value"),
        (manifest(IMAGE).replace("'100000'", "7"), "cannot"),
        (manifest(IMAGE).replace("sleep,", "other,"), "Forbidden"),
    ];
    for (mistake, answer) in mistakes {
        let output = cluster.try_kubectl(&["apply", "-f", "-"], &mistake);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(answer), "{answer:?} not in {said:?} for\n{mistake}");
    }

    cluster.apply(&manifest("localhost/none/such:1").replace("name: one", "name: absent"));
    until("an image that does not exist is told", || cluster.kubectl(&["get", "pod", "absent", "--no-headers"]).contains("ImagePull"));
    cluster.apply(&manifest(IMAGE).replace("name: one", "name: crash").replace("sleep, '100000'", "'false'"));
    until("a container that crashes is told", || cluster.kubectl(&["get", "pod", "crash", "--no-headers"]).contains("CrashLoopBackOff"));
    let greedy = manifest(IMAGE).replace("name: one", "name: greedy") + "    resources: {requests: {cpu: '1000'}}\n";
    cluster.apply(&greedy);
    until("a pod that fits nowhere is told why", || cluster.kubectl(&["describe", "pod", "greedy"]).contains("Insufficient cpu"));
}

#[test]
fn an_unknown_kind_is_named() {
    let cluster = Cluster::up("kind");
    let output = cluster.try_kubectl(&["apply", "-f", "-"], "apiVersion: v1\nkind: Pot\nmetadata:\n  name: one\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no matches for kind"));
}
