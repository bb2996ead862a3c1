//! Calls, results and errors of the Container Network Interface, versions 0.3 to 1.1.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::compile::bandwidth::Bandwidth;
use crate::compile::input::Key;
use crate::device::pod::gateway;
use crate::sandbox::Sandbox;

/// What `xebec-cni` sends: the environment and the configuration of the call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Request {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// The plugin's configuration.
    pub config: Value,
}

/// An error with a code of the specification; from 100 on they are the plugin's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    /// Code.
    pub code: u32,
    /// What failed.
    pub msg: String,
    /// Why, and what to look at.
    pub details: String,
}

impl CniError {
    /// Code 4: an environment variable is missing or wrong.
    pub fn environment(details: impl ToString) -> CniError {
        CniError { code: 4, msg: "invalid necessary environment variables".into(), details: details.to_string() }
    }

    /// Code 11: nothing is wrong that time does not mend.
    pub fn try_again(details: impl ToString) -> CniError {
        CniError { code: 11, msg: "try again later".into(), details: details.to_string() }
    }

    /// Code 50: ADD cannot be served.
    pub fn unavailable(details: impl ToString) -> CniError {
        CniError { code: 50, msg: "the node's network is not ready".into(), details: details.to_string() }
    }

    /// Code 100: the network could not be set up or taken down.
    pub fn failed(msg: &str, details: impl ToString) -> CniError {
        CniError { code: 100, msg: msg.into(), details: details.to_string() }
    }
}

/// The pod a call is about, from `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME`.
    pub key: Key,
    /// `K8S_POD_UID`; old runtimes leave it out.
    pub uid: Option<String>,
}

impl Request {
    /// The pod, where the runtime names one.
    pub fn pod(&self) -> Result<PodRef, CniError> {
        let args: BTreeMap<&str, &str> = self.args.split(';').filter_map(|pair| pair.split_once('=')).collect();
        let need = |name: &str| {
            let value = args.get(name).copied().filter(|v| !v.is_empty());
            value.ok_or_else(|| CniError::environment(format!("CNI_ARGS has no {name}; this plugin serves Kubernetes pods only")))
        };
        Ok(PodRef {
            key: Key::new(need("K8S_POD_NAMESPACE")?, need("K8S_POD_NAME")?),
            uid: args.get("K8S_POD_UID").filter(|v| !v.is_empty()).map(|v| (*v).to_owned()),
        })
    }

    /// Checks what every call about a sandbox needs; the ids become file names.
    pub fn check(&self, needs_netns: bool) -> Result<(), CniError> {
        let id = &self.container_id;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.chars().all(plain) || id.len() > 128 {
            return Err(CniError::environment(format!("CNI_CONTAINERID is {id:?}")));
        }
        let name = &self.ifname;
        if name.is_empty()
            || name.len() > 15
            || matches!(name.as_str(), "." | "..")
            || name.contains(['/', ':'])
            || name.contains(char::is_whitespace)
        {
            return Err(CniError::environment(format!("CNI_IFNAME is {name:?}")));
        }
        if needs_netns && self.netns.is_empty() {
            return Err(CniError::environment("CNI_NETNS is not set"));
        }
        Ok(())
    }

    /// `runtimeConfig.bandwidth`: what the runtime limits the pod to, in bits. Rates of zero are none, as with upstream's plugin;
    /// runtimes who know of no burst say the largest number of one type or another, from 2^31 - 1 on.
    pub fn bandwidth(&self) -> Result<Bandwidth, CniError> {
        let Some(asked) = self.config.get("runtimeConfig").and_then(|c| c.get("bandwidth")).filter(|b| !b.is_null()) else {
            return Ok(Bandwidth::default());
        };
        let invalid = |details: String| CniError { code: 7, msg: "invalid network config".into(), details };
        if !asked.is_object() {
            return Err(invalid(format!("runtimeConfig.bandwidth is no object: {asked}")));
        }
        let bits = |name: &str| match asked.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let bits =
                    value.as_u64().ok_or_else(|| invalid(format!("runtimeConfig.bandwidth.{name} is no number of bits: {value}")))?;
                Ok(Some(bits).filter(|bits| *bits > 0))
            }
        };
        let rate = |name| Ok(bits(name)?.map(|bits| bits.div_ceil(8)));
        let burst = |name| Ok(bits(name)?.filter(|bits| *bits < i32::MAX as u64).map(|bits| bits / 8));
        Ok(Bandwidth {
            ingress: rate("ingressRate")?,
            egress: rate("egressRate")?,
            ingress_burst: burst("ingressBurst")?,
            egress_burst: burst("egressBurst")?,
        })
    }

    /// `cniVersion` of the configuration.
    pub fn version(&self) -> &str {
        self.config.get("cniVersion").and_then(Value::as_str).unwrap_or("1.0.0")
    }
}

fn mac(bytes: &[u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

/// The result of ADD.
pub fn result(version: &str, sandbox: &Sandbox) -> Value {
    let ips = sandbox.ips.iter().map(|ip| {
        let mut entry = json!({
            "address": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }),
            "gateway": gateway(ip),
            "interface": 1,
        });
        if version.starts_with("0.") {
            entry["version"] = json!(if ip.is_ipv4() { "4" } else { "6" });
        }
        entry
    });
    let default = |ip: &IpAddr| json!({"dst": if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": gateway(ip)});
    json!({
        "cniVersion": version,
        "interfaces": [
            {"name": sandbox.host_name, "mac": mac(&sandbox.host_mac)},
            {"name": sandbox.ifname, "mac": mac(&sandbox.pod_mac), "sandbox": sandbox.netns},
        ],
        "ips": ips.collect::<Vec<_>>(),
        "routes": sandbox.ips.iter().map(default).collect::<Vec<_>>(),
        "dns": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_by_the_arguments() {
        let request = |args: &str| Request { args: args.into(), ..Request::default() };
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=ab;K8S_POD_UID=u-1";
        assert_eq!(request(args).pod().unwrap(), PodRef { key: Key::new("ns", "web-0"), uid: Some("u-1".into()) });
        assert_eq!(request("K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p").pod().unwrap().uid, None);
        for broken in ["", "K8S_POD_NAME=p", "K8S_POD_NAMESPACE=;K8S_POD_NAME=p", ";;=;", "K8S_POD_NAMESPACE"] {
            assert_eq!(request(broken).pod().unwrap_err().code, 4, "{broken}");
        }
    }

    #[test]
    fn ids_that_are_no_file_or_device_names_are_refused() {
        let request = |id: &str, name: &str, netns: &str| Request {
            container_id: id.into(),
            ifname: name.into(),
            netns: netns.into(),
            ..Request::default()
        };
        assert!(request("ab12", "eth0", "/n").check(true).is_ok());
        assert!(request("ab12", "eth0", "").check(false).is_ok());
        for (id, name, netns) in [
            ("", "eth0", "/n"),
            ("../x", "eth0", "/n"),
            ("a/b", "eth0", "/n"),
            ("ab", "", "/n"),
            ("ab", "..", "/n"),
            ("ab", "sixteen-letters-", "/n"),
            ("ab", "a/b", "/n"),
            ("ab", "a b", "/n"),
            ("ab", "eth0", ""),
        ] {
            assert_eq!(request(id, name, netns).check(true).unwrap_err().code, 4, "{id:?} {name:?} {netns:?}");
        }
    }

    #[test]
    fn a_runtimes_limits_are_bits_and_what_is_none_is_refused() {
        let of = |config: Value| Request { config, ..Request::default() }.bandwidth();
        let asked = |bandwidth: Value| of(json!({"runtimeConfig": {"bandwidth": bandwidth}}));
        for none in [json!({}), json!({"runtimeConfig": null}), json!({"runtimeConfig": {"portMappings": []}}), json!(null)] {
            assert_eq!(of(none.clone()), Ok(Bandwidth::default()), "{none}");
        }
        assert_eq!(asked(json!(null)), Ok(Bandwidth::default()));
        let usual = json!({"ingressRate": 8000, "ingressBurst": 4294967295u64, "egressRate": 0, "egressBurst": 0});
        assert_eq!(asked(usual), Ok(Bandwidth { ingress: Some(1000), ..Bandwidth::default() }));
        for none in [u64::from(u32::MAX) * 8 - 1, i32::MAX as u64] {
            let usual = json!({"egressRate": 8000, "egressBurst": none});
            assert_eq!(asked(usual), Ok(Bandwidth { egress: Some(1000), ..Bandwidth::default() }));
        }
        let bursts = json!({"egressRate": 9, "egressBurst": 80_000, "shares": "unknown"});
        assert_eq!(asked(bursts), Ok(Bandwidth { egress: Some(2), egress_burst: Some(10_000), ..Bandwidth::default() }));
        for wrong in [json!({"ingressRate": -1}), json!({"egressBurst": "1M"}), json!({"egressRate": 1.5}), json!([]), json!("1M")] {
            assert_eq!(asked(wrong.clone()).map_err(|e| e.code), Err(7), "{wrong}");
        }
    }

    #[test]
    fn results_follow_the_version() {
        let sandbox = Sandbox {
            id: "ab".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            host_name: "xbc1".into(),
            endpoint: 1,
            ips: vec!["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            pod_mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 0xff],
            pod: Key::new("ns", "p"),
            netns_cookie: 0,
            last_seen: Default::default(),
            asked: Default::default(),
        };
        let now = result("1.0.0", &sandbox);
        assert_eq!(now["ips"][0], json!({"address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1}));
        assert_eq!(now["ips"][1]["address"], "fd00::5/128");
        assert_eq!(now["interfaces"][0]["mac"], "02:00:00:00:00:ff");
        assert_eq!(now["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(now["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"}));
        assert_eq!(result("0.4.0", &sandbox)["ips"][1]["version"], "6");
    }
}
