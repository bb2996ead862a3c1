//! Services. Addresses and node ports are the allocator's; here is what a client may ask for.

use serde_json::{Value, json};

use super::{
    check::{Errors, at, at_index, cidr, in_range, ip, maybe_one_of, one_of, port, port_or_name, syntax},
    names,
};
use crate::{
    Document,
    meta::same,
    status::FieldError,
    value::{entries, has, list, strings, text},
};

pub fn validate(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    let type_ = text(&spec["type"]);
    let headless = strings(&spec["clusterIPs"]).chain(spec["clusterIP"].as_str()).any(|ip| ip == "None");
    if list(&spec["ports"]).is_empty() && !headless && type_ != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match type_ {
        "LoadBalancer" if headless => {
            let detail = "may not be set to 'None' for LoadBalancer services";
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", detail));
        }
        "NodePort" if headless => {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", "may not be set to 'None' for NodePort services"));
        }
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies"] {
                if !list(&spec[key]).is_empty() {
                    errors.push(FieldError::forbidden(at("spec", key), "may not be set for ExternalName services"));
                }
            }
            if has(spec, "ipFamilyPolicy") {
                errors.push(FieldError::forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services"));
            }
            match text(&spec["externalName"]).trim_end_matches('.') {
                "" => errors.push(FieldError::required("spec.externalName", "")),
                name => syntax(name, "spec.externalName", names::dns1123_subdomain, errors),
            }
        }
        _ => {}
    }
    ports(spec, type_, errors);
    for (key, value) in entries(&spec["selector"]) {
        syntax(key, "spec.selector", names::qualified_name, errors);
        syntax(text(value), "spec.selector", names::label_value, errors);
    }
    one_of(&spec["sessionAffinity"], "spec.sessionAffinity", &["ClientIP", "None"], errors);
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if spec["sessionAffinity"] == "ClientIP"
        && let Some(seconds) = timeout.as_i64().filter(|s| !(1..=86_400).contains(s))
    {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.push(FieldError::invalid(path, seconds, "must be greater than 0 and less than 86400"));
    }
    one_of(&spec["type"], "spec.type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    addresses(spec, errors);
    external(spec, type_, errors);
}

fn ports(spec: &Value, type_: &str, errors: &mut Errors) {
    let all = list(&spec["ports"]);
    let (mut seen_names, mut seen_ports, mut seen_node_ports) = (Vec::new(), Vec::new(), Vec::new());
    for (i, p) in all.iter().enumerate() {
        let path = at_index("spec", "ports", i);
        let name = text(&p["name"]);
        if name.is_empty() {
            if all.len() > 1 {
                errors.push(FieldError::required(at(&path, "name"), ""));
            }
        } else {
            syntax(name, &at(&path, "name"), names::dns1123_label, errors);
            if seen_names.contains(&name) {
                errors.push(FieldError::duplicate(at(&path, "name"), name));
            }
            seen_names.push(name);
        }
        port(&p["port"], &at(&path, "port"), errors);
        one_of(&p["protocol"], &at(&path, "protocol"), &["SCTP", "TCP", "UDP"], errors);
        if type_ != "ExternalName" || has(p, "targetPort") {
            port_or_name(&p["targetPort"], &at(&path, "targetPort"), errors);
        }
        if has(p, "appProtocol") {
            syntax(text(&p["appProtocol"]), &at(&path, "appProtocol"), names::qualified_name, errors);
        }
        let key = (p["protocol"].clone(), p["port"].clone());
        if seen_ports.contains(&key) {
            errors.push(FieldError::duplicate(path.as_str(), json!({"protocol": p["protocol"], "port": p["port"]})));
        }
        seen_ports.push(key);
        let Some(node) = p["nodePort"].as_i64().filter(|n| *n != 0) else { continue };
        in_range(&p["nodePort"], &at(&path, "nodePort"), 1, 65_535, errors);
        match type_ {
            "ClusterIP" => errors.push(FieldError::forbidden(at(&path, "nodePort"), "may not be used when `type` is 'ClusterIP'")),
            "ExternalName" => {
                errors.push(FieldError::forbidden(at(&path, "nodePort"), "may not be used when `type` is 'ExternalName'"));
            }
            _ => {}
        }
        let key = (p["protocol"].clone(), node);
        if seen_node_ports.contains(&key) {
            errors.push(FieldError::duplicate(at(&path, "nodePort"), node));
        }
        seen_node_ports.push(key);
    }
}

fn addresses(spec: &Value, errors: &mut Errors) {
    let all = list(&spec["clusterIPs"]);
    if spec["type"] == "ExternalName" {
        return;
    }
    let single = text(&spec["clusterIP"]);
    if let Some(first) = all.first()
        && !single.is_empty()
        && text(first) != single
    {
        errors.push(FieldError::invalid("spec.clusterIPs", spec["clusterIPs"].clone(), "first value must match `clusterIP`"));
    }
    for (i, address) in strings(&spec["clusterIPs"]).enumerate() {
        if address != "None" {
            ip(address, &at_index("spec", "clusterIPs", i), errors);
        } else if all.len() > 1 {
            let detail = "'None' must be the first and only value";
            errors.push(FieldError::invalid(at_index("spec", "clusterIPs", i), address, detail));
        }
    }
    if all.is_empty() && !single.is_empty() && single != "None" {
        ip(single, "spec.clusterIPs[0]", errors);
    }
    for (i, family) in list(&spec["ipFamilies"]).iter().enumerate() {
        one_of(family, &at_index("spec", "ipFamilies", i), &["IPv4", "IPv6"], errors);
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    maybe_one_of(&spec["ipFamilyPolicy"], "spec.ipFamilyPolicy", &policies, errors);
}

fn external(spec: &Value, type_: &str, errors: &mut Errors) {
    for (i, address) in strings(&spec["externalIPs"]).enumerate() {
        let path = at_index("spec", "externalIPs", i);
        ip(address, &path, errors);
        if let Ok(parsed) = address.parse::<std::net::IpAddr>() {
            let reason = if parsed.is_unspecified() {
                "may not be unspecified (0.0.0.0 or ::)"
            } else if parsed.is_loopback() {
                "may not be in the loopback range (127.0.0.0/8, ::1/128)"
            } else if parsed.is_multicast() {
                "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
            } else {
                continue;
            };
            errors.push(FieldError::invalid(path, address, reason));
        }
    }
    let policy = &spec["externalTrafficPolicy"];
    let reachable = matches!(type_, "NodePort" | "LoadBalancer") || !list(&spec["externalIPs"]).is_empty();
    if !text(policy).is_empty() && !reachable {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy.clone(), detail));
    } else {
        maybe_one_of(policy, "spec.externalTrafficPolicy", &["Cluster", "Local"], errors);
    }
    maybe_one_of(&spec["internalTrafficPolicy"], "spec.internalTrafficPolicy", &["Cluster", "Local"], errors);
    let needs_check = type_ == "LoadBalancer" && policy == "Local";
    if spec["healthCheckNodePort"].as_i64().is_some_and(|p| p != 0) && !needs_check {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", spec["healthCheckNodePort"].clone(), detail));
    }
    let ranges = list(&spec["loadBalancerSourceRanges"]);
    if !ranges.is_empty() && type_ != "LoadBalancer" {
        let detail = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.loadBalancerSourceRanges", detail));
    }
    for (i, range) in ranges.iter().enumerate() {
        cidr(text(range).trim(), &at_index("spec", "loadBalancerSourceRanges", i), errors);
    }
    for (key, needs) in [("allocateLoadBalancerNodePorts", "LoadBalancer"), ("loadBalancerClass", "LoadBalancer")] {
        if has(spec, key) && type_ != needs {
            errors.push(FieldError::forbidden(at("spec", key), format!("may only be used when `type` is '{needs}'")));
        }
    }
}

pub fn validate_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    if !sub.is_empty() {
        return;
    }
    let (after, before) = (&new["spec"], &old["spec"]);
    if after["type"] != "ExternalName" && before["type"] != "ExternalName" {
        let had = strings(&before["clusterIPs"]).next().or(before["clusterIP"].as_str()).unwrap_or_default();
        let has = strings(&after["clusterIPs"]).next().or(after["clusterIP"].as_str()).unwrap_or_default();
        if !had.is_empty() && had != has {
            let value = if list(&after["clusterIPs"]).is_empty() { json!([has]) } else { after["clusterIPs"].clone() };
            errors.push(FieldError::invalid("spec.clusterIPs[0]", value, "may not change once set"));
        }
    }
    if before["type"] == "LoadBalancer"
        && after["type"] == "LoadBalancer"
        && !same(&after["loadBalancerClass"], &before["loadBalancerClass"])
    {
        errors.push(FieldError::invalid("spec.loadBalancerClass", after["loadBalancerClass"].clone(), "may not change once set"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;

    fn messages(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut doc = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
        change(&mut doc["spec"]);
        let hooks = &by_kind("v1", "Service").unwrap().hooks;
        hooks.default(&mut doc);
        hooks.validate_create(&doc).iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(messages(|_| {}), Vec::<String>::new());
        assert_eq!(messages(|s| *s = json!({"clusterIP": "None"})), Vec::<String>::new());
        // Nobody translates to it, but v1 has always taken it.
        let headless = json!({"clusterIP": "None", "ports": [{"name": "a", "port": 80, "targetPort": 8080}, {"name": "b", "port": 81, "targetPort": "b"}]});
        assert_eq!(messages(|s| *s = headless), Vec::<String>::new());
        assert_eq!(messages(|s| *s = json!({"type": "ExternalName", "externalName": "a.b"})), Vec::<String>::new());
        let case = |change: fn(&mut Value), want: &str| assert_eq!(messages(change), [want]);
        case(|s| *s = json!({}), "spec.ports: Required value");
        case(
            |s| s["type"] = "x".into(),
            "spec.type: Unsupported value: \"x\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        );
        case(|s| s["ports"][0]["nodePort"] = 30000.into(), "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'");
        case(
            |s| s["externalTrafficPolicy"] = "Local".into(),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        );
        case(
            |s| s["ports"] = json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]),
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
        );
    }

    #[test]
    fn addresses_stay() {
        let hooks = &by_kind("v1", "Service").unwrap().hooks;
        let doc = |ip: &str| json!({"spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None", "ports": [{"port": 1, "targetPort": 1, "protocol": "TCP"}]}});
        let errors = hooks.validate_update(&doc("10.0.0.2"), &doc("10.0.0.1"), "");
        assert_eq!(errors[0].to_string(), "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set");
    }
}
