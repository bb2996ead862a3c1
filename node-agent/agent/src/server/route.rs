//! Paths of the kubelet's API.

use percent_encoding::percent_decode_str;

/// What a path asks for. Names are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Healthz,
    Pods,
    RunningPods,
    StatsSummary,
    Metrics,
    /// A path below `/var/log`.
    NodeLogs(String),
    ContainerLogs {
        namespace: String,
        pod: String,
        container: String,
    },
    Exec(Target),
    Attach(Target),
    Run(Target),
    PortForward(Target),
}

/// `NAMESPACE/POD[/UID]/CONTAINER`, without the container for port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Target {
    pub namespace: String,
    pub pod: String,
    pub uid: Option<String>,
    pub container: Option<String>,
}

/// `None`: no such path.
pub(super) fn parse(path: &str) -> Option<Route> {
    let decode = |segment: &str| percent_decode_str(segment).decode_utf8().ok().map(String::from);
    let segments: Vec<String> = path.trim_start_matches('/').split('/').map(decode).collect::<Option<_>>()?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let target = |rest: &[&str]| {
        let (namespace, pod, uid, container) = match *rest {
            [namespace, pod, container] => (namespace, pod, None, container),
            [namespace, pod, uid, container] => (namespace, pod, Some(uid.to_owned()), container),
            _ => return None,
        };
        Some(Target { namespace: namespace.to_owned(), pod: pod.to_owned(), uid, container: Some(container.to_owned()) })
    };
    Some(match *segments.as_slice() {
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Route::Healthz,
        ["pods"] | ["pods", ""] => Route::Pods,
        ["runningpods"] | ["runningpods", ""] => Route::RunningPods,
        ["stats", "summary"] => Route::StatsSummary,
        ["metrics"] => Route::Metrics,
        ["logs", ref rest @ ..] => Route::NodeLogs(rest.join("/")),
        ["containerLogs", namespace, pod, container] => {
            Route::ContainerLogs { namespace: namespace.into(), pod: pod.into(), container: container.into() }
        }
        ["exec", ref rest @ ..] => Route::Exec(target(rest)?),
        ["attach", ref rest @ ..] => Route::Attach(target(rest)?),
        ["run", ref rest @ ..] => Route::Run(target(rest)?),
        ["portForward", namespace, pod] => Route::PortForward(Target { namespace: namespace.into(), pod: pod.into(), ..Target::default() }),
        ["portForward", namespace, pod, uid] => {
            Route::PortForward(Target { namespace: namespace.into(), pod: pod.into(), uid: Some(uid.into()), container: None })
        }
        _ => return None,
    })
}

impl Route {
    /// The subresources of `nodes`, any of which permits the request (KEP-2862).
    pub fn subresources(&self) -> &'static [&'static str] {
        match self {
            Route::Healthz => &["healthz", "proxy"],
            Route::Pods | Route::RunningPods => &["pods", "proxy"],
            Route::StatsSummary => &["stats"],
            Route::Metrics => &["metrics"],
            Route::NodeLogs(_) => &["log"],
            Route::ContainerLogs { .. } | Route::Exec(_) | Route::Attach(_) | Route::Run(_) | Route::PortForward(_) => &["proxy"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_kubelet_are_known() {
        assert_eq!(parse("/healthz"), Some(Route::Healthz));
        assert_eq!(parse("/runningpods/"), Some(Route::RunningPods));
        assert_eq!(parse("/logs/a/b"), Some(Route::NodeLogs("a/b".into())));
        assert_eq!(parse("/logs/"), Some(Route::NodeLogs(String::new())));
        let logs = Route::ContainerLogs { namespace: "n".into(), pod: "p".into(), container: "c".into() };
        assert_eq!(parse("/containerLogs/n/p/c"), Some(logs));
        let target = Target { namespace: "n".into(), pod: "p".into(), uid: None, container: Some("c".into()) };
        assert_eq!(parse("/exec/n/p/c"), Some(Route::Exec(target.clone())));
        assert_eq!(parse("/attach/n/p/u/c"), Some(Route::Attach(Target { uid: Some("u".into()), ..target.clone() })));
        assert_eq!(parse("/portForward/n/p"), Some(Route::PortForward(Target { container: None, ..target })));
    }

    #[test]
    fn other_paths_are_not() {
        for path in ["/", "/exec/n/p", "/exec", "/containerLogs/n/p", "/portForward/n", "/pods/x", "/exec/n/p/%ff"] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn an_encoded_slash_stays_within_its_segment() {
        let Some(Route::Exec(target)) = parse("/exec/n/p%2Fq/c") else { panic!("not parsed") };
        assert_eq!(target.pod, "p/q");
    }
}
