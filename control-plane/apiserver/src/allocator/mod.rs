//! Cluster addresses and node ports of Services.
//!
//! What is taken is rebuilt from the live Services at start. A write takes what it needs before it goes to the
//! store, and gives it back when the store refuses; what it no longer needs is given back after the commit.

mod ip;
mod plan;
mod port;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::Value;
use xebec_api::{
    Document,
    resource::Resource,
    status::{self, ApiError, FieldError},
};

use crate::extension::{Allocation, Allocator, Change, Operation};
use ip::IpRange;
use plan::Held;
use port::PortRange;

/// The allocator of one server.
pub struct ServiceAllocator {
    state: Arc<Mutex<State>>,
}

struct State {
    /// The primary family first.
    ranges: Vec<IpRange>,
    ports: PortRange,
}

impl ServiceAllocator {
    /// `services` are all Services that exist.
    pub fn new(service_cidrs: &[IpNet], node_ports: (u16, u16), services: &[Document]) -> ServiceAllocator {
        let ranges = service_cidrs.iter().map(|net| IpRange::new(*net)).collect();
        let mut state = State { ranges, ports: PortRange::new(node_ports.0, node_ports.1) };
        for service in services {
            let name = format!("{}/{}", xebec_api::meta::namespace(service), xebec_api::meta::name(service));
            let held = Held::of(service);
            for ip in &held.ips {
                if let Err(error) = state.take_ip(*ip) {
                    tracing::warn!(service = name, %ip, "cluster address of a Service: {error}; give it another one");
                }
            }
            for port in &held.ports {
                if let Err(error) = state.ports.take(*port) {
                    tracing::warn!(service = name, port, "node port of a Service: {error}; give it another one");
                }
            }
        }
        ServiceAllocator { state: Arc::new(Mutex::new(state)) }
    }
}

impl State {
    fn range(&mut self, ipv4: bool) -> Option<&mut IpRange> {
        self.ranges.iter_mut().find(|range| range.is_ipv4() == ipv4)
    }

    fn take_ip(&mut self, ip: IpAddr) -> Result<(), String> {
        match self.range(ip.is_ipv4()) {
            Some(range) => range.take(ip).map_err(|e| e.to_string()),
            None => Err("its family has no range".into()),
        }
    }

    fn release(&mut self, held: &Held) {
        for ip in &held.ips {
            if let Some(range) = self.range(ip.is_ipv4()) {
                range.release(*ip);
            }
        }
        for port in &held.ports {
            self.ports.release(*port);
        }
    }

    /// Fills the Service; returns what was newly taken. On failure nothing stays taken.
    fn fill(&mut self, resource: &Resource, service: &mut Document, before: &Held) -> Result<Held, ApiError> {
        let mut taken = Held::default();
        match self.fill_ips(resource, service, before, &mut taken).and_then(|()| self.fill_ports(resource, service, before, &mut taken)) {
            Ok(()) => Ok(taken),
            Err(error) => {
                self.release(&taken);
                Err(error)
            }
        }
    }

    fn fill_ips(&mut self, resource: &Resource, service: &mut Document, before: &Held, taken: &mut Held) -> Result<(), ApiError> {
        if !plan::needs_cluster_ip(service) {
            return Ok(());
        }
        let name = xebec_api::meta::name(service).to_string();
        let families = plan::families(service);
        let mut ips: Vec<String> = plan::cluster_ips(service);
        let asked = Value::from(ips.clone());
        let fail = |text: String| status::invalid(resource, &name, &[FieldError::invalid("spec.clusterIPs", asked.clone(), text)]);
        for (i, family) in families.iter().enumerate() {
            let Some(range) = self.range(family == "IPv4") else { continue };
            match ips.get(i).filter(|ip| !ip.is_empty()) {
                Some(text) => {
                    let ip: IpAddr = text.parse().map_err(|_| fail("must be a valid IP address".to_string()))?;
                    if before.ips.contains(&ip) {
                        continue;
                    }
                    range.take(ip).map_err(|e| fail(format!("failed to allocate IP {ip}: {e}")))?;
                    taken.ips.push(ip);
                }
                None => {
                    let ip =
                        range.take_any(rand::random()).map_err(|e| status::internal(&format!("failed to allocate a serviceIP: {e}")))?;
                    taken.ips.push(ip);
                    ips.truncate(i);
                    ips.push(ip.to_string());
                }
            }
        }
        if let Some(first) = ips.first() {
            service["spec"]["clusterIP"] = first.clone().into();
            service["spec"]["clusterIPs"] = ips.into();
        }
        Ok(())
    }

    fn fill_ports(&mut self, resource: &Resource, service: &mut Document, before: &Held, taken: &mut Held) -> Result<(), ApiError> {
        let name = xebec_api::meta::name(service).to_string();
        if plan::needs_node_ports(service) {
            let mut ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
            // Asked for first, so that none of them is given to another port of the same Service.
            for (i, port) in ports.iter().enumerate() {
                let Some(number) = plan::port_number(&port["nodePort"]) else { continue };
                if before.ports.contains(&number) || taken.ports.contains(&number) {
                    continue;
                }
                self.ports.take(number).map_err(|e| {
                    status::invalid(resource, &name, &[FieldError::invalid(format!("spec.ports[{i}].nodePort"), number, e.to_string())])
                })?;
                taken.ports.push(number);
            }
            for i in 0..ports.len() {
                if plan::port_number(&ports[i]["nodePort"]).is_some() {
                    continue;
                }
                // One number serves a port's other protocols as well.
                let shared = ports.iter().find_map(|other| {
                    let same = other["port"] == ports[i]["port"] && other["protocol"] != ports[i]["protocol"];
                    plan::port_number(&other["nodePort"]).filter(|_| same)
                });
                let number = match shared {
                    Some(number) => number,
                    None => {
                        let number = self
                            .ports
                            .take_any(rand::random())
                            .map_err(|e| status::internal(&format!("failed to allocate a nodePort: {e}")))?;
                        taken.ports.push(number);
                        number
                    }
                };
                ports[i]["nodePort"] = number.into();
            }
            service["spec"]["ports"] = ports.into();
        }
        if plan::needs_health_check_port(service) {
            match plan::port_number(&service["spec"]["healthCheckNodePort"]) {
                Some(number) if before.ports.contains(&number) || taken.ports.contains(&number) => {}
                Some(number) => {
                    self.ports
                        .take(number)
                        .map_err(|e| status::internal(&format!("failed to allocate requested HealthCheck NodePort {number}: {e}")))?;
                    taken.ports.push(number);
                }
                None => {
                    let number = self
                        .ports
                        .take_any(rand::random())
                        .map_err(|e| status::internal(&format!("failed to allocate a HealthCheck NodePort <nil>: {e}")))?;
                    taken.ports.push(number);
                    service["spec"]["healthCheckNodePort"] = number.into();
                }
            }
        }
        Ok(())
    }
}

fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "services"
}

#[async_trait::async_trait]
impl Allocator for ServiceAllocator {
    async fn allocate(&self, change: &mut Change<'_>) -> Result<Allocation, ApiError> {
        let writes = matches!(change.operation, Operation::Create | Operation::Update);
        if !is_service(change.resource) || !change.subresource.is_empty() || !writes {
            return Ok(Allocation::default());
        }
        let Some(service) = change.object.as_mut() else { return Ok(Allocation::default()) };
        if !service["spec"].is_object() {
            // Validation has the words for it.
            return Ok(Allocation::default());
        }
        let families: Vec<&str> = self.state.lock().ranges.iter().map(|r| if r.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
        let name = xebec_api::meta::name(service).to_string();
        plan::prepare(service, change.old, &families).map_err(|errors| status::invalid(change.resource, &name, &errors))?;
        let before = change.old.map(Held::of).unwrap_or_default();
        let taken = self.state.lock().fill(change.resource, service, &before)?;
        if change.dry_run {
            self.state.lock().release(&taken);
            return Ok(Allocation::default());
        }
        let dropped = before.without(&Held::of(service));
        let (on_commit, on_failure) = (self.state.clone(), self.state.clone());
        Ok(Allocation::new(move || on_commit.lock().release(&dropped), move || on_failure.lock().release(&taken)))
    }

    fn released(&self, resource: &Resource, old: &Document) {
        if is_service(resource) {
            self.state.lock().release(&Held::of(old));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use xebec_api::builtin;

    use super::*;
    use crate::auth::UserInfo;

    fn services() -> &'static Resource {
        builtin::by_kind("v1", "Service").unwrap()
    }

    async fn write(a: &ServiceAllocator, spec: Value, old: Option<&Document>, dry_run: bool) -> Result<(Document, Allocation), ApiError> {
        let user = UserInfo::loopback();
        let mut change = Change {
            user: &user,
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            resource: services(),
            subresource: "",
            namespace: "a",
            name: "s",
            object: Some(json!({"metadata": {"name": "s", "namespace": "a"}, "spec": spec})),
            old,
            dry_run,
            warnings: Vec::new(),
        };
        let allocation = a.allocate(&mut change).await?;
        Ok((change.object.unwrap(), allocation))
    }

    async fn create(a: &ServiceAllocator, spec: Value) -> Document {
        let (doc, allocation) = write(a, spec, None, false).await.unwrap();
        allocation.committed();
        doc
    }

    fn small() -> ServiceAllocator {
        ServiceAllocator::new(&["10.0.0.0/29".parse().unwrap()], (30000, 30003), &[])
    }

    #[tokio::test]
    async fn a_service_gets_an_address_and_ports() {
        let a = small();
        let doc = create(
            &a,
            json!({"type": "NodePort", "ports": [
            {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80, "protocol": "TCP", "nodePort": 30002}]}),
        )
        .await;
        let spec = &doc["spec"];
        assert_eq!(spec["clusterIPs"], json!([spec["clusterIP"]]));
        assert_eq!((&spec["ipFamilies"], &spec["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
        assert_eq!(spec["ports"][0]["nodePort"], spec["ports"][1]["nodePort"], "protocols share the port");
        assert_eq!(spec["ports"][2]["nodePort"], 30002);
        assert_ne!(spec["ports"][0]["nodePort"], 30002);
        let none = create(&a, json!({"clusterIP": "None", "selector": {"a": "b"}})).await;
        assert_eq!((&none["spec"]["clusterIPs"], &none["spec"]["ipFamilies"]), (&json!(["None"]), &json!(["IPv4"])));
        let external = create(&a, json!({"type": "ExternalName", "externalName": "x.example"})).await;
        assert_eq!(external["spec"], json!({"type": "ExternalName", "externalName": "x.example"}));
    }

    #[tokio::test]
    async fn requests_that_cannot_be_met_are_refused_with_nothing_taken() {
        let a = small();
        create(&a, json!({"clusterIP": "10.0.0.2", "type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]})).await;
        for (spec, message) in [
            (
                json!({"clusterIP": "10.0.0.2"}),
                r#"Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.0.0.2"]: failed to allocate IP 10.0.0.2: provided IP is already allocated"#,
            ),
            (
                json!({"clusterIP": "10.9.0.2"}),
                r#"Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.9.0.2"]: failed to allocate IP 10.9.0.2: the provided IP (10.9.0.2) is not in the valid range. The range of valid IPs is 10.0.0.0/29"#,
            ),
            (
                json!({"clusterIP": "10.0.0.3", "type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}),
                r#"Service "s" is invalid: spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"#,
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 99}]}),
                r#"Service "s" is invalid: spec.ports[0].nodePort: Invalid value: 99: provided port is not in the valid range. The range of valid ports is 30000-30003"#,
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                r#"Service "s" is invalid: spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#,
            ),
        ] {
            assert_eq!(write(&a, spec, None, false).await.map(|_| ()).unwrap_err().message, message);
        }
        create(&a, json!({"clusterIP": "10.0.0.3"})).await;
        for _ in 0..4 {
            create(&a, json!({})).await;
        }
        let full = write(&a, json!({}), None, false).await.map(|_| ()).unwrap_err();
        assert_eq!((full.code, full.message.as_str()), (500, "Internal error occurred: failed to allocate a serviceIP: range is full"));
    }

    #[tokio::test]
    async fn what_is_not_stored_is_given_back() {
        let a = small();
        for _ in 0..20 {
            let (_, allocation) = write(&a, json!({"type": "NodePort", "ports": [{"port": 1}]}), None, false).await.unwrap();
            drop(allocation);
            write(&a, json!({"type": "NodePort", "ports": [{"port": 1}]}), None, true).await.unwrap();
        }
        for _ in 0..20 {
            let doc = create(&a, json!({"type": "NodePort", "ports": [{"port": 1}]})).await;
            a.released(services(), &doc);
        }
    }

    #[tokio::test]
    async fn updates_keep_change_and_release() {
        let a = small();
        let old = create(&a, json!({"type": "NodePort", "ports": [{"port": 1, "protocol": "TCP"}]})).await;
        let (kept, allocation) = write(
            &a,
            json!({"type": "NodePort", "ports": [{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "TCP"}]}),
            Some(&old),
            false,
        )
        .await
        .unwrap();
        allocation.committed();
        assert_eq!(kept["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(kept["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        assert!(kept["spec"]["ports"][1]["nodePort"].is_u64());

        let moved = write(&a, json!({"clusterIP": "10.0.0.1"}), Some(&old), false).await;
        if old["spec"]["clusterIP"] != "10.0.0.1" {
            let message = moved.map(|_| ()).unwrap_err().message;
            assert_eq!(message, r#"Service "s" is invalid: spec.clusterIPs[0]: Invalid value: ["10.0.0.1"]: may not change once set"#);
        }
        // To ClusterIP: the ports are free again; to ExternalName: the address as well.
        let (inner, allocation) =
            write(&a, json!({"type": "ClusterIP", "ports": [{"port": 1, "protocol": "TCP"}]}), Some(&kept), false).await.unwrap();
        allocation.committed();
        assert_eq!(inner["spec"]["ports"][0].get("nodePort"), None);
        let mut ports = Vec::new();
        for _ in 0..4 {
            ports.push(create(&a, json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]})).await);
        }
        let (_, allocation) = write(&a, json!({"type": "ExternalName", "externalName": "x"}), Some(&inner), false).await.unwrap();
        allocation.committed();
        for _ in 0..6 {
            create(&a, json!({})).await;
        }
    }

    #[tokio::test]
    async fn two_families_on_request() {
        let a = ServiceAllocator::new(&["10.0.0.0/24".parse().unwrap(), "fd00::/112".parse().unwrap()], (30000, 30100), &[]);
        let doc = create(&a, json!({"ipFamilyPolicy": "PreferDualStack"})).await;
        assert_eq!(doc["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(doc["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
        let six = create(&a, json!({"ipFamilies": ["IPv6"]})).await;
        assert!(six["spec"]["clusterIP"].as_str().unwrap().starts_with("fd00::"));
        let (up, _) = write(&a, json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"], "clusterIP": six["spec"]["clusterIP"], "clusterIPs": six["spec"]["clusterIPs"]}), Some(&six), false).await.unwrap();
        assert_eq!(up["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
        assert_eq!(up["spec"]["clusterIPs"][0], six["spec"]["clusterIP"]);
        assert_eq!(up["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
        let single = small();
        let refused = write(&single, json!({"ipFamilyPolicy": "RequireDualStack"}), None, false).await.map(|_| ()).unwrap_err();
        assert!(refused.message.contains("this cluster is not configured for dual-stack services"), "{}", refused.message);
    }

    #[tokio::test]
    async fn start_takes_what_services_hold() {
        let existing = json!({"metadata": {"name": "x", "namespace": "a"}, "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "type": "LoadBalancer", "healthCheckNodePort": 30001, "ports": [{"port": 1, "nodePort": 30000}]}});
        let a = ServiceAllocator::new(&["10.0.0.0/29".parse().unwrap()], (30000, 30003), std::slice::from_ref(&existing));
        assert!(write(&a, json!({"clusterIP": "10.0.0.1"}), None, false).await.is_err());
        for port in [30000, 30001] {
            assert!(write(&a, json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]}), None, false).await.is_err());
        }
        a.released(services(), &existing);
        create(&a, json!({"clusterIP": "10.0.0.1", "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001, "ports": [{"port": 1}]})).await;
    }
}
