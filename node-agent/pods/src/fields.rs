//! The downward API: fields of a pod and resources of its containers as text.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::{self, Amount};
use crate::spec;

/// Facts about where a pod runs that its object does not hold yet.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub node_name: String,
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    /// Limits default to it.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The value of `fieldRef.fieldPath`. The error is what kubelet writes into the status.
pub fn field(pod: &Pod, path: &str, place: &Place) -> Result<String, String> {
    let meta = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let list = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(list.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => spec::name(pod).to_owned(),
        "metadata.namespace" => spec::namespace(pod).to_owned(),
        "metadata.uid" => spec::uid(pod).to_owned(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => place.node_name.clone(),
        "spec.serviceAccountName" => spec::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => place.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => place.host_ips.join(","),
        "status.podIP" => place.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => place.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` a line, sorted, values quoted as Go's `%q`.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quote(v))).collect();
    lines.join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`; `own` is the container it stands in.
pub fn resource(pod: &Pod, own: Option<&Container>, selector: &ResourceFieldSelector, place: &Place) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let found = named.and_then(|n| spec::container(pod, n).map(|(_, c)| c.into_owned()));
    let container = match (named, found.as_ref(), own) {
        (None, _, Some(own)) => own,
        (Some(_), Some(found), _) => found,
        (name, ..) => return Err(format!("container {} not found", name.unwrap_or(""))),
    };
    let (list, name) = selector.resource.split_once('.').unwrap_or(("", &selector.resource));
    let resources = container.resources.as_ref();
    let limit = resources.and_then(|r| quantity::get(r.limits.as_ref(), name));
    let amount = match list {
        "limits" => limit.filter(|a| a.0 != 0).or_else(|| quantity::get(Some(&place.allocatable), name)),
        "requests" => resources.and_then(|r| quantity::get(r.requests.as_ref(), name)),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    }
    .unwrap_or_default();
    let divisor = selector.divisor.as_ref().and_then(|d| Amount::parse(&d.0)).filter(|d| d.0 != 0);
    let one = Amount::parse("1").unwrap_or_default();
    Ok(amount.divided_by(divisor.unwrap_or(one)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> (Pod, Place) {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2\"x", "a": "1"}, "annotations": {"k": "v\nw"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "10Mi", "cpu": "250m"}}}]}
        }));
        let allocatable = BTreeMap::from([("memory".to_owned(), Quantity("1Gi".into()))]);
        let place = Place {
            node_name: "node".into(),
            pod_ips: vec!["10.0.0.1".into(), "fd00::1".into()],
            host_ips: vec!["192.0.2.1".into()],
            allocatable,
        };
        (pod.unwrap(), place)
    }

    #[test]
    fn fields() {
        let (pod, place) = sample();
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.uid", "u"),
            ("metadata.labels['a']", "1"),
            ("metadata.labels['zz']", ""),
            ("metadata.labels", "a=\"1\"\nb=\"2\\\"x\""),
            ("metadata.annotations", "k=\"v\\nw\""),
            ("spec.nodeName", "node"),
            ("status.podIP", "10.0.0.1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
            ("status.hostIP", "192.0.2.1"),
            ("spec.serviceAccountName", "sa"),
        ] {
            assert_eq!(field(&pod, path, &place).unwrap(), value, "{path}");
        }
        assert!(field(&pod, "spec.hostname", &place).is_err());
        assert!(field(&pod, "metadata.name['x']", &place).is_err());
    }

    #[test]
    fn resources() {
        let (pod, place) = sample();
        let own = spec::spec(&pod).containers.first();
        let value = |resource: &str, divisor: &str| {
            let selector =
                ResourceFieldSelector { container_name: None, divisor: Some(Quantity(divisor.into())), resource: resource.into() };
            super::resource(&pod, own, &selector, &place)
        };
        assert_eq!(value("limits.cpu", "0").unwrap(), "2");
        assert_eq!(value("limits.cpu", "1m").unwrap(), "1500");
        assert_eq!(value("requests.cpu", "1").unwrap(), "1");
        assert_eq!(value("requests.memory", "1Mi").unwrap(), "10");
        assert_eq!(value("limits.memory", "1Mi").unwrap(), "1024", "an absent limit is the node's allocatable");
        assert!(value("cpu", "1").is_err());
    }
}
