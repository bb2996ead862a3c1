//! A container's environment: envFrom, env and service links.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::expand::expand;
use crate::fields::{self, Place};
use crate::spec;

/// ConfigMaps and Secrets of the pod's namespace by name; `None` means that the API has none.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: HashMap<String, Option<ConfigMap>>,
    pub secrets: HashMap<String, Option<Secret>>,
}

/// Names of the ConfigMaps and Secrets a container's environment refers to.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let mut config_maps = Vec::new();
    let mut secrets = Vec::new();
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    for list in [&mut config_maps, &mut secrets] {
        list.sort();
        list.dedup();
    }
    (config_maps, secrets)
}

/// The environment in the order the container gets it. Env wins over envFrom, both win over service
/// links. The error is the message of `CreateContainerConfigError`.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    services: &BTreeMap<String, String>,
    place: &Place,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Ordered::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        if let Some(reference) = &from.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(map) = config_map(sources, &reference.name, optional)? {
                for (key, value) in map.data.iter().flatten() {
                    env.set(format!("{prefix}{key}"), value.clone());
                }
            }
        }
        if let Some(reference) = &from.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(secret) = secret(sources, &reference.name, optional)? {
                for (key, value) in secret.data.iter().flatten() {
                    env.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                }
            }
        }
    }
    for var in container.env.iter().flatten() {
        let literal = var.value.as_deref().unwrap_or("");
        let value = match (&var.value_from, literal) {
            (None, literal) => Some(expand(literal, |name| env.get(name).or_else(|| services.get(name).cloned())).0),
            (Some(source), "") => from_source(pod, container, source, sources, place)?,
            (Some(_), literal) => Some(literal.to_owned()),
        };
        if let Some(value) = value {
            env.set(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        if env.get(name).is_none() {
            env.set(name.clone(), value.clone());
        }
    }
    Ok(env.list)
}

/// `None` when an optional key is absent: the variable is then not set at all.
fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    place: &Place,
) -> Result<Option<String>, String> {
    let namespace = spec::namespace(pod);
    if let Some(reference) = &source.field_ref {
        return fields::field(pod, &reference.field_path, place).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields::resource(pod, Some(container), selector, place).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(map) = config_map(sources, &reference.name, optional)? else { return Ok(None) };
        return match map.data.as_ref().and_then(|d| d.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", reference.key, reference.name)),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(secret) = secret(sources, &reference.name, optional)? else { return Ok(None) };
        return match secret.data.as_ref().and_then(|d| d.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name)),
        };
    }
    Err("env valueFrom names no source this node supports".into())
}

fn config_map<'a>(sources: &'a Sources, name: &str, optional: bool) -> Result<Option<&'a ConfigMap>, String> {
    match sources.config_maps.get(name).and_then(Option::as_ref) {
        Some(map) => Ok(Some(map)),
        None if optional => Ok(None),
        None => Err(format!("configmap \"{name}\" not found")),
    }
}

fn secret<'a>(sources: &'a Sources, name: &str, optional: bool) -> Result<Option<&'a Secret>, String> {
    match sources.secrets.get(name).and_then(Option::as_ref) {
        Some(secret) => Ok(Some(secret)),
        None if optional => Ok(None),
        None => Err(format!("secret \"{name}\" not found")),
    }
}

/// A map that remembers the order of first insertion.
#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(at) => self.list[*at].1 = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
    fn get(&self, name: &str) -> Option<String> {
        self.index.get(name).map(|at| self.list[*at].1.clone())
    }
}

/// Service variables for a pod: always those of `default/kubernetes`, with `enableServiceLinks`
/// those of every Service of its namespace that has a cluster IP.
pub fn service_variables<'a>(pod: &Pod, services: impl Iterator<Item = &'a Service>) -> BTreeMap<String, String> {
    let namespace = spec::namespace(pod);
    let links = spec::spec(pod).enable_service_links.unwrap_or(true);
    let mut out = BTreeMap::new();
    let mut own = Vec::new();
    for service in services {
        let ObjectMeta { name: Some(name), namespace: Some(ns), .. } = &service.metadata else { continue };
        if links && ns == namespace {
            own.push(service);
        } else if ns == "default" && name == "kubernetes" {
            add_service(&mut out, service);
        }
    }
    // A Service called kubernetes in the pod's own namespace wins over the cluster's.
    for service in own {
        add_service(&mut out, service);
    }
    out
}

fn add_service(out: &mut BTreeMap<String, String>, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let prefix = env_name(service.metadata.name.as_deref().unwrap_or(""));
    let mut set = |name: String, value: String| out.insert(name, value);
    set(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            set(format!("{prefix}_SERVICE_PORT_{}", env_name(name)), port.port.to_string());
        }
    }
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_ascii_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        if index == 0 {
            set(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
        set(format!("{port_prefix}_PROTO"), lower);
        set(format!("{port_prefix}_PORT"), port.port.to_string());
        set(format!("{port_prefix}_ADDR"), ip.to_owned());
        set(port_prefix, url);
    }
}

fn env_name(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}})).unwrap()
    }

    fn sources() -> Sources {
        let map = serde_json::from_value(json!({"data": {"k": "v", "A": "from-map"}})).unwrap();
        let secret = serde_json::from_value(json!({"data": {"s": "c2VjcmV0"}})).unwrap();
        Sources {
            config_maps: HashMap::from([("m".into(), Some(map)), ("gone".into(), None)]),
            secrets: HashMap::from([("s".into(), Some(secret))]),
        }
    }

    fn build(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod = pod(container);
        let services = BTreeMap::from([("SVC_SERVICE_HOST".to_owned(), "10.0.0.9".to_owned())]);
        environment(&pod, &spec::spec(&pod).containers[0], &sources(), &services, &Place::default())
    }

    #[test]
    fn order_override_and_expansion() {
        let env = build(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"configMapRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(P_k)$(SVC_SERVICE_HOST)$(NONE)"},
                {"name": "P_k", "value": "over"}, {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "s"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "zz", "optional": true}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}))
        .unwrap();
        let expected = [
            ("P_A", "from-map"),
            ("P_k", "over"),
            ("A", "1"),
            ("B", "1v10.0.0.9$(NONE)"),
            ("S", "secret"),
            ("N", "p"),
            ("SVC_SERVICE_HOST", "10.0.0.9"),
        ];
        assert_eq!(env, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn what_is_missing_is_said_as_upstream_says_it() {
        let missing = |from: serde_json::Value| build(json!({"name": "c", "env": [{"name": "X", "valueFrom": from}]})).unwrap_err();
        assert_eq!(missing(json!({"configMapKeyRef": {"name": "gone", "key": "k"}})), "configmap \"gone\" not found");
        assert_eq!(missing(json!({"configMapKeyRef": {"name": "m", "key": "zz"}})), "couldn't find key zz in ConfigMap n/m");
        assert_eq!(missing(json!({"secretKeyRef": {"name": "s", "key": "zz"}})), "couldn't find key zz in Secret n/s");
        assert_eq!(build(json!({"name": "c", "envFrom": [{"secretRef": {"name": "q"}}]})).unwrap_err(), "secret \"q\" not found");
    }

    #[test]
    fn service_links() {
        let service = |ns: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": ns}, "spec": {"clusterIP": ip,
                "ports": [{"name": "http-x", "port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}))
            .unwrap()
        };
        let all = [
            service("default", "kubernetes", "10.96.0.1"),
            service("n", "my-svc", "10.96.0.5"),
            service("n", "headless", "None"),
            service("other", "far", "10.96.0.7"),
        ];
        let vars = service_variables(&pod(json!({"name": "c"})), all.iter());
        assert_eq!(vars["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert_eq!(vars["MY_SVC_SERVICE_PORT_HTTP_X"], "80");
        assert_eq!(vars["MY_SVC_PORT"], "tcp://10.96.0.5:80");
        assert_eq!(vars["MY_SVC_PORT_53_UDP"], "udp://10.96.0.5:53");
        assert!(!vars.keys().any(|k| k.starts_with("FAR") || k.starts_with("HEADLESS")));
        let mut quiet = pod(json!({"name": "c"}));
        quiet.spec.as_mut().unwrap().enable_service_links = Some(false);
        let vars = service_variables(&quiet, all.iter());
        assert!(vars.contains_key("KUBERNETES_SERVICE_HOST") && !vars.contains_key("MY_SVC_PORT"));
    }
}
