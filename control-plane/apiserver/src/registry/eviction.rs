//! `pods/eviction`: a delete that respects PodDisruptionBudgets.

use chrono::Utc;
use http::StatusCode;
use serde_json::{Value, json};
use xebec_api::{
    Document, meta,
    schema::{self, FieldValidation},
    selector::LabelSelector,
    status::{self, ApiError},
};

use super::{
    Call,
    body::{self, Received},
    delete,
    options::DeleteOptions,
    write,
};
use crate::http::Response;

/// Deletions a budget remembers until its controller has seen them.
const MAX_DISRUPTED: usize = 2000;

/// What the budget says to one more disruption.
enum Verdict {
    /// Allowed without counting: the pod is not healthy anyway.
    Free,
    /// Allowed, and counted in this new status.
    Counted(Document),
}

/// POST of an Eviction.
pub(crate) async fn create(mut call: Call, received: Received) -> Result<Response, ApiError> {
    let name = call.info.name.clone();
    let received = body::as_json(received)?;
    let eviction = if received.bytes.is_empty() {
        json!({})
    } else {
        schema::decode_kind(
            "policy/v1",
            "Eviction",
            &received.bytes,
            &received.media_type,
            FieldValidation::parse(call.query().get("fieldValidation"))?,
        )?
        .0
    };
    let own = meta::name(&eviction);
    if !own.is_empty() && own != name {
        return Err(status::bad_request(format!("name in URL does not match name in Eviction object: {name} != {own}")));
    }
    let options = DeleteOptions::parse(eviction.get("deleteOptions"), call.query())?;
    let Some((_, pod)) = write::read(&call, &name).await? else { return Err(status::not_found(&call.resource, &name)) };
    if !ignores_budgets(&pod) {
        call.core.hub.wait_for_present().await.map_err(super::store_error)?;
        check_budgets(&call, &name, &pod, options.dry_run).await?;
    }
    delete::delete_one(&call, &name, &options).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    call.answer_plain(StatusCode::CREATED, &success)
}

/// Pods that serve nobody (yet, or any more) may always go.
fn ignores_budgets(pod: &Document) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null() || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
}

async fn check_budgets(call: &Call, name: &str, pod: &Document, dry_run: bool) -> Result<(), ApiError> {
    let Some(budgets) = call.core.hub.kind("poddisruptionbudgets") else { return Ok(()) };
    let matching: Vec<Document> = budgets
        .snapshot(&call.info.namespace)
        .0
        .iter()
        .map(|entry| entry.document())
        .filter(|budget| LabelSelector::from_document(&budget["spec"]["selector"]).matches(pod))
        .collect();
    let budget = match matching.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let Some(row) = call.core.rows.table().find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let mut on_budget = Call {
        core: call.core.clone(),
        info: call.info.clone(),
        user: call.user.clone(),
        headers: call.headers.clone(),
        resource: row,
        custom: None,
        warnings: Vec::new(),
    };
    on_budget.info.subresource = "status".into();
    let budget_name = meta::name(budget).to_string();
    let (pod, pod_name) = (pod.clone(), name.to_string());
    write::modify(&on_budget, &budget_name, dry_run, move |budget| {
        if let Verdict::Counted(new_status) = judge(budget, &pod, &pod_name)? {
            budget["status"] = new_status;
        }
        Ok(())
    })
    .await?;
    Ok(())
}

fn judge(budget: &Document, pod: &Document, pod_name: &str) -> Result<Verdict, ApiError> {
    let name = meta::name(budget);
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let ready = pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    if !ready {
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if always || (number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy")) {
            return Ok(Verdict::Free);
        }
    }
    if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Err(too_many(10, &format!("The disruption budget {name} is still being processed by the server.")));
    }
    if number("disruptionsAllowed") < 0 {
        return Err(status::forbidden_named("policy", "poddisruptionbudgets", name, "pdb disruptions allowed is negative"));
    }
    let disrupted = budget["status"]["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
    if disrupted > MAX_DISRUPTED {
        return Err(status::forbidden_named(
            "policy",
            "poddisruptionbudgets",
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if number("disruptionsAllowed") == 0 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        return Err(too_many(0, &cause));
    }
    let mut new_status = budget["status"].clone();
    new_status["disruptionsAllowed"] = (number("disruptionsAllowed") - 1).into();
    if !new_status["disruptedPods"].is_object() {
        new_status["disruptedPods"] = json!({});
    }
    new_status["disruptedPods"][pod_name] = meta::timestamp(Utc::now()).into();
    Ok(Verdict::Counted(new_status))
}

fn too_many(retry_after_seconds: u64, cause: &str) -> ApiError {
    let mut details = json!({"causes": [{"reason": "DisruptionBudget", "message": cause}]});
    if retry_after_seconds > 0 {
        details["retryAfterSeconds"] = retry_after_seconds.into();
    }
    ApiError {
        code: 429,
        reason: "TooManyRequests",
        message: "Cannot evict pod as it would violate the pod's disruption budget.".into(),
        details: Value::clone(&details),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: bool) -> Document {
        json!({"metadata": {"name": "p"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    fn budget(allowed: i64, observed: i64) -> Document {
        json!({"metadata": {"name": "b", "generation": 2}, "spec": {},
            "status": {"observedGeneration": observed, "disruptionsAllowed": allowed, "desiredHealthy": 1, "currentHealthy": 1}})
    }

    #[test]
    fn budgets_count_refuse_and_let_the_unhealthy_go() {
        let Ok(Verdict::Counted(status)) = judge(&budget(1, 2), &pod(true), "p") else { panic!() };
        assert_eq!(status["disruptionsAllowed"], 0);
        assert!(status["disruptedPods"]["p"].is_string());
        assert_eq!(judge(&budget(0, 2), &pod(true), "p").err().unwrap().code, 429);
        assert!(judge(&budget(1, 1), &pod(true), "p").err().unwrap().details["retryAfterSeconds"] == 10);
        assert!(matches!(judge(&budget(0, 2), &pod(false), "p"), Ok(Verdict::Free)));
    }
}
