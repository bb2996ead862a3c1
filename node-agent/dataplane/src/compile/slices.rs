//! EndpointSlices, read straight from JSON into what the dataplane keeps of them: there are more endpoints than of anything
//! else, and most of what the API says of each is of no use here.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::input::{Key, Labels, is_left_alone, port, protocol, routed, said};
use super::maglev;

/// Annotation of an EndpointSlice: the weight of its endpoints on rings, 1 to 100.
pub const WEIGHT: &str = "xebec.dev/weight";

/// An EndpointSlice of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceIn {
    /// The Service it belongs to.
    pub service: Arc<Key>,
    /// Name, protocol and number; a port without a number stands for all and is left out.
    pub ports: Box<[(String, u8, u16)]>,
    /// Those with an address.
    pub endpoints: Box<[EndpointIn]>,
    /// Its weight means nothing, in words for its author.
    pub mistake: Option<String>,
}

/// One endpoint of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointIn {
    /// The first; further ones have no defined meaning.
    pub address: IpAddr,
    /// May be chosen.
    pub ready: bool,
    /// Answers, though it may end.
    pub serving: bool,
    /// Ends.
    pub terminating: bool,
    /// Its share where weights count.
    pub weight: u8,
    /// Where it runs.
    pub node: Option<Arc<str>>,
    /// For whom it is meant.
    hints: Option<Box<Hints>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hints {
    zones: Vec<String>,
    nodes: Vec<String>,
}

impl EndpointIn {
    /// Zones it is meant for.
    pub fn for_zones(&self) -> &[String] {
        self.hints.as_ref().map_or(&[], |h| &h.zones)
    }

    /// Nodes it is meant for.
    pub fn for_nodes(&self) -> &[String] {
        self.hints.as_ref().map_or(&[], |h| &h.nodes)
    }
}

/// An EndpointSlice as watched.
#[derive(Clone, Debug)]
pub struct WatchedSlice {
    /// Name, namespace and version alone.
    metadata: ObjectMeta,
    slice: Option<SliceIn>,
}

/// What of it the dataplane reads; none when it belongs to no Service of ours or names hosts instead of addresses.
pub fn slice(watched: WatchedSlice) -> Option<SliceIn> {
    watched.slice
}

impl kube::Resource for WatchedSlice {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "EndpointSlice".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "discovery.k8s.io".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "endpointslices".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for WatchedSlice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WatchedSlice, D::Error> {
        Object::deserialize(deserializer).map(Object::reduce)
    }
}

/// The fields as the API writes them. Lists may be null.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    metadata: Meta,
    #[serde(default)]
    address_type: String,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<PortOf>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    labels: Option<Labels>,
    annotations: Option<Labels>,
}

#[derive(Deserialize)]
struct PortOf {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: First,
    conditions: Option<Conditions>,
    node_name: Option<Arc<str>>,
    hints: Option<HintsOf>,
}

#[derive(Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HintsOf {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The first of a list of addresses, if it is one.
#[derive(Default)]
struct First(Option<IpAddr>);

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<First, D::Error> {
        deserializer.deserialize_any(FirstOf)
    }
}

struct FirstOf;

impl<'de> Visitor<'de> for FirstOf {
    type Value = First;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of addresses")
    }

    fn visit_unit<E>(self) -> Result<First, E> {
        Ok(First(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First, A::Error> {
        let first: Option<Address> = list.next_element()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(First(first.and_then(|address| address.0)))
    }
}

struct Address(Option<IpAddr>);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        deserializer.deserialize_str(AddressOf)
    }
}

struct AddressOf;

impl Visitor<'_> for AddressOf {
    type Value = Address;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an address")
    }

    fn visit_str<E>(self, text: &str) -> Result<Address, E> {
        Ok(Address(routed(text)))
    }
}

impl Object {
    fn reduce(self) -> WatchedSlice {
        let slice = self.slice();
        let Meta { name, namespace, resource_version, .. } = self.metadata;
        WatchedSlice { metadata: ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() }, slice }
    }

    /// Endpoints of another family than the slice says are left out.
    fn slice(&self) -> Option<SliceIn> {
        let labels = self.metadata.labels.as_ref();
        let name = labels?.get("kubernetes.io/service-name").filter(|n| !n.is_empty())?;
        let v4 = match self.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            _ => return None,
        };
        if is_left_alone(labels) {
            return None;
        }
        let number = |p: &PortOf| Some((p.name.clone().unwrap_or_default(), protocol(p.protocol.as_deref())?, port(p.port?)?));
        let mut mistakes = Vec::new();
        let weight = said(self.metadata.annotations.as_ref(), WEIGHT, weight, "a number from 1 to 100", &mut mistakes);
        let weight = weight.unwrap_or(maglev::DEFAULT_WEIGHT as u8);
        Some(SliceIn {
            service: Arc::new(Key::new(self.metadata.namespace.as_deref()?, name)),
            ports: self.ports.iter().flatten().filter_map(number).collect(),
            endpoints: self.endpoints.iter().flatten().filter_map(|e| e.reduce(v4, weight)).collect(),
            mistake: mistakes.pop(),
        })
    }
}

/// The value of [`WEIGHT`]. What is beyond its bounds counts as the nearest that is not.
fn weight(text: &str) -> Option<u8> {
    text.parse::<u32>().ok().map(|weight| weight.clamp(1, maglev::MAX_WEIGHT) as u8)
}

impl Endpoint {
    fn reduce(&self, v4: bool, weight: u8) -> Option<EndpointIn> {
        let conditions = self.conditions.as_ref();
        let names = |list: &Option<Vec<Named>>| list.iter().flatten().map(|n| n.name.clone()).collect();
        let hints = self.hints.as_ref().map(|h| Hints { zones: names(&h.for_zones), nodes: names(&h.for_nodes) });
        Some(EndpointIn {
            // kube-proxy too takes the first alone.
            address: self.addresses.0.filter(|ip| ip.is_ipv4() == v4)?,
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            weight,
            node: self.node_name.clone(),
            hints: hints.map(Box::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<SliceIn> {
        slice(serde_json::from_str(text).expect("an EndpointSlice"))
    }

    #[test]
    fn lists_and_conditions_may_be_null_or_missing() {
        let meta = r#""metadata":{"name":"a","namespace":"n","resourceVersion":"7","labels":{"kubernetes.io/service-name":"s"}}"#;
        let of = |rest: &str| read(&format!("{{{meta},\"addressType\":\"IPv4\"{rest}}}")).expect("a slice");
        for rest in ["", r#","endpoints":null,"ports":null"#, r#","endpoints":[],"ports":[]"#] {
            let slice = of(rest);
            assert_eq!((slice.endpoints.len(), slice.ports.len(), &*slice.service), (0, 0, &Key::new("n", "s")));
        }
        let endpoints = r#","endpoints":[{"addresses":null},{},{"addresses":[]},{"addresses":["10.0.0.1","10.0.0.2"],"hints":null},
            {"addresses":["10.0.0.3"],"conditions":{"ready":null,"terminating":true},"nodeName":null,"hints":{"forZones":[{"name":"z"}]}}]"#;
        let slice = of(endpoints);
        let seen: Vec<_> =
            slice.endpoints.iter().map(|e| (e.address.to_string(), e.ready, e.serving, e.terminating, e.for_zones())).collect();
        let zone = ["z".to_owned()];
        assert_eq!(seen, [("10.0.0.1".into(), true, true, false, &[][..]), ("10.0.0.3".into(), true, true, true, &zone[..])]);
    }

    #[test]
    fn endpoints_of_the_wrong_family_and_addresses_nobody_can_have_are_left_out() {
        let text = |family: &str| {
            format!(
                r#"{{"metadata":{{"name":"a","namespace":"n","labels":{{"kubernetes.io/service-name":"s"}}}},"addressType":"{family}","endpoints":
                [{{"addresses":["10.0.0.1"]}},{{"addresses":["fd00::1"]}},{{"addresses":["127.0.0.1"]}},{{"addresses":["0.0.0.0"]}},{{"addresses":["::"]}},
                {{"addresses":["224.0.0.1"]}},{{"addresses":["255.255.255.255"]}},{{"addresses":["169.254.169.254"]}},{{"addresses":["fe80::1"]}},
                {{"addresses":["ff02::1"]}},{{"addresses":["::1"]}},{{"addresses":["::ffff:127.0.0.1"]}},{{"addresses":["not an address"]}},{{"addresses":["::ffff:10.0.0.2"]}}]}}"#
            )
        };
        let of = |family: &str| read(&text(family)).map(|s| s.endpoints.iter().map(|e| e.address.to_string()).collect::<Vec<_>>());
        assert_eq!(of("IPv4"), Some(vec!["10.0.0.1".into(), "10.0.0.2".into()]));
        assert_eq!(of("IPv6"), Some(vec!["fd00::1".into()]));
        assert_eq!(of("FQDN"), None);
    }

    #[test]
    fn what_a_watch_needs_of_the_metadata_is_there() {
        use kube::ResourceExt;
        let text =
            r#"{"metadata":{"name":"a","namespace":"n","resourceVersion":"7","managedFields":[{"manager":"m"}]},"addressType":"IPv4"}"#;
        let watched: WatchedSlice = serde_json::from_str(text).expect("an EndpointSlice");
        assert_eq!((watched.name_any(), watched.namespace(), watched.resource_version()), ("a".into(), Some("n".into()), Some("7".into())));
        assert_eq!(slice(watched), None, "of no Service");
    }
}
