//! Services against the rules as they are documented, one after the other: what a client gets that asks for an
//! address, at the end, and whether every reader in between finds whole sets.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use xebec_ebpf_abi::{Addr, Backend, BackendSet, Frontend, Port, SourceRangeKey, proto};
use xebec_ebpf_logic::service as logic;

use super::expand::{NodeFacts, addr};
use super::input::{self, Key};
use super::model::Kernel;
use super::state::{Op, State};
use world::{Endpoint, NODE, NODE_IPS, PORTS, Service, Slice, World, ZONE, endpoint_ip, node_port};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Node,
    Pod(IpAddr),
    Outside(IpAddr),
}

/// What it gets.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// The address is no Service's.
    None,
    /// Not in the source ranges.
    Forbidden,
    /// Nobody is there.
    Refused,
    /// There is somebody, but the policy keeps the client from them.
    Silence,
    /// One of these, with the seconds a client stays.
    OneOf(BTreeSet<(Addr, u16)>, Option<u32>),
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Which kind of address of a Service was asked for.
#[derive(Clone, Copy, PartialEq)]
enum Via {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// Rule 1: who has the address. Of several Services the first by name.
fn owner(world: &World, client: Client, dst: IpAddr, port: u16, protocol: u8) -> Option<(&Service, usize, Via)> {
    let of_protocol = |p: &(&str, &str, u16)| if p.1 == "TCP" { protocol == proto::TCP } else { protocol == proto::UDP };
    for s in world.services.values() {
        // Nothing of a Service without addresses, of another proxy's, or in a family it does not have.
        let has_family = if dst.is_ipv4() { s.families.0 } else { s.families.1 };
        if s.kind == "ExternalName" || s.other_proxy || !has_family {
            continue;
        }
        for (i, p) in PORTS.iter().enumerate().filter(|(_, p)| of_protocol(p)) {
            let vips = s.kind == "LoadBalancer" && s.ingress == Some(true);
            if port == p.2 && s.cluster_ips().contains(&dst) {
                return Some((s, i, Via::ClusterIp));
            } else if port == p.2 && s.externals().contains(&dst) {
                return Some((s, i, Via::ExternalIp));
            } else if port == p.2 && vips && s.balancers().contains(&dst) {
                return Some((s, i, Via::LoadBalancer));
            }
            let own = NODE_IPS.map(ip).contains(&dst) || (dst.is_loopback() && client == Client::Node);
            if s.node_ports && port == node_port(s.n, i) && own {
                return Some((s, i, Via::NodePort));
            }
        }
    }
    None
}

/// Rule 2: source ranges close load-balancer addresses, family by family, also to pods and the node.
fn admitted(s: &Service, client: Client, v4: bool) -> bool {
    let ranges: Vec<IpNet> = s.ranges.iter().map(|r| r.trim().parse().expect("a range")).collect();
    let ranges: Vec<&IpNet> = ranges.iter().filter(|r| r.addr().is_ipv4() == v4).collect();
    let source = match client {
        Client::Node => ip(NODE_IPS[usize::from(!v4)]),
        Client::Pod(ip) | Client::Outside(ip) => ip,
    };
    ranges.is_empty() || ranges.iter().any(|r| r.contains(&source))
}

fn ready(e: &Endpoint) -> bool {
    e.ready.unwrap_or(true)
}

fn ending(e: &Endpoint) -> bool {
    e.serving.unwrap_or(true) && e.terminating.unwrap_or(false)
}

fn here(e: &Endpoint) -> bool {
    e.node == Some(NODE)
}

/// Rule 3: the endpoints of a port in a family, each once. One of this node wins, then one that is ready, then
/// one that still serves.
fn endpoints(world: &World, service: u8, port: usize, v4: bool) -> BTreeMap<(Addr, u16), Endpoint> {
    let mut found: BTreeMap<(Addr, u16), Endpoint> = BTreeMap::new();
    for slice in world.slices.range((service, 0)..=(service, u8::MAX)).map(|(_, s)| s) {
        let Some(number) = slice.numbers[port].filter(|_| slice.v4 == v4 && !slice.wrong_family) else {
            continue;
        };
        for e in &slice.endpoints {
            let rank = |e: &Endpoint| (here(e), ready(e), ending(e));
            let known = found.entry((addr(endpoint_ip(e.n, v4)), number)).or_insert_with(|| e.clone());
            if rank(e) > rank(known) {
                *known = e.clone();
            }
        }
    }
    found
}

/// Rule 4: hints count if every ready endpoint has one and one is for this node, node hints before zone hints.
fn hinted(all: &[&Endpoint], e: &Endpoint) -> bool {
    let ready: Vec<_> = all.iter().filter(|e| ready(e)).collect();
    let for_node = |e: &Endpoint| e.nodes.contains(&NODE);
    let for_zone = |e: &Endpoint| e.zones.contains(&ZONE);
    if ready.iter().all(|e| !e.nodes.is_empty()) && ready.iter().any(|e| for_node(e)) {
        return for_node(e);
    }
    if ready.iter().all(|e| !e.zones.is_empty()) && ready.iter().any(|e| for_zone(e)) {
        return for_zone(e);
    }
    true
}

/// The rules in their order.
fn expected(world: &World, client: Client, dst: IpAddr, port: u16, protocol: u8) -> Answer {
    let Some((service, index, via)) = owner(world, client, dst, port, protocol) else {
        return Answer::None;
    };
    if via == Via::LoadBalancer && !admitted(service, client, dst.is_ipv4()) {
        return Answer::Forbidden;
    }
    // Rule 5: ClusterIPs follow the internal policy. Every other address follows the external one for clients
    // from outside, and leads everywhere for those inside.
    let local = match (via, client) {
        (Via::ClusterIp, _) => service.internal_local,
        (_, Client::Outside(_)) => service.external_local && matches!(service.kind, "NodePort" | "LoadBalancer"),
        (_, Client::Node | Client::Pod(_)) => false,
    };
    let endpoints = endpoints(world, service.n, index, dst.is_ipv4());
    let all: Vec<&Endpoint> = endpoints.values().collect();
    let pick = |keep: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<(Addr, u16)> {
        endpoints.iter().filter(|(_, e)| keep(e)).map(|(k, _)| *k).collect()
    };
    // Rule 6: the ready ones, else those that serve while they end.
    let sets = match local {
        true => [pick(&|e| here(e) && ready(e)), pick(&|e| here(e) && ending(e))],
        false => [pick(&|e| ready(e) && hinted(&all, e)), pick(&ending)],
    };
    match sets.into_iter().find(|set| !set.is_empty()) {
        Some(set) => Answer::OneOf(set, service.affinity),
        // Rule 7: silence only where somebody else has endpoints.
        None if all.iter().any(|e| ready(e) || ending(e)) => Answer::Silence,
        None => Answer::Refused,
    }
}

/// What the programs read from the maps.
fn actual(kernel: &Kernel, client: Client, dst: IpAddr, port: u16, protocol: u8) -> Answer {
    let Some(frontend) = logic::find(kernel, addr(dst), Port::new(port), protocol, client == Client::Node) else {
        return Answer::None;
    };
    let admitted = match client {
        Client::Node => frontend.flags & (Frontend::SOURCE_RANGES | Frontend::FROM_NODE) != Frontend::SOURCE_RANGES,
        Client::Pod(ip) | Client::Outside(ip) => logic::admits(kernel, &frontend, &addr(ip)),
    };
    if !admitted {
        return Answer::Forbidden;
    }
    let set = match client {
        Client::Outside(_) if frontend.flags & Frontend::EXTERNAL == 0 => return Answer::None,
        Client::Outside(_) => frontend.external,
        Client::Node | Client::Pod(_) => frontend.internal,
    };
    let set = &kernel.0.sets[&set];
    let header = set.header.expect("a header");
    assert_eq!(header.count as usize, set.slots.len());
    let backends: BTreeSet<(Addr, u16)> = set.slots.values().map(|id| kernel.0.backends[id]).map(|b| (b.addr, b.port.get())).collect();
    if backends.is_empty() {
        return if header.flags & BackendSet::DROP_WHEN_EMPTY != 0 { Answer::Silence } else { Answer::Refused };
    }
    let sticky = frontend.flags & Frontend::AFFINITY != 0;
    if sticky {
        assert_eq!(set.members.keys().collect::<BTreeSet<_>>(), set.slots.values().collect::<BTreeSet<_>>());
    }
    Answer::OneOf(backends, sticky.then_some(frontend.affinity_timeout))
}

fn check(kernel: &Kernel, world: &World) {
    let mut addresses: BTreeSet<IpAddr> = NODE_IPS.map(ip).into();
    addresses.extend(["127.0.0.1", "::1", "192.0.2.99"].map(ip));
    let mut ports: BTreeSet<u16> = BTreeSet::from([80, 53, 81]);
    for s in world.services.values() {
        addresses.extend(s.cluster_ips().into_iter().chain(s.externals()).chain(s.balancers()));
        ports.extend((0..PORTS.len()).map(|i| node_port(s.n, i)));
    }
    for dst in addresses {
        let v4 = dst.is_ipv4();
        let of = |v4_ip: &str, v6_ip: &str| ip(if v4 { v4_ip } else { v6_ip });
        let clients = [
            Client::Node,
            Client::Pod(of("10.244.0.200", "fd00:244::200")),
            Client::Outside(of("172.16.0.9", "2001:db8:0:7::9")),
            Client::Outside(of("198.18.0.9", "2001:db8:f::9")),
        ];
        for port in &ports {
            for (client, protocol) in clients.iter().flat_map(|c| [(*c, proto::TCP), (*c, proto::UDP)]) {
                let want = expected(world, client, dst, *port, protocol);
                assert_eq!(actual(kernel, client, dst, *port, protocol), want, "{client:?} asks for {dst} port {port} protocol {protocol}");
            }
        }
    }
    // A backend is called local exactly if its packets end here.
    let own: BTreeSet<Addr> = NODE_IPS.map(|a| addr(ip(a))).into();
    let backends = kernel.0.backends.values();
    assert!(backends.filter(|b| own.contains(&b.addr)).all(|b| b.flags & Backend::LOCAL != 0));
    let used: BTreeSet<u32> = kernel.0.frontends.values().flat_map(|f| [f.internal, f.external]).collect();
    assert!(kernel.0.sets.len() <= used.len() + world.services.len() * PORTS.len() * 4, "sets do not pile up");
    let referred: BTreeSet<u32> = kernel.0.sets.values().flat_map(|s| s.slots.values().copied()).collect();
    let ending = |e: &&Endpoint| ending(e);
    let all = || world.slices.values().flat_map(|s| &s.endpoints);
    let draining: BTreeSet<Addr> = all().filter(ending).flat_map(|e| [true, false].map(|v4| addr(endpoint_ip(e.n, v4)))).collect();
    let known = |(id, backend): (&u32, &Backend)| referred.contains(id) || draining.contains(&backend.addr);
    assert!(kernel.0.backends.iter().all(known), "no backend without a set unless it ends");
    assert!(referred.iter().all(|id| kernel.0.backends.contains_key(id)));
    check_rings(kernel);
}

/// No reader, however timed, finds a frontend without its set, or a slot below the count without its backend.
fn consistent(kernel: &Kernel) {
    for frontend in kernel.0.frontends.values() {
        for id in [frontend.internal, frontend.external].into_iter().filter(|id| *id != 0) {
            let set = kernel.0.sets.get(&id).expect("a frontend's set is there");
            for slot in 0..set.header.expect("a frontend's set has a count").count {
                let backend = set.slots.get(&slot).expect("a slot below the count is there");
                assert!(kernel.0.backends.contains_key(backend), "a slot's backend is there");
            }
        }
        if frontend.flags & Frontend::SOURCE_RANGES != 0 {
            assert!(kernel.0.source_ranges.keys().any(|(_, k): &(u32, SourceRangeKey)| k.service == frontend.service));
        }
    }
}

fn node_state() -> State {
    let mut state = State::new(NODE);
    state.services.ring_size = 251;
    state
}

/// Who has places on a set's ring.
fn on_ring(kernel: &Kernel, set: u32) -> BTreeSet<u32> {
    let Some(ring) = kernel.0.rings.get(&set).map(|r| r.current) else {
        return BTreeSet::new();
    };
    if ring.size == 1 {
        return BTreeSet::from([ring.number]);
    }
    let spec = kernel.0.ring_places[&ring.number].spec.as_ref().expect("a ring that was written");
    spec.members.iter().map(|m| m.id).collect()
}

/// Rings have the backends of their sets, whatever the algorithm asks for, and nothing has a ring for nobody.
fn check_rings(kernel: &Kernel) {
    let mut with_ring = BTreeSet::new();
    for frontend in kernel.0.frontends.values() {
        with_ring.extend((frontend.flags & Frontend::RING != 0).then_some(frontend.external));
        with_ring.extend((frontend.flags & Frontend::RING_INSIDE != 0).then_some(frontend.internal));
        let external = frontend.flags & Frontend::EXTERNAL != 0;
        assert!(frontend.flags & Frontend::RING == 0 || external, "a ring for the outside, at an address that is not for it");
    }
    for set in &with_ring {
        assert_eq!(on_ring(kernel, *set), kernel.0.sets[set].slots.values().copied().collect(), "the ring has the set's backends");
    }
    assert!(kernel.0.rings.keys().all(|set| kernel.0.sets.contains_key(set)), "no ring without a set");
}

fn feed(state: &mut State, world: &World) {
    state.set_node(NodeFacts { name: NODE.into(), zone: Some(ZONE.into()), addresses: NODE_IPS.map(ip).into(), ..NodeFacts::default() });
    for n in 0..3 {
        let service = world.services.get(&n).map(|s| serde_json::from_value(s.object()).expect("a Service"));
        state.services.set_service(Key::new("ns", &format!("s{n}")), service.and_then(|s| input::service(&s)));
        for i in 0..3 {
            let slice = world.slices.get(&(n, i)).map(|s| serde_json::from_value(s.object(n, i)).expect("an EndpointSlice"));
            state.services.set_slice(Key::new("ns", &format!("s{n}-{i}")), slice.and_then(input::slice));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Service>),
    Slice(u8, u8, Option<Slice>),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let service = (0u8..3).prop_flat_map(|n| proptest::option::weighted(0.9, world::service(n)).prop_map(move |s| Step::Service(n, s)));
    let slice = (0u8..3, 0u8..3, proptest::option::weighted(0.9, world::slice())).prop_map(|(n, i, slice)| Step::Slice(n, i, slice));
    prop_oneof![4 => service, 6 => slice, 1 => Just(Step::Restart)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn clients_get_what_the_api_says(steps in proptest::collection::vec(step(), 1..25)) {
        let (mut world, mut kernel, mut state) = (World::default(), Kernel::default(), node_state());
        feed(&mut state, &world);
        kernel.follow(&mut state, consistent);
        for step in steps {
            let restart = matches!(step, Step::Restart);
            match step {
                Step::Service(n, Some(service)) => { world.services.insert(n, service); }
                Step::Service(n, None) => { world.services.remove(&n); }
                Step::Slice(n, i, Some(slice)) => { world.slices.insert((n, i), slice); }
                Step::Slice(n, i, None) => { world.slices.remove(&(n, i)); }
                Step::Restart => {
                    state = node_state();
                    state.load(kernel.contents());
                }
            }
            feed(&mut state, &world);
            let ops = kernel.follow(&mut state, consistent);
            if restart {
                // Sets and ranges of frontends that another Service has may get other numbers: nothing reads them.
                let frontends = kernel.0.frontends.values();
                let read: BTreeSet<u32> = frontends.clone().flat_map(|f| [f.internal, f.external]).collect();
                let services: BTreeSet<u32> = frontends.map(|f| f.service).collect();
                let unread = |op: &Op| match op {
                    Op::Set(set, _) | Op::Rings(set, _) => !read.contains(set),
                    // A ring of one place is no table: its number is the backend's.
                    Op::Ring(ring, _) => kernel.0.rings.iter().all(|(set, r)| {
                        !read.contains(set) || [r.current, r.previous].iter().all(|used| used.size < 2 || used.number != *ring)
                    }),
                    Op::Slot(key, _) => !read.contains(&key.set),
                    Op::Member(key, _) => !read.contains(&key.set),
                    Op::SourceRange((_, key), _) => !services.contains(&key.service),
                    _ => false,
                };
                prop_assert!(ops.iter().all(unread), "a restart changes nothing: {:?}", ops);
            }
            check(&kernel, &world);
            prop_assert_eq!(state.plan(), vec![], "one round is enough");
        }
    }
}

/// Every combination of conditions of an endpoint here and one elsewhere, present or not, under every policy.
#[test]
fn conditions_as_a_truth_table() {
    // 8 is no endpoint at all.
    let conditions = |bits: u8| (bits < 8).then_some([bits & 1 != 0, bits & 2 != 0, bits & 4 != 0]);
    for case in 0..4 * 9 * 9u16 {
        let (policies, a, b) = (case / 81, conditions((case / 9 % 9) as u8), conditions((case % 9) as u8));
        let endpoint = |n, node, c: Option<[bool; 3]>| {
            c.map(|[ready, serving, terminating]| Endpoint {
                n,
                ready: Some(ready),
                serving: Some(serving),
                terminating: Some(terminating),
                node: Some(node),
                zones: Vec::new(),
                nodes: Vec::new(),
            })
        };
        let endpoints: Vec<Endpoint> = endpoint(1, NODE, a).into_iter().chain(endpoint(2, "there", b)).collect();
        let service = Service {
            n: 0,
            kind: "LoadBalancer",
            families: (true, false),
            node_ports: true,
            external_ips: true,
            ingress: Some(true),
            ranges: Vec::new(),
            affinity: None,
            internal_local: policies & 1 != 0,
            external_local: policies & 2 != 0,
            other_proxy: false,
        };
        let slice = Slice { v4: true, numbers: [Some(8080), Some(5353)], endpoints, wrong_family: false };
        let world = World { services: [(0, service)].into(), slices: [((0, 0), slice)].into() };
        let (mut kernel, mut state) = (Kernel::default(), node_state());
        feed(&mut state, &world);
        kernel.follow(&mut state, consistent);
        check(&kernel, &world);
    }
}

/// Some rows of the table as a person reads them, so that the rules above are not only held to themselves.
#[test]
fn conditions_by_hand() {
    const R: [bool; 3] = [true, true, false];
    const DRAINS: [bool; 3] = [false, true, true];
    const GONE: [bool; 3] = [false, false, true];
    const STARTS: [bool; 3] = [false, false, false];
    let one = |n: u8| Answer::OneOf(BTreeSet::from([(addr(endpoint_ip(n, true)), 8080)]), None);
    let both = || Answer::OneOf([1, 2].map(|n| (addr(endpoint_ip(n, true)), 8080)).into(), None);
    // Conditions here, conditions elsewhere: what a ClusterIP gives inside, what a Local NodePort gives outside.
    let rows = [
        (R, R, both(), one(1)),
        (DRAINS, R, one(2), one(1)),
        (GONE, R, one(2), Answer::Silence),
        (STARTS, R, one(2), Answer::Silence),
        (DRAINS, DRAINS, both(), one(1)),
        (GONE, DRAINS, one(2), Answer::Silence),
        (R, DRAINS, one(1), one(1)),
        (STARTS, GONE, Answer::Refused, Answer::Refused),
    ];
    for (a, b, inside, outside) in rows {
        let endpoint = |n, node, [ready, serving, terminating]: [bool; 3]| {
            serde_json::json!({"addresses": [endpoint_ip(n, true)], "nodeName": node,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        };
        let (mut kernel, mut state) = (Kernel::default(), node_state());
        feed(&mut state, &World::default());
        let service = serde_json::from_value(serde_json::json!({"metadata": {"namespace": "ns", "name": "s"}, "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30000}]}}));
        let slice = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "ns", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}], "endpoints": [endpoint(1, NODE, a), endpoint(2, "there", b)]}));
        state.services.set_service(Key::new("ns", "s"), input::service(&service.expect("a Service")));
        state.services.set_slice(Key::new("ns", "s-1"), input::slice(slice.expect("an EndpointSlice")));
        kernel.follow(&mut state, consistent);
        let pod = Client::Pod(ip("10.244.0.200"));
        let client = Client::Outside(ip("198.18.0.9"));
        assert_eq!(actual(&kernel, pod, ip("10.96.0.1"), 80, proto::TCP), inside, "{a:?} here, {b:?} elsewhere");
        assert_eq!(actual(&kernel, client, ip(NODE_IPS[0]), 30000, proto::TCP), outside, "{a:?} here, {b:?} elsewhere");
    }
}

/// What a load balancer counts is ready endpoints of this node, each address once, each family for itself, and only where it may ask.
#[test]
fn health_checks_count_ready_endpoints_of_this_node() {
    let count = |policy: &str, kind: &str, endpoints: serde_json::Value| {
        let mut state = node_state();
        feed(&mut state, &World::default());
        let service = serde_json::json!({"metadata": {"namespace": "ns", "name": "s"}, "spec": {
            "type": kind, "clusterIP": "10.96.0.1", "externalTrafficPolicy": policy, "healthCheckNodePort": 31000,
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}});
        let slice = serde_json::json!({
            "metadata": {"namespace": "ns", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
            "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081}], "endpoints": endpoints});
        let service = serde_json::from_value(service).expect("a Service");
        state.services.set_service(Key::new("ns", "s"), input::service(&service));
        state.services.set_slice(Key::new("ns", "s-1"), input::slice(serde_json::from_value(slice).expect("an EndpointSlice")));
        let slice = serde_json::json!({
            "metadata": {"namespace": "ns", "name": "s-2", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv6",
            "ports": [{"name": "a", "port": 8080}], "endpoints": [{"addresses": ["fd00::9"], "nodeName": NODE, "conditions": {"ready": true}}]});
        state.services.set_slice(Key::new("ns", "s-2"), input::slice(serde_json::from_value(slice).expect("an EndpointSlice")));
        state.services.health_checks().iter().map(|h| (h.port, h.local_endpoints.v4, h.local_endpoints.v6)).collect::<Vec<_>>()
    };
    let endpoint = |n: u8, node: &str, ready: bool, terminating: bool| {
        serde_json::json!({"addresses": [format!("10.244.0.{n}")], "nodeName": node,
            "conditions": {"ready": ready, "serving": true, "terminating": terminating}})
    };
    let some = serde_json::json!([
        endpoint(1, NODE, true, false),
        endpoint(1, NODE, true, false),
        endpoint(2, NODE, true, false),
        endpoint(3, "there", true, false),
        endpoint(4, NODE, false, true),
    ]);
    assert_eq!(count("Local", "LoadBalancer", some.clone()), [(31000, 2, 1)]);
    assert_eq!(count("Local", "LoadBalancer", serde_json::json!([endpoint(4, NODE, false, true)])), [(31000, 0, 1)]);
    assert_eq!(count("Cluster", "LoadBalancer", some.clone()), []);
    assert_eq!(count("Local", "NodePort", some), []);
}

/// Two sandboxes of pods of one name: the port is the newest one's, and goes back when that ends.
#[test]
fn a_host_port_belongs_to_the_last_live_sandbox() {
    let (mut kernel, mut state) = (Kernel::default(), node_state());
    feed(&mut state, &World::default());
    let ports = vec![input::HostPortIn { ip: None, port: 8088, container_port: 80, proto: proto::TCP }];
    let mut owner_is = |state: &mut State, want: Option<u8>| {
        kernel.follow(state, consistent);
        let answer = actual(&kernel, Client::Outside(ip("198.18.0.9")), ip(NODE_IPS[0]), 8088, proto::TCP);
        let want = want.map_or(Answer::None, |n| Answer::OneOf(BTreeSet::from([(addr(endpoint_ip(n, true)), 80)]), None));
        assert_eq!(answer, want);
    };
    let ip_of = |n| vec![endpoint_ip(n, true), endpoint_ip(n, false)];
    state.services.set_host_ports(7, ports.clone(), ip_of(1));
    owner_is(&mut state, Some(1));
    state.services.set_host_ports(8, ports.clone(), ip_of(2));
    owner_is(&mut state, Some(2));
    state.services.set_host_ports(7, Vec::new(), Vec::new());
    owner_is(&mut state, Some(2));
    state.services.set_host_ports(9, ports, ip_of(3));
    state.services.set_host_ports(9, Vec::new(), Vec::new());
    owner_is(&mut state, Some(2));
    state.services.set_host_ports(8, Vec::new(), Vec::new());
    owner_is(&mut state, None);
}
