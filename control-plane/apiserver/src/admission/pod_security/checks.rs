//! The checks of the Pod Security Standards, latest version, in the order upstream names them.

use serde_json::Value;
use xebec_api::value::{entries, list, text};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(text: &str) -> Option<Level> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }
}

/// What the pod (or template) breaks, as `reason (detail)`.
pub fn violations(level: Level, pod: &Value) -> Vec<String> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let spec = &pod["spec"];
    let restricted = level == Level::Restricted;
    let mut found: Vec<String> = Vec::new();
    let mut add = |reason: &str, details: Vec<String>| {
        if !details.is_empty() {
            found.push(format!("{reason} ({})", details.join("; ")));
        }
    };
    if restricted {
        let bad = names(spec, |c| c["securityContext"]["allowPrivilegeEscalation"] != false);
        add("allowPrivilegeEscalation != false", must(&bad, "must set securityContext.allowPrivilegeEscalation=false"));
    }
    add("forbidden AppArmor profile", app_armor(pod));
    if restricted {
        add("unrestricted capabilities", capabilities_restricted(spec));
    } else {
        add("non-default capabilities", capabilities_baseline(spec));
    }
    let host: Vec<String> =
        ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|f| spec[**f] == true).map(|f| format!("{f}=true")).collect();
    add("host namespaces", if host.is_empty() { host } else { vec![host.join(", ")] });
    if !restricted {
        let bad = volume_names(spec, |v| v["hostPath"].is_object());
        add("hostPath volumes", bad.map(|names| vec![names]).unwrap_or_default());
    }
    add("hostPort", host_ports(spec));
    add("probe or lifecycle host", must(&names(spec, uses_other_host), "must not set probe or lifecycle host"));
    let bad = names(spec, |c| c["securityContext"]["privileged"] == true);
    add("privileged", must(&bad, "must not set securityContext.privileged=true"));
    let bad = names(spec, |c| !["", "Default"].contains(&text(&c["securityContext"]["procMount"])));
    add("procMount", must(&bad, "must not set securityContext.procMount"));
    if restricted {
        add("restricted volume types", restricted_volumes(spec));
        add("runAsNonRoot != true", run_as_non_root(spec));
        add("runAsUser=0", roots(spec));
    }
    add("seLinuxOptions", se_linux(spec));
    add("seccompProfile", if restricted { seccomp_restricted(spec) } else { seccomp_baseline(spec) });
    add("forbidden sysctls", sysctls(spec));
    let windows = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let mut details =
        must(&names(spec, |c| windows(&c["securityContext"])), "must not set securityContext.windowsOptions.hostProcess=true");
    if windows(&spec["securityContext"]) {
        details.insert(0, "pod must not set securityContext.windowsOptions.hostProcess=true".into());
    }
    add("hostProcess", details);
    found
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| list(&spec[kind]))
}

fn names(spec: &Value, bad: impl Fn(&Value) -> bool) -> Vec<String> {
    containers(spec).filter(|c| bad(c)).map(|c| text(&c["name"]).to_string()).collect()
}

/// `container "a"`, `containers "a", "b"`.
fn subject(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
    format!("container{} {}", if names.len() == 1 { "" } else { "s" }, quoted.join(", "))
}

fn must(names: &[String], what: &str) -> Vec<String> {
    if names.is_empty() { Vec::new() } else { vec![format!("{} {what}", subject(names))] }
}

fn volume_names(spec: &Value, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let names: Vec<String> = list(&spec["volumes"]).iter().filter(|v| bad(v)).map(|v| format!("{:?}", text(&v["name"]))).collect();
    (!names.is_empty()).then(|| format!("volume{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", ")))
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    list(&container["securityContext"]["capabilities"]["add"]).iter().map(text)
}

fn not_included(spec: &Value, allowed: &[&str]) -> Vec<String> {
    let bad = names(spec, |c| added(c).any(|cap| !allowed.contains(&cap)));
    let mut caps: Vec<&str> = containers(spec).flat_map(added).filter(|cap| !allowed.contains(cap)).collect();
    caps.sort_unstable();
    caps.dedup();
    let caps: Vec<String> = caps.iter().map(|c| format!("{c:?}")).collect();
    must(&bad, &format!("must not include {} in securityContext.capabilities.add", caps.join(", ")))
}

fn capabilities_baseline(spec: &Value) -> Vec<String> {
    not_included(
        spec,
        &[
            "AUDIT_WRITE",
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "MKNOD",
            "NET_BIND_SERVICE",
            "SETFCAP",
            "SETGID",
            "SETPCAP",
            "SETUID",
            "SYS_CHROOT",
        ],
    )
}

fn capabilities_restricted(spec: &Value) -> Vec<String> {
    let keeps = names(spec, |c| !list(&c["securityContext"]["capabilities"]["drop"]).iter().any(|d| d == "ALL"));
    let mut details = must(&keeps, "must set securityContext.capabilities.drop=[\"ALL\"]");
    details.extend(not_included(spec, &["NET_BIND_SERVICE"]));
    details
}

fn app_armor(pod: &Value) -> Vec<String> {
    let spec = &pod["spec"];
    let unconfined = |context: &Value| context["appArmorProfile"]["type"] == "Unconfined";
    let mut details = Vec::new();
    if unconfined(&spec["securityContext"]) {
        details.push("pod must not set AppArmor profile type to \"Unconfined\"".to_string());
    }
    details.extend(must(&names(spec, |c| unconfined(&c["securityContext"])), "must not set AppArmor profile type to \"Unconfined\""));
    for (key, value) in entries(&pod["metadata"]["annotations"]) {
        let profile = text(value);
        let fine = profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/");
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !fine {
            details.push(format!("annotation {key:?} must not be {profile:?}"));
        }
    }
    details
}

fn host_ports(spec: &Value) -> Vec<String> {
    let ports = |c: &Value| -> Vec<u64> { list(&c["ports"]).iter().filter_map(|p| p["hostPort"].as_u64()).filter(|p| *p != 0).collect() };
    let bad = names(spec, |c| !ports(c).is_empty());
    let mut all: Vec<u64> = containers(spec).flat_map(ports).collect();
    all.sort_unstable();
    all.dedup();
    let list: Vec<String> = all.iter().map(u64::to_string).collect();
    let verb = if bad.len() == 1 { "uses" } else { "use" };
    must(&bad, &format!("{verb} hostPort{} {}", if list.len() == 1 { "" } else { "s" }, list.join(", ")))
}

fn uses_other_host(container: &Value) -> bool {
    let handlers = ["livenessProbe", "readinessProbe", "startupProbe"].iter().map(|p| &container[*p]);
    let hooks = ["postStart", "preStop"].iter().map(|h| &container["lifecycle"][*h]);
    handlers.chain(hooks).any(|h| ["httpGet", "tcpSocket"].iter().any(|kind| !["", "127.0.0.1", "::1"].contains(&text(&h[*kind]["host"]))))
}

fn restricted_volumes(spec: &Value) -> Vec<String> {
    const ALLOWED: [&str; 9] =
        ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "image"];
    let kind = |v: &Value| entries(v).map(|(k, _)| k.to_string()).find(|k| k != "name");
    let bad: Vec<(String, String)> = list(&spec["volumes"])
        .iter()
        .filter_map(|v| Some((text(&v["name"]).to_string(), kind(v)?)))
        .filter(|(_, kind)| !ALLOWED.contains(&kind.as_str()))
        .collect();
    if bad.is_empty() {
        return Vec::new();
    }
    let mut kinds: Vec<String> = bad.iter().map(|(_, kind)| format!("{kind:?}")).collect();
    kinds.sort();
    kinds.dedup();
    let names: Vec<String> = bad.iter().map(|(name, _)| format!("{name:?}")).collect();
    let (verb, plural) = if names.len() == 1 { ("uses", "") } else { ("use", "s") };
    let types = if kinds.len() == 1 { "" } else { "s" };
    vec![format!("volume{plural} {} {verb} restricted volume type{types} {}", names.join(", "), kinds.join(", "))]
}

fn run_as_non_root(spec: &Value) -> Vec<String> {
    let pod = &spec["securityContext"]["runAsNonRoot"];
    let explicit = names(spec, |c| c["securityContext"]["runAsNonRoot"] == false);
    let implicit = names(spec, |c| c["securityContext"]["runAsNonRoot"].is_null());
    let mut details = Vec::new();
    if *pod == false {
        details.push("pod must not set securityContext.runAsNonRoot=false".to_string());
    }
    details.extend(must(&explicit, "must not set securityContext.runAsNonRoot=false"));
    if !implicit.is_empty() && pod.is_null() {
        details.push(format!("pod or {} must set securityContext.runAsNonRoot=true", subject(&implicit)));
    }
    details
}

fn roots(spec: &Value) -> Vec<String> {
    let mut details = Vec::new();
    if spec["securityContext"]["runAsUser"] == 0 {
        details.push("pod must not set runAsUser=0".to_string());
    }
    details.extend(must(&names(spec, |c| c["securityContext"]["runAsUser"] == 0), "must not set runAsUser=0"));
    details
}

fn se_linux(spec: &Value) -> Vec<String> {
    const TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let bad = |context: &Value| {
        let options = &context["seLinuxOptions"];
        !TYPES.contains(&text(&options["type"])) || !text(&options["user"]).is_empty() || !text(&options["role"]).is_empty()
    };
    let mut details = Vec::new();
    if bad(&spec["securityContext"]) {
        details.push("pod set forbidden securityContext.seLinuxOptions".to_string());
    }
    details.extend(must(&names(spec, |c| bad(&c["securityContext"])), "set forbidden securityContext.seLinuxOptions"));
    details
}

fn seccomp_baseline(spec: &Value) -> Vec<String> {
    let bad = |context: &Value| context["seccompProfile"]["type"] == "Unconfined";
    let mut details = Vec::new();
    if bad(&spec["securityContext"]) {
        details.push("pod must not set securityContext.seccompProfile.type to \"Unconfined\"".to_string());
    }
    details
        .extend(must(&names(spec, |c| bad(&c["securityContext"])), "must not set securityContext.seccompProfile.type to \"Unconfined\""));
    details
}

fn seccomp_restricted(spec: &Value) -> Vec<String> {
    let profile = |context: &Value| text(&context["seccompProfile"]["type"]).to_string();
    let good = |profile: &str| ["RuntimeDefault", "Localhost"].contains(&profile);
    let pod = profile(&spec["securityContext"]);
    let mut details = Vec::new();
    if !pod.is_empty() && !good(&pod) {
        details.push(format!("pod must not set securityContext.seccompProfile.type to {pod:?}"));
    }
    let explicit = names(spec, |c| {
        let own = profile(&c["securityContext"]);
        !own.is_empty() && !good(&own)
    });
    details.extend(must(&explicit, "must not set securityContext.seccompProfile.type to \"Unconfined\""));
    let implicit = names(spec, |c| profile(&c["securityContext"]).is_empty());
    if pod.is_empty() && !implicit.is_empty() {
        details.push(format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            subject(&implicit)
        ));
    }
    details
}

fn sysctls(spec: &Value) -> Vec<String> {
    const SAFE: [&str; 10] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_syncookies",
    ];
    const SAFE_TOO: [&str; 2] = ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"];
    let names = list(&spec["securityContext"]["sysctls"]).iter().map(|s| text(&s["name"]));
    let bad: Vec<&str> = names.filter(|n| !SAFE.contains(n) && !SAFE_TOO.contains(n)).collect();
    if bad.is_empty() { Vec::new() } else { vec![bad.join(", ")] }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reasons(level: Level, spec: Value) -> Vec<String> {
        violations(level, &json!({"spec": spec})).into_iter().map(|v| v.split(" (").next().unwrap().to_string()).collect()
    }

    #[test]
    fn baseline_forbids_what_escapes() {
        let one = |field: &str, value: Value| {
            let mut container = json!({"name": "c"});
            container[field] = value;
            json!({"containers": [container]})
        };
        for (spec, reason) in [
            (json!({"hostPID": true}), "host namespaces"),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes"),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), "forbidden sysctls"),
            (json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), "seccompProfile"),
            (one("ports", json!([{"hostPort": 80}])), "hostPort"),
            (one("securityContext", json!({"privileged": true})), "privileged"),
            (one("securityContext", json!({"capabilities": {"add": ["SYS_ADMIN"]}})), "non-default capabilities"),
            (one("securityContext", json!({"procMount": "Unmasked"})), "procMount"),
            (one("securityContext", json!({"seLinuxOptions": {"user": "x"}})), "seLinuxOptions"),
            (one("livenessProbe", json!({"httpGet": {"host": "10.0.0.1"}})), "probe or lifecycle host"),
            (one("securityContext", json!({"appArmorProfile": {"type": "Unconfined"}})), "forbidden AppArmor profile"),
        ] {
            assert_eq!(reasons(Level::Baseline, spec.clone()), [reason], "{spec}");
            assert!(reasons(Level::Privileged, spec).is_empty());
        }
        assert!(
            reasons(Level::Baseline, json!({"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["CHOWN"]}}}]}))
                .is_empty()
        );
    }

    #[test]
    fn restricted_asks_for_more() {
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        assert!(reasons(Level::Restricted, good.clone()).is_empty());
        let mut bad = good.clone();
        bad["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}]);
        assert_eq!(
            violations(Level::Restricted, &json!({"spec": bad})),
            ["restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")"]
        );
        let mut root = good.clone();
        root["containers"][0]["securityContext"]["runAsUser"] = 0.into();
        assert_eq!(reasons(Level::Restricted, root), ["runAsUser=0"]);
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert!(violations(Level::Restricted, &json!({"spec": two}))[0].contains("containers \"a\", \"b\" must set"));
    }
}
