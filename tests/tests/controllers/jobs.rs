//! Jobs, disruption budgets, and the smaller loops.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ReplicationController, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::json;

use crate::harness::{Cluster, deployment, eventually};

#[tokio::test]
async fn a_job_runs_to_its_end_and_is_forgotten() {
    let cluster = Cluster::with_node().await;
    let template = json!({"metadata": {"annotations": {"test/exit": "Succeeded"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "img:1"}]}});
    let job = |name: &str, more: serde_json::Value| {
        let mut spec = json!({"completions": 3, "parallelism": 2, "template": template});
        for (k, v) in more.as_object().expect("an object") {
            spec[k] = v.clone();
        }
        json!({"metadata": {"name": name}, "spec": spec})
    };
    cluster.create::<Job>(job("plain", json!({}))).await;
    cluster.create::<Job>(job("indexed", json!({"completionMode": "Indexed"}))).await;
    cluster.create::<Job>(job("brief", json!({"ttlSecondsAfterFinished": 0}))).await;
    let jobs = cluster.api::<Job>("default");
    for name in ["plain", "indexed"] {
        let status = eventually("the job is complete", || async {
            let s = jobs.get(name).await.ok()?.status?;
            s.conditions.iter().flatten().any(|c| c.type_ == "Complete" && c.status == "True").then_some(s)
        })
        .await;
        assert_eq!((status.succeeded, status.failed, status.active), (Some(3), None, None), "{name}");
        assert!(status.completion_time.is_some());
    }
    assert_eq!(jobs.get("indexed").await.expect("the job").status.and_then(|s| s.completed_indexes).as_deref(), Some("0-2"));
    eventually("the brief one is gone", || async { jobs.get_opt("brief").await.ok()?.is_none().then_some(()) }).await;
    eventually("every pod is counted and let go", || async {
        let held = cluster.pods("").await.into_iter().filter(|p| p.metadata.finalizers.iter().flatten().count() > 0).count();
        (held == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_budget_counts_what_may_go() {
    let cluster = Cluster::with_node().await;
    cluster.create::<Deployment>(deployment("web", 3)).await;
    let budget = json!({"metadata": {"name": "web"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.create::<PodDisruptionBudget>(budget).await;
    eventually("one may go", || async {
        let s = cluster.api::<PodDisruptionBudget>("default").get("web").await.ok()?.status?;
        let all = [s.expected_pods, s.current_healthy, s.desired_healthy, s.disruptions_allowed];
        (all == [Some(3), Some(3), Some(2), Some(1)]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replication_controller_keeps_its_pods() {
    let cluster = Cluster::with_node().await;
    let spec = json!({"replicas": 2, "selector": {"app": "rc"}, "template": {"metadata": {"labels": {"app": "rc"}},
        "spec": {"containers": [{"name": "c", "image": "img:1"}]}}});
    cluster.create::<ReplicationController>(json!({"metadata": {"name": "rc"}, "spec": spec})).await;
    eventually("two ready pods", || async {
        let s = cluster.api::<ReplicationController>("default").get("rc").await.ok()?.status?;
        (s.replicas == 2 && s.ready_replicas == Some(2)).then_some(())
    })
    .await;
    let owner = cluster.pods("app=rc").await.remove(0).metadata.owner_references.unwrap_or_default().remove(0);
    assert_eq!((owner.kind.as_str(), owner.api_version.as_str()), ("ReplicationController", "v1"));
}

#[tokio::test]
async fn a_token_secret_is_filled_and_goes_with_its_account() {
    let cluster = Cluster::start().await;
    let secret = |name: &str, account: &str| {
        json!({"metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
            "type": "kubernetes.io/service-account-token"})
    };
    eventually("the account is there", || async {
        cluster.api::<k8s_openapi::api::core::v1::ServiceAccount>("default").get_opt("default").await.ok()?.map(|_| ())
    })
    .await;
    cluster.create::<Secret>(secret("token", "default")).await;
    cluster.create::<Secret>(secret("stray", "nobody")).await;
    let secrets = cluster.api::<Secret>("default");
    let data =
        eventually("the token is there", || async { secrets.get("token").await.ok()?.data.filter(|d| d.contains_key("token")) }).await;
    assert_eq!(data["namespace"].0, b"default");
    assert_eq!(data["token"].0.iter().filter(|b| **b == b'.').count(), 2);
    eventually("the stray one is gone", || async { secrets.get_opt("stray").await.ok()?.is_none().then_some(()) }).await;
    let pods: Vec<Pod> = cluster.pods("").await;
    assert!(pods.is_empty());
}
