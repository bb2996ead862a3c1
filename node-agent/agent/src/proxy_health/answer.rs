//! Answers, as kube-proxy words them. Pure.

use super::{Endpoints, Report, Service};

/// Status, headers besides the usual, body.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

fn json(healthy: bool, body: String) -> Answer {
    let headers = vec![("content-type", "application/json".to_owned()), ("x-content-type-options", "nosniff".to_owned())];
    Answer { status: if healthy { 200 } else { 503 }, headers, body }
}

/// Whether this node has endpoints of a Service, of the family in which it is asked: whatever path is asked for.
pub fn service(report: &Report, namespace: &str, name: &str, over_v4: bool) -> Answer {
    let found = report.services.iter().flatten().find(|s: &&Service| s.namespace == namespace && s.name == name);
    let Endpoints { v4, v6 } = found.map(|s| s.local_endpoints).unwrap_or_default();
    let local = if over_v4 { v4 } else { v6 };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {}\n}}",
        report.healthy
    );
    let mut answer = json(local != 0 && report.healthy, body);
    answer.headers.push(("x-load-balancing-endpoint-weight", local.to_string()));
    answer
}

/// Whether the node takes part at all (`/healthz`), and whether its proxy works (`/livez`). `reported`: when the agent last
/// said so, which is now while it is connected.
pub fn node(report: &Report, path: &str, now: &str, reported: &str) -> Answer {
    let times = format!("{{\"lastUpdated\": {reported:?},\"currentTime\": {now:?}");
    match path {
        "/healthz" => json(report.healthy && report.eligible, format!("{times}, \"nodeEligible\": {}}}", report.eligible)),
        "/livez" => json(report.healthy, format!("{times}}}")),
        _ => Answer {
            status: 404,
            headers: vec![("content-type", "text/plain; charset=utf-8".to_owned())],
            body: "404 page not found\n".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(v4: usize, healthy: bool) -> Report {
        let service = Service { namespace: "ns".into(), name: "web".into(), port: 31000, local_endpoints: Endpoints { v4, v6: 0 } };
        Report { healthy, eligible: true, services: Some(vec![service]), ..Report::default() }
    }

    #[test]
    fn a_service_is_healthy_where_it_has_endpoints_and_the_proxy_works() {
        let answer = service(&report(2, true), "ns", "web", true);
        assert_eq!(answer.status, 200);
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let want = serde_json::json!({"service": {"namespace": "ns", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body, want);
        assert!(answer.headers.contains(&("x-load-balancing-endpoint-weight", "2".to_owned())));
        assert_eq!(service(&report(0, true), "ns", "web", true).status, 503);
        assert_eq!(service(&report(2, false), "ns", "web", true).status, 503);
        assert_eq!(service(&report(2, true), "ns", "other", true).status, 503);
        assert_eq!(service(&report(2, true), "ns", "web", false).status, 503, "endpoints of the other family serve nobody here");
    }

    #[test]
    fn a_node_that_leaves_is_alive_but_not_healthy() {
        let leaving = Report { eligible: false, ..report(1, true) };
        let of = |report: &Report, path: &str| node(report, path, "now", "then");
        assert_eq!((of(&leaving, "/healthz").status, of(&leaving, "/livez").status), (503, 200));
        assert_eq!(of(&leaving, "/healthz").body, r#"{"lastUpdated": "then","currentTime": "now", "nodeEligible": false}"#);
        assert_eq!(of(&report(1, true), "/healthz").status, 200);
        assert_eq!((of(&report(1, false), "/healthz").status, of(&report(1, false), "/livez").status), (503, 503));
        assert_eq!(of(&leaving, "/").status, 404);
    }
}
