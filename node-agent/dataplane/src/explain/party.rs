//! Who sends and who is sent to: names to addresses and back.

use std::net::IpAddr;

use xebec_ebpf_abi::{Addr, Endpoint};

use crate::Config;
use crate::compile::expand::addr;
use crate::compile::input::Key;
use crate::engine::Engine;

/// One end of a question.
#[derive(Clone, Copy, Debug)]
pub struct Party {
    /// Its address.
    pub address: Addr,
    /// Where that is.
    pub place: Place,
}

/// Where an address is, seen from this node.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A pod here.
    Pod(Endpoint),
    /// The node itself.
    Node,
    /// Anywhere else.
    Outside,
}

/// Both ends, in one address family.
pub fn pair(engine: &Engine, config: &Config, source: &str, destination: &str) -> Result<(Party, Party), String> {
    let (from, to) = (addresses(engine, config, source)?, addresses(engine, config, destination)?);
    let both = to.iter().find_map(|to| Some((from.iter().find(|from| from.is_ipv4() == to.is_ipv4())?, to)));
    let (from, to) = both.ok_or_else(|| format!("{source} and {destination} have no address family in common"))?;
    Ok((party(engine, config, *from), party(engine, config, *to)))
}

fn party(engine: &Engine, config: &Config, ip: IpAddr) -> Party {
    let address = addr(ip);
    let endpoint = engine.state.policies.endpoint_at(&address);
    let own = ip.is_loopback() || engine.node_addresses(&config.node_ips).contains(&ip);
    let place = match endpoint {
        Some(endpoint) => Place::Pod(endpoint),
        None if own => Place::Node,
        None => Place::Outside,
    };
    Party { address, place }
}

fn addresses(engine: &Engine, config: &Config, text: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(vec![ip.to_canonical()]);
    }
    if text == "node" || text == format!("node/{}", config.node_name) {
        // Those it was told come first: packets to other machines leave with them.
        let found = engine.node_addresses(&config.node_ips);
        return Ok(config.node_ips.iter().copied().chain(found).collect());
    }
    let pod = |key: &Key| engine.state.policies.addresses_of(key);
    let service = |key: &Key| engine.state.services.service(key).map(|s| s.cluster_ips.clone()).unwrap_or_default();
    let parts: Vec<&str> = text.split('/').collect();
    let found = match parts[..] {
        ["pod", namespace, name] => pod(&Key::new(namespace, name)),
        ["svc" | "service", namespace, name] => service(&Key::new(namespace, name)),
        ["node", name] => return Err(format!("{name} is another node: give its address, or ask there")),
        [namespace, name] => {
            let key = Key::new(namespace, name);
            match (pod(&key), service(&key)) {
                (pods, services) if services.is_empty() => pods,
                (pods, services) if pods.is_empty() => services,
                _ => return Err(format!("{text} is a pod and a Service: say pod/{text} or svc/{text}")),
            }
        }
        _ => return Err(format!("{text:?} is no address, node, pod/NAMESPACE/NAME, svc/NAMESPACE/NAME or NAMESPACE/NAME")),
    };
    if found.is_empty() {
        return Err(format!("{text} is unknown to this node, or has no address"));
    }
    Ok(found)
}

/// An address with what is behind it.
pub fn name(engine: &Engine, address: Addr) -> String {
    let ip = address.to_ip();
    match engine.state.policies.pod_at(ip) {
        Some((key, _)) => format!("pod {key} ({ip})"),
        None => ip.to_string(),
    }
}
