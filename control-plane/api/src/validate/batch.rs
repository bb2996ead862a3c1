//! Jobs and cron jobs.

use serde_json::Value;

use super::{
    check::{Errors, at, at_index, has_time_zone, label_selector, non_negative, one_of},
    pod,
};
use crate::{
    Document,
    kinds::immutable,
    meta::same,
    status::FieldError,
    value::{copy, has, list, text},
};

pub fn validate_job(doc: &Document, errors: &mut Errors) {
    job_spec(&doc["spec"], "spec", errors);
    let spec = &doc["spec"];
    label_selector(&spec["selector"], "spec.selector", errors);
    let selector = crate::selector::LabelSelector::from_document(&spec["selector"]);
    let labels = &spec["template"]["metadata"]["labels"];
    if has(spec, "selector") && !selector.matches_map(labels) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
    }
}

/// A job spec at `path`, its own selector left aside.
fn job_spec(spec: &Value, path: &str, errors: &mut Errors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(&spec[key], &at(path, key), errors);
    }
    let mode = at(path, "completionMode");
    if !text(&spec["completionMode"]).is_empty() {
        one_of(&spec["completionMode"], &mode, &["NonIndexed", "Indexed"], errors);
    }
    if spec["completionMode"] == "Indexed" {
        if !has(spec, "completions") {
            errors.push(FieldError::required(at(path, "completions"), "when completion mode is Indexed"));
        }
        if spec["parallelism"].as_i64().is_some_and(|p| p > 100_000) {
            let detail = "must be less than or equal to 100000 when completion mode is Indexed";
            errors.push(FieldError::invalid(at(path, "parallelism"), spec["parallelism"].clone(), detail));
        }
    } else {
        for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            if has(spec, key) {
                errors.push(FieldError::invalid(at(path, key), spec[key].clone(), "requires indexed completion mode"));
            }
        }
    }
    pod::validate_template(&spec["template"], &at(path, "template"), errors);
    let policy = text(&spec["template"]["spec"]["restartPolicy"]);
    let policy_path = at(path, "template.spec.restartPolicy");
    match policy {
        "" | "Always" => {
            let detail = "valid values: \"OnFailure\", \"Never\"";
            if policy.is_empty() {
                errors.push(FieldError::required(policy_path, detail));
            } else {
                errors.push(FieldError::not_supported(policy_path, policy, &["OnFailure", "Never"]));
            }
        }
        "OnFailure" if has(spec, "podFailurePolicy") => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(policy_path, policy, detail));
        }
        _ => {}
    }
    for (i, rule) in list(&spec["podFailurePolicy"]["rules"]).iter().enumerate() {
        let path = at_index(&at(path, "podFailurePolicy"), "rules", i);
        one_of(&rule["action"], &at(&path, "action"), &["Count", "FailIndex", "FailJob", "Ignore"], errors);
        let exits = has(rule, "onExitCodes");
        if exits != list(&rule["onPodConditions"]).is_empty() {
            let detail = if exits {
                "specifying both OnExitCodes and OnPodConditions is not supported"
            } else {
                "specifying one of OnExitCodes and OnPodConditions is required"
            };
            errors.push(FieldError::invalid(path, rule.clone(), detail));
        }
    }
    if has(spec, "podReplacementPolicy") {
        one_of(&spec["podReplacementPolicy"], &at(path, "podReplacementPolicy"), &["Failed", "TerminatingOrFailed"], errors);
    }
}

pub fn validate_job_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    if !sub.is_empty() {
        return;
    }
    immutable(new, old, "/spec/selector", errors);
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        immutable(new, old, &format!("/spec/{key}"), errors);
    }
    // Indexed jobs may grow together with their parallelism.
    let elastic = new["spec"]["completionMode"] == "Indexed" && new["spec"]["completions"] == new["spec"]["parallelism"];
    if !elastic {
        immutable(new, old, "/spec/completions", errors);
    }
    let (after, mut before) = (&new["spec"]["template"], old["spec"]["template"].clone());
    if old["spec"]["suspend"] == true && old["status"]["startTime"].is_null() {
        // A job that never ran may still be told where to run.
        for key in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
            copy(&mut before["spec"], &after["spec"], key);
        }
        for key in ["annotations", "labels"] {
            copy(&mut before["metadata"], &after["metadata"], key);
        }
        let mut i = 0;
        crate::value::each(&mut before["spec"], "containers", |c| {
            copy(c, &list(&after["spec"]["containers"]).get(i).cloned().unwrap_or(Value::Null), "resources");
            i += 1;
        });
    }
    if !same(after, &before) {
        errors.push(FieldError::invalid("spec.template", after.clone(), "field is immutable"));
    }
}

pub fn validate_cron_job(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    let name = text(&doc["metadata"]["name"]);
    if name.len() > 52 {
        errors.push(FieldError::invalid("metadata.name", name, "must be no more than 52 characters"));
    }
    let schedule = text(&spec["schedule"]);
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else {
        if let Err(why) = cron(schedule) {
            errors.push(FieldError::invalid("spec.schedule", schedule, why));
        }
        if schedule.contains("TZ") {
            let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(FieldError::invalid("spec.schedule", schedule, detail));
        }
    }
    if has(spec, "timeZone") {
        has_time_zone(text(&spec["timeZone"]), "spec.timeZone", errors);
    }
    one_of(&spec["concurrencyPolicy"], "spec.concurrencyPolicy", &["Allow", "Forbid", "Replace"], errors);
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        non_negative(&spec[key], &at("spec", key), errors);
    }
    let template = &spec["jobTemplate"]["spec"];
    if has(template, "selector") {
        errors.push(FieldError::forbidden("spec.jobTemplate.spec.selector", "`selector` will be auto-generated"));
    }
    if template["manualSelector"] == true {
        errors.push(FieldError::not_supported("spec.jobTemplate.spec.manualSelector", true, &["nil", "false"]));
    }
    job_spec(template, "spec.jobTemplate.spec", errors);
}

/// Whether a schedule can be read: five fields, or a macro. The error is the cron parser's.
fn cron(schedule: &str) -> Result<(), String> {
    const MACROS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if let Some(every) = schedule.strip_prefix("@every ") {
        let plausible = !every.is_empty() && every.chars().all(|c| c.is_ascii_digit() || "hmsuµn.".contains(c));
        return if plausible { Ok(()) } else { Err(format!("failed to parse duration {schedule}: time: invalid duration {every:?}")) };
    }
    if schedule.starts_with('@') {
        return if MACROS.contains(&schedule) { Ok(()) } else { Err(format!("unrecognized descriptor: {schedule}")) };
    }
    let body = match schedule.split_once(' ') {
        Some((zone, rest)) if zone.starts_with("TZ=") || zone.starts_with("CRON_TZ=") => rest,
        _ => schedule,
    };
    let fields: Vec<&str> = body.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
    for (field, (low, high, words)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            cron_part(part, low, high, words)?;
        }
    }
    Ok(())
}

fn cron_part(part: &str, low: u32, high: u32, words: &[&str]) -> Result<(), String> {
    let number = |text: &str| -> Result<u32, String> {
        if let Some(at) = words.iter().position(|w| w.eq_ignore_ascii_case(text)) {
            return Ok(low + at as u32);
        }
        text.parse().map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
    };
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(number(step)?)),
        None => (part, None),
    };
    if step == Some(0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if range == "*" || range == "?" {
        return Ok(());
    }
    let (first, last) = match range.split_once('-') {
        Some((a, b)) => (number(a)?, number(b)?),
        None => (number(range)?, number(range)?),
    };
    // Sunday has two numbers.
    let high = if words.len() == 7 { high.max(6) } else { high };
    if first < low {
        return Err(format!("beginning of range ({first}) below minimum ({low}): {part}"));
    }
    if last > high {
        return Err(format!("end of range ({last}) above maximum ({high}): {part}"));
    }
    if first > last {
        return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-3,7 1 JAN mon-fri", "@hourly", "@every 1h30m", "0 0 ? * 6"] {
            assert!(cron(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(cron(bad).unwrap_err(), why);
        }
    }

    #[test]
    fn jobs_get_their_selector_and_are_valid() {
        let hooks = &by_kind("batch/v1", "Job").unwrap().hooks;
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}}});
        hooks.default(&mut job);
        hooks.prepare_for_create(&mut job);
        assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert!(hooks.validate_create(&job).is_empty(), "{:?}", hooks.validate_create(&job));
        let old = job.clone();
        job["spec"]["template"]["spec"]["containers"][0]["image"] = "k".into();
        assert!(hooks.validate_update(&job, &old, "")[0].to_string().ends_with("field is immutable"));
        job = old.clone();
        job["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        assert_eq!(
            hooks.validate_create(&job)[0].to_string(),
            "spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\""
        );
    }

    proptest! {
        #[test]
        fn schedules_never_panic(text in "[-@*/?,0-9a-z ]{0,30}") {
            let _ = cron(&text);
        }
    }
}
