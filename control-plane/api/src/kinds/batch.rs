//! Jobs and cron jobs.

use serde_json::{Value, json};

use super::{PLAIN, Rules, age, podspec};
use crate::{
    Document, table,
    validate::batch,
    value::{child, default, each, has, is_zero, list, set, text, with},
};

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "Job" => Rules {
            default: default_job,
            prepare_create: select_own_pods,
            validate: batch::validate_job,
            validate_update: batch::validate_job_update,
            fields: |doc| vec![("status.successful", number(&doc["status"]["succeeded"]).to_string())],
            columns: &[
                ("Status", "string", 0),
                ("Completions", "string", 0),
                ("Duration", "string", 0),
                ("Age", "string", 0),
                ("Containers", "string", 1),
                ("Images", "string", 1),
                ("Selector", "string", 1),
            ],
            cells: job_cells,
            ..PLAIN
        },
        "CronJob" => Rules {
            default: default_cron_job,
            validate: batch::validate_cron_job,
            columns: &[
                ("Schedule", "string", 0),
                ("Timezone", "string", 0),
                ("Suspend", "boolean", 0),
                ("Active", "integer", 0),
                ("Last Schedule", "string", 0),
                ("Age", "string", 0),
                ("Containers", "string", 1),
                ("Images", "string", 1),
                ("Selector", "string", 1),
            ],
            cells: cron_job_cells,
            ..PLAIN
        },
        _ => return None,
    })
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn default_job(doc: &mut Document) {
    let labels = doc["spec"]["template"]["metadata"]["labels"].clone();
    if let Some(spec) = child(doc, "spec") {
        podspec::default_template(spec);
        if !has(spec, "completions") && !has(spec, "parallelism") {
            set(spec, "completions", 1);
        }
        default(spec, "parallelism", 1);
        let backoff = if has(spec, "backoffLimitPerIndex") { i32::MAX } else { 6 };
        default(spec, "backoffLimit", backoff);
        default(spec, "completionMode", "NonIndexed");
        default(spec, "suspend", false);
        let replacement = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        default(spec, "podReplacementPolicy", replacement);
        with(spec, "podFailurePolicy", |policy| {
            each(policy, "rules", |rule| each(rule, "onPodConditions", |c| default(c, "status", "True")));
        });
    }
    if let Some(metadata) = child(doc, "metadata")
        && is_zero(&metadata["labels"])
        && !is_zero(&labels)
    {
        set(metadata, "labels", labels);
    }
}

/// A job tells its pods by its uid, unless the client chose the selector.
fn select_own_pods(doc: &mut Document) {
    let (uid, name) = (doc["metadata"]["uid"].clone(), doc["metadata"]["name"].clone());
    let Some(spec) = child(doc, "spec") else { return };
    if spec["manualSelector"] == true {
        return;
    }
    if let Some(labels) = child(spec, "template").and_then(|t| child(t, "metadata")).and_then(|m| child(m, "labels")) {
        for (key, value) in [("controller-uid", &uid), ("job-name", &name)] {
            set(labels, key, value.clone());
            set(labels, &format!("batch.kubernetes.io/{key}"), value.clone());
        }
    }
    if let Some(selector) = child(spec, "selector").and_then(|s| child(s, "matchLabels")) {
        set(selector, "batch.kubernetes.io/controller-uid", uid);
    }
}

fn default_cron_job(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    default(spec, "concurrencyPolicy", "Allow");
    default(spec, "suspend", false);
    default(spec, "successfulJobsHistoryLimit", 3);
    default(spec, "failedJobsHistoryLimit", 1);
    if let Some(template) = child(spec, "jobTemplate") {
        child(template, "metadata");
        if let Some(job) = child(template, "spec") {
            podspec::default_template(job);
        }
    }
}

fn seconds(value: &Value) -> Option<i64> {
    chrono::DateTime::parse_from_rfc3339(text(value)).ok().map(|t| t.timestamp())
}

fn job_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (spec, status) = (&doc["spec"], &doc["status"]);
    let has_condition = |type_| table::condition(doc, type_).is_some_and(|c| c["status"] == "True");
    let state = if has_condition("Complete") {
        "Complete"
    } else if has_condition("Failed") {
        "Failed"
    } else if !doc["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if has_condition("Suspended") {
        "Suspended"
    } else if has_condition("FailureTarget") {
        "FailureTarget"
    } else if has_condition("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let succeeded = number(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), number(&spec["parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let duration = match (seconds(&status["startTime"]), seconds(&status["completionTime"])) {
        (None, _) => String::new(),
        (Some(start), Some(end)) => table::human_duration(end - start),
        (Some(start), None) => table::human_duration(now - start),
    };
    let pod = &spec["template"]["spec"];
    vec![
        state.into(),
        completions.into(),
        duration.into(),
        age(doc, now),
        table::containers(pod),
        table::images(pod),
        table::selector(&spec["selector"]),
    ]
}

fn cron_job_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (spec, status) = (&doc["spec"], &doc["status"]);
    let last = match &status["lastScheduleTime"] {
        Value::Null => json!(table::NONE),
        at => table::age(at, now),
    };
    let job = &spec["jobTemplate"]["spec"];
    vec![
        spec["schedule"].clone(),
        table::or_none(text(&spec["timeZone"])),
        if spec["suspend"] == true { "True" } else { "False" }.into(),
        list(&status["active"]).len().into(),
        last,
        age(doc, now),
        table::containers(&job["template"]["spec"]),
        table::images(&job["template"]["spec"]),
        table::selector(&job["selector"]),
    ]
}
