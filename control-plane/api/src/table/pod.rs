//! The row of a pod: how many containers are ready, what it is doing, how often it restarted.

use serde_json::Value;

use super::{age, condition, human_duration, or_none};
use crate::value::{list, text};

/// Cells after NAME: READY STATUS RESTARTS AGE, then IP NODE NOMINATED-NODE READINESS-GATES.
pub(crate) fn cells(pod: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, human_duration(now - at)),
        _ => summary.restarts.to_string(),
    };
    let gates = list(&spec["readinessGates"]);
    let met = |gate: &&Value| condition(pod, text(&gate["conditionType"])).is_some_and(|c| c["status"] == "True");
    let gates = if gates.is_empty() { String::new() } else { format!("{}/{}", gates.iter().filter(met).count(), gates.len()) };
    let ip = list(&status["podIPs"]).first().map_or(text(&status["podIP"]), |ip| text(&ip["ip"]));
    vec![
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(&pod["metadata"]["creationTimestamp"], now),
        or_none(ip),
        or_none(text(&spec["nodeName"])),
        or_none(text(&status["nominatedNodeName"])),
        or_none(gates),
    ]
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<i64>,
}

fn finished_at(container: &Value) -> Option<i64> {
    let at = text(&container["lastState"]["terminated"]["finishedAt"]);
    chrono::DateTime::parse_from_rfc3339(at).ok().map(|t| t.timestamp())
}

/// `OOMKilled`, `Signal:9`, `ExitCode:1`
fn why_terminated(terminated: &Value) -> String {
    match (text(&terminated["reason"]), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let phase = text(&status["phase"]);
    let init = list(&spec["initContainers"]);
    let sidecar = |name: &Value| init.iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always");
    let mut s = Summary {
        ready: 0,
        total: list(&spec["containers"]).len() + init.iter().filter(|c| c["restartPolicy"] == "Always").count(),
        reason: if text(&status["reason"]).is_empty() { phase.into() } else { text(&status["reason"]).into() },
        restarts: 0,
        last_restart: None,
    };
    if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        s.reason = "SchedulingGated".into();
    }
    let (mut sidecar_restarts, mut sidecar_last, mut initializing) = (0, None, false);
    for (i, container) in list(&status["initContainerStatuses"]).iter().enumerate() {
        let restarts = container["restartCount"].as_i64().unwrap_or(0);
        s.restarts += restarts;
        s.last_restart = s.last_restart.max(finished_at(container));
        let is_sidecar = sidecar(&container["name"]);
        if is_sidecar {
            sidecar_restarts += restarts;
            sidecar_last = sidecar_last.max(finished_at(container));
        }
        let state = &container["state"];
        let (terminated, waiting) = (&state["terminated"], text(&state["waiting"]["reason"]));
        if terminated["exitCode"] == 0 {
            continue;
        }
        if is_sidecar && container["started"] == true {
            s.ready += usize::from(container["ready"] == true);
            continue;
        }
        s.reason = if terminated.is_object() {
            format!("Init:{}", why_terminated(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", init.len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition(pod, "Initialized").is_some_and(|c| c["status"] == "True") {
        s.restarts = sidecar_restarts;
        s.last_restart = sidecar_last;
        let mut running = false;
        for container in list(&status["containerStatuses"]).iter().rev() {
            s.restarts += container["restartCount"].as_i64().unwrap_or(0);
            s.last_restart = s.last_restart.max(finished_at(container));
            let state = &container["state"];
            let waiting = text(&state["waiting"]["reason"]);
            if !waiting.is_empty() {
                s.reason = waiting.into();
            } else if state["terminated"].is_object() {
                s.reason = why_terminated(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                s.ready += 1;
            }
        }
        if s.reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
            s.reason = if ready { "Running" } else { "NotReady" }.into();
        }
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if status["reason"] == "NodeLost" {
            s.reason = "Unknown".into();
        } else if phase != "Succeeded" && phase != "Failed" {
            s.reason = "Terminating".into();
        }
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(pod: Value) -> (String, String, String) {
        let cells = cells(&pod, 600);
        (text(&cells[0]).into(), text(&cells[1]).into(), text(&cells[2]).into())
    }

    fn with_statuses(statuses: Value) -> Value {
        json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running", "containerStatuses": statuses}})
    }

    #[test]
    fn statuses_are_upstreams() {
        let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(shown(json!({"spec": {"containers": [{}, {}]}, "status": {"phase": "Pending"}})), row("0/2", "Pending", "0"));
        assert_eq!(shown(with_statuses(json!([{"ready": true, "state": {"running": {}}}]))), row("1/1", "Running", "0"));
        let crash = json!([{"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "1970-01-01T00:05:00Z"}}}]);
        assert_eq!(shown(with_statuses(crash)), row("0/1", "CrashLoopBackOff", "3 (5m ago)"));
        let killed = json!([{"state": {"terminated": {"exitCode": 137, "signal": 9}}}]);
        assert_eq!(shown(with_statuses(killed)), row("0/1", "Signal:9", "0"));
        let mut deleting = with_statuses(json!([{"ready": true, "state": {"running": {}}}]));
        deleting["metadata"]["deletionTimestamp"] = "x".into();
        assert_eq!(shown(deleting).1, "Terminating");
        let init = json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}});
        assert_eq!(shown(init), row("0/2", "Init:0/2", "0"));
    }
}
