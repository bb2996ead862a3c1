//! Why a packet ends where it ends: a made-up first packet is run through the programs and the live maps, and what
//! decided is named. Nothing in force is changed by it.

mod answer;
mod env;
mod packet;
mod party;

use std::net::IpAddr;

use xebec_ebpf_abi::{
    Addr, AffinityKey, Config as Facts, DropReason, Endpoint, FlowKey, Frontend, NodeAddr, Port, Tuple, direction, prog, proto,
};
use xebec_ebpf_logic::socket::{self, Action, Socket};
use xebec_ebpf_logic::{Env, policy, service};

pub use answer::{BackendSaid, Fate, PolicySaid, ServiceSaid, Step, Why, WhyQuestion};
use env::Live;
use party::{Party, Place};

use crate::bpf::loader::{self, Pins};
use crate::bpf::replica::{Replica, Verdict};
use crate::compile::input::Key;
use crate::compile::services::names::Named;
use crate::device::netns;
use crate::engine::{Engine, Watch};
use crate::{Dataplane, Error};

/// Ports a client is given when the question names none.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=60999;

/// Answers a question. Blocks: it loads programs the first time, and runs them.
pub fn why(dataplane: &Dataplane, question: &WhyQuestion) -> Result<Why, String> {
    let text = |error: Error| error.to_string();
    let number = protocol(&question.protocol)?;
    let (src, dst, growths) = {
        let engine = dataplane.engine.lock();
        let (src, dst) = party::pair(&engine, &dataplane.config, &question.source, &question.destination)?;
        (src, dst, engine.growths())
    };
    // Read outside the lock: it enters the pod's network namespace.
    let cookie = dataplane.netns_cookie(&src);
    let mut slot = dataplane.replica.lock();
    // Maps that have grown are others.
    if slot.as_ref().is_none_or(|(then, _)| *then != growths) {
        let pins = Pins::new(&dataplane.config.pin_dir, dataplane.config.layout.number);
        *slot = Some((growths, Replica::load(&pins).map_err(text)?));
    }
    let Some((_, replica)) = slot.as_mut() else {
        return Err("the programs are not loaded".into());
    };
    replica.clear().map_err(text)?;
    let icmp = matches!(number, proto::ICMP | proto::ICMPV6);
    let number = match (icmp, dst.address.is_v4()) {
        (true, true) => proto::ICMP,
        (true, false) => proto::ICMPV6,
        (false, _) => number,
    };
    let dport = if icmp { 0 } else { question.port };
    let sport = question.source_port.unwrap_or_else(|| rand::random_range(EPHEMERAL));
    let tuple = Tuple::new(src.address, Port::new(sport), dst.address, Port::new(dport), number);
    let mut run = Run { replica, tuple, known: false, steps: Vec::new(), service: None, backend: None, judged: Vec::new() };
    let fate = run.all(&src, cookie, &dataplane.uplinks()).map_err(text)?;
    let Run { mut steps, service, backend, judged, tuple: last, .. } = run;
    if let (Place::Outside, Fate::Leaves { device }, Some(_), proto::TCP | proto::UDP) = (&src.place, &fate, &service, number)
        && dataplane.engine.lock().has_driver(device)
    {
        let what = "does what follows at once, as soon as it knows the next hop".to_owned();
        steps.insert(0, Step { program: prog::XDP_UPLINK.into(), at: format!("the driver of {device}"), what });
    }
    let engine = dataplane.engine.lock();
    Ok(Why {
        source: party::name(&engine, tuple.src),
        destination: party::name(&engine, tuple.dst),
        packet: answer::tuple(&tuple),
        arrives_as: answer::tuple(&last),
        service: service.map(|s| name_service(&engine, &s, &tuple)),
        backend: backend.map(|b| name_backend(&engine, service.as_ref(), b)),
        policies: judged.iter().map(|j| name_policy(&engine, j)).collect(),
        steps,
        fate,
    })
}

fn protocol(name: &str) -> Result<u8, String> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(proto::TCP),
        "udp" => Ok(proto::UDP),
        "sctp" => Ok(proto::SCTP),
        "icmp" => Ok(proto::ICMP),
        other => Err(format!("protocol {other:?} is none of tcp, udp, sctp and icmp")),
    }
}

impl Dataplane {
    fn netns_cookie(&self, src: &Party) -> u64 {
        let Place::Pod(endpoint) = src.place else {
            return 0;
        };
        let path = self.sandboxes.lock().values().find(|s| s.endpoint == endpoint.id).map(|s| s.netns.clone());
        // Without it only the backend that affinity gave the pod before stays unknown.
        path.and_then(|path| netns::within(&path, loader::netns_cookie).ok()).unwrap_or(0)
    }

    fn uplinks(&self) -> Vec<(u32, String)> {
        self.engine.lock().devices.uplinks.iter().map(|(index, uplink)| (*index, uplink.name.clone())).collect()
    }
}

/// What one policy decision was about, and what it said.
pub(crate) struct Judged {
    pub endpoint: Endpoint,
    pub way: u8,
    pub allowed: bool,
    /// `PolicyVerdict::rule` of the entry that decided.
    pub rule: Option<u32>,
    /// The flow was there before: it was not judged again.
    pub established: bool,
}

/// A packet under way.
struct Run<'a> {
    replica: &'a mut Replica,
    tuple: Tuple,
    /// The packet belongs to a flow that was there before.
    known: bool,
    steps: Vec<Step>,
    service: Option<Frontend>,
    backend: Option<(Addr, Port)>,
    judged: Vec<Judged>,
}

impl Run<'_> {
    fn all(&mut self, src: &Party, cookie: u64, uplinks: &[(u32, String)]) -> Result<Fate, Error> {
        if let Some(fate) = self.at_socket(src, cookie) {
            return Ok(fate);
        }
        if matches!(src.place, Place::Pod(_)) && (self.tuple.dst == self.tuple.src || self.tuple.dst.is_loopback()) {
            // It never leaves the pod's network namespace.
            return Ok(Fate::Delivered);
        }
        let first = uplinks.first().cloned();
        self.recall(src)?;
        let packet = packet::first(&self.tuple);
        let packet = match src.place {
            Place::Pod(endpoint) => match self.at_device("from_pod", endpoint.ifindex, "the pod's device", &packet, Some(&endpoint))? {
                Ok(packet) => packet,
                Err(fate) => return Ok(fate),
            },
            Place::Node => packet,
            Place::Outside => {
                let Some((index, name)) = &first else {
                    return Ok(Fate::Nowhere);
                };
                match self.at_device("from_uplink", *index, name, &packet, None)? {
                    Ok(packet) => packet,
                    Err(fate) => return Ok(fate),
                }
            }
        };
        let live = Live::new(self.replica);
        let (to, own) = (live.endpoint(&self.tuple.dst), live.node_addr(&self.tuple.dst));
        match (to, own) {
            (Some(endpoint), _) => match self.at_device("to_pod", endpoint.ifindex, "the pod's device", &packet, None)? {
                Ok(_) => Ok(Fate::Delivered),
                Err(fate) => Ok(fate),
            },
            (None, Some(NodeAddr { .. })) => Ok(Fate::Node),
            (None, None) if self.tuple.dst.is_loopback() => Ok(Fate::Node),
            (None, None) => {
                let Some((index, name)) = &first else {
                    return Ok(Fate::Nowhere);
                };
                match self.at_device("to_uplink", *index, name, &packet, None)? {
                    Ok(_) => Ok(Fate::Leaves { device: name.clone() }),
                    Err(fate) => Ok(fate),
                }
            }
        }
    }

    /// What connect(2) or sendmsg(2) does to the address. `None`: a packet is sent.
    fn at_socket(&mut self, src: &Party, cookie: u64) -> Option<Fate> {
        let live = Live::new(self.replica);
        let from_node = matches!(src.place, Place::Node);
        let netns = if from_node { live.config().map_or(0, |c: Facts| c.node_netns_cookie) } else { cookie };
        let (dst, port, proto) = (self.tuple.dst, self.tuple.dport, self.tuple.proto());
        self.service = service::find(&live, dst, port, proto, from_node);
        if matches!(src.place, Place::Outside) || !matches!(proto, proto::TCP | proto::UDP) {
            return None;
        }
        let socket = Socket { cookie: u64::from(rand::random::<u32>()), netns, proto };
        let (what, fate) = match socket::connect(&live, &socket, dst, port) {
            Action::Pass => ("leaves the address as it is".to_owned(), None),
            Action::Refuse(reason) => ("refuses".to_owned(), Some(Fate::Refused { reason: reason.label().into() })),
            Action::Rewrite(addr, port) => {
                self.tuple = Tuple::new(self.tuple.src, self.tuple.sport, addr, port, proto);
                self.backend = Some((addr, port));
                (format!("chooses {}", answer::end(addr, port)), None)
            }
        };
        let hook = if dst.is_v4() { "connect4" } else { "connect6" };
        self.steps.push(Step { program: hook.into(), at: "the socket".into(), what });
        fate
    }

    /// Tells the copy what is known of this very flow.
    fn recall(&mut self, src: &Party) -> Result<(), Error> {
        let before = self.tuple;
        let translated = self.replica.know_nat(&before)?;
        let after = translated.map_or(before, |nat| nat.to);
        for set in self.service.iter().flat_map(|s| [s.internal, s.external]) {
            self.replica.know_affinity(&AffinityKey::address(before.src, set))?;
        }
        let mut known = translated.is_some();
        for tuple in [before, after] {
            if let Place::Pod(endpoint) = src.place {
                let key = FlowKey::new(endpoint.id, tuple.sport, tuple.dst, tuple.dport, tuple.proto());
                known |= self.replica.know_flow(&key)?.is_some();
            }
            let to = Live::new(self.replica).endpoint(&tuple.dst);
            if let Some(endpoint) = to {
                let key = FlowKey::new(endpoint.id, tuple.dport, tuple.src, tuple.sport, tuple.proto());
                known |= self.replica.know_flow(&key)?.is_some();
            }
        }
        self.known = known;
        Ok(())
    }

    /// Runs a program. `Ok`: the packet goes on to the stack, as it is now.
    fn at_device(
        &mut self,
        program: &str,
        ifindex: u32,
        at: &str,
        packet: &[u8],
        sender: Option<&Endpoint>,
    ) -> Result<Result<Vec<u8>, Fate>, Error> {
        let (verdict, out) = self.replica.run(program, ifindex, packet)?;
        let before = self.tuple;
        let after = packet::tuple(&out).unwrap_or(before);
        // A drop leaves the packet as it came, though a backend may have been chosen: the translation tells.
        let meant = match (&verdict, self.replica.nat(&before)) {
            (Verdict::Drop(_), Some(nat)) => nat.to,
            _ => after,
        };
        if self.backend.is_none() && self.service.is_some() && meant.dst != before.dst {
            self.backend = Some((meant.dst, meant.dport));
        }
        // To a pod elsewhere, as it is.
        let sent_inside = match verdict {
            Verdict::Redirect => packet::outer(&out).zip(self.replica.nat(&before)),
            Verdict::Pass | Verdict::Drop(_) => None,
        };
        if let Some((node, nat)) = sent_inside {
            self.backend = Some((nat.to.dst, nat.to.dport));
            let what = format!("sends it as it is to {}, inside a packet of {}", answer::end(nat.to.dst, nat.to.dport), node.to_ip());
            self.steps.push(Step { program: program.into(), at: at.into(), what });
            return Ok(Err(Fate::Leaves { device: at.to_owned() }));
        }
        let reason = match &verdict {
            Verdict::Drop(reason) => *reason,
            Verdict::Pass | Verdict::Redirect => None,
        };
        if let Some(sender) = sender {
            let denied = reason == Some(DropReason::PolicyEgress);
            self.judge(sender, direction::EGRESS, (meant.dst, meant.dport), !denied);
        }
        let here = Live::new(self.replica).endpoint(&meant.dst);
        let entered = verdict == Verdict::Redirect || program == "to_pod" || reason == Some(DropReason::PolicyIngress);
        let receiver = here.filter(|_| entered);
        if let Some(receiver) = receiver {
            let denied = reason == Some(DropReason::PolicyIngress);
            self.judge(&receiver, direction::INGRESS, (meant.src, meant.dport), !denied);
        }
        let moved = if after == before { String::new() } else { format!("translates to {}, ", answer::tuple(&after)) };
        let what = match &verdict {
            Verdict::Pass => "passes it on".to_owned(),
            Verdict::Redirect if here.is_none() => "sends it out, past the node's stack".to_owned(),
            Verdict::Redirect => "hands it to the pod".to_owned(),
            Verdict::Drop(reason) => format!("drops it: {}", reason.map_or("unknown", DropReason::label)),
        };
        self.steps.push(Step { program: program.into(), at: at.into(), what: format!("{moved}{what}") });
        self.tuple = after;
        Ok(match verdict {
            Verdict::Pass => Ok(out),
            Verdict::Redirect if here.is_none() => Ok(out),
            Verdict::Redirect => Err(Fate::Delivered),
            Verdict::Drop(reason) => Err(Fate::Dropped { reason: reason.map_or("unknown", DropReason::label).into() }),
        })
    }

    /// Notes what policy had to say of the packet, and by which rule.
    fn judge(&mut self, endpoint: &Endpoint, way: u8, (remote, port): (Addr, Port), allowed: bool) {
        let isolated = if way == direction::INGRESS { Endpoint::ISOLATE_INGRESS } else { Endpoint::ISOLATE_EGRESS };
        if endpoint.flags & isolated == 0 {
            return;
        }
        let live = Live::new(self.replica);
        let said = policy::asks(&live, endpoint, way, &remote, self.tuple.proto(), port);
        let rule = Some(said.rule).filter(|rule| *rule != 0 && said.allowed == allowed);
        self.judged.push(Judged { endpoint: *endpoint, way, allowed, rule, established: self.known });
    }
}

fn version(engine: &Engine, watch: Watch, key: &Key) -> Option<String> {
    engine.versions.get(&(watch, key.clone())).map(ToString::to_string)
}

fn name_service(engine: &Engine, frontend: &Frontend, tuple: &Tuple) -> ServiceSaid {
    let at = answer::end(tuple.dst, tuple.dport);
    match engine.state.services.named(frontend.service) {
        Some(Named::Service(key, port, number)) => {
            let port = if port.is_empty() { number.to_string() } else { port };
            ServiceSaid { resource_version: version(engine, Watch::Services, &key), service: key.to_string(), port, at }
        }
        Some(Named::HostPort(endpoint)) => ServiceSaid {
            service: format!("a host port of endpoint {endpoint}"),
            port: tuple.dport.get().to_string(),
            at,
            resource_version: None,
        },
        None => ServiceSaid { service: "unknown".into(), port: String::new(), at, resource_version: None },
    }
}

fn name_backend(engine: &Engine, frontend: Option<&Frontend>, (addr, port): (Addr, Port)) -> BackendSaid {
    let ip: IpAddr = addr.to_ip();
    let service = frontend.and_then(|f| match engine.state.services.named(f.service)? {
        Named::Service(key, ..) => Some(key),
        Named::HostPort(_) => None,
    });
    let slice = service.and_then(|key| engine.state.services.slice_of(&key, ip, port.get()).cloned());
    BackendSaid {
        address: answer::end(addr, port),
        pod: engine.state.policies.pod_at(ip).map(|(key, _)| key.to_string()),
        resource_version: slice.as_ref().and_then(|key| version(engine, Watch::EndpointSlices, key)),
        endpoint_slice: slice.map(|key| key.to_string()),
    }
}

/// A decision in words.
pub(crate) fn name_policy(engine: &Engine, judged: &Judged) -> PolicySaid {
    let policies = &engine.state.policies;
    let (way, list) = if judged.way == direction::INGRESS { ("ingress", "spec.ingress") } else { ("egress", "spec.egress") };
    let rule = judged.rule.and_then(|number| policies.rule_named(number));
    let isolating = policies.isolating(judged.endpoint.id, judged.way);
    let named: Vec<Key> = match &rule {
        Some(rule) => vec![rule.policy.clone()],
        None => isolating,
    };
    let versioned = |key: &Key| {
        let (watch, name) = match key.namespace.is_empty() {
            true => (Watch::ClusterNetworkPolicies, format!("ClusterNetworkPolicy {key}")),
            false => (Watch::NetworkPolicies, key.to_string()),
        };
        match version(engine, watch, key) {
            Some(version) => format!("{name} (resourceVersion {version})"),
            None => name,
        }
    };
    PolicySaid {
        pod: policies.pod_of(judged.endpoint.id).map_or_else(String::new, |key| key.to_string()),
        direction: way.into(),
        allowed: judged.allowed,
        established: judged.established,
        rule: rule.map(|r| format!("{list}[{}]", r.index)),
        policies: named.iter().map(versioned).collect(),
    }
}
