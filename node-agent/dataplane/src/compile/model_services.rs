//! Services against the obvious model: which endpoints each frontend leads to, at the end and at every write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use xebec_ebpf_abi::{Addr, Frontend, FrontendKey, Port, proto};

use super::expand::{NodeFacts, addr};
use super::input::{EndpointIn, Key, ServiceIn, ServicePortIn, SliceIn};
use super::model::Kernel;
use super::state::{Op, State};

const NODE: &str = "here";

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<ServiceIn>),
    Slice(u8, u8, Option<Vec<EndpointIn>>),
    Restart,
}

fn service_in(n: u8) -> impl Strategy<Value = ServiceIn> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(move |(np, ext, int_local, ext_local, sticky)| {
        ServiceIn {
            cluster_ips: vec![IpAddr::from([10, 96, 0, n])],
            // Two Services may want the same external address.
            external_ips: if ext { vec![IpAddr::from([203, 0, 113, 1])] } else { Vec::new() },
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: vec![ServicePortIn { name: String::new(), proto: proto::TCP, port: 80, node_port: np.then_some(30000 + u16::from(n)) }],
            affinity: sticky.then_some(600),
            internal_local: int_local,
            external_local: ext_local,
        }
    })
}

fn endpoint_in() -> impl Strategy<Value = EndpointIn> {
    (1u8..6, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(n, ready, serving, terminating, local)| EndpointIn {
        address: IpAddr::from([10, 244, 0, n]),
        ready: ready && !terminating,
        serving: serving || (ready && !terminating),
        terminating,
        // Where an endpoint is belongs to its address.
        node: Some(if n % 2 == 0 || (local && n == 5) { NODE } else { "there" }.into()),
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
    })
}

fn step() -> impl Strategy<Value = Step> {
    let service = (0u8..3).prop_flat_map(|n| proptest::option::weighted(0.8, service_in(n)).prop_map(move |s| Step::Service(n, s)));
    let slice = (0u8..3, 0u8..2, proptest::option::weighted(0.8, proptest::collection::vec(endpoint_in(), 0..4)))
        .prop_map(|(service, slice, endpoints)| Step::Slice(service, slice, endpoints));
    prop_oneof![4 => service, 6 => slice, 1 => Just(Step::Restart)]
}

fn name(n: u8) -> Key {
    Key::new("ns", &format!("s{n}"))
}

fn feed(state: &mut State, services: &BTreeMap<u8, ServiceIn>, slices: &BTreeMap<(u8, u8), Vec<EndpointIn>>) {
    state.set_node(node());
    for n in 0..3 {
        state.services.set_service(name(n), services.get(&n).cloned());
        for s in 0..2 {
            let slice = slices.get(&(n, s)).map(|endpoints| SliceIn {
                service: name(n),
                ports: vec![(String::new(), proto::TCP, 8080)],
                endpoints: endpoints.clone(),
            });
            state.services.set_slice(Key::new("ns", &format!("s{n}-{s}")), slice);
        }
    }
}

fn node() -> NodeFacts {
    NodeFacts { name: NODE.into(), zone: None, addresses: BTreeSet::from([IpAddr::from([192, 0, 2, 1])]) }
}

/// What kube-proxy's rules say: ready endpoints, else those that serve while terminating.
fn expected(endpoints: &[&EndpointIn], local: bool) -> BTreeSet<Addr> {
    let here: Vec<_> = endpoints.iter().filter(|e| !local || e.node.as_deref() == Some(NODE)).collect();
    let ready: BTreeSet<Addr> = here.iter().filter(|e| e.ready).map(|e| addr(e.address)).collect();
    if !ready.is_empty() {
        return ready;
    }
    here.iter().filter(|e| e.serving && e.terminating).map(|e| addr(e.address)).collect()
}

fn backends(kernel: &Kernel, set: u32) -> BTreeSet<Addr> {
    let set = &kernel.0.sets[&set];
    assert_eq!(set.header.map(|h| h.count as usize), Some(set.slots.len()));
    set.slots.values().map(|id| kernel.0.backends[id].addr).collect()
}

/// No reader, however timed, finds a frontend without its set, or a slot below the count without its backend.
fn consistent(kernel: &Kernel) {
    for frontend in kernel.0.frontends.values() {
        for id in [frontend.internal, frontend.external] {
            let set = kernel.0.sets.get(&id).expect("a frontend's set is there");
            for slot in 0..set.header.expect("a frontend's set has a count").count {
                let backend = set.slots.get(&slot).expect("a slot below the count is there");
                assert!(kernel.0.backends.contains_key(backend), "a slot's backend is there");
            }
        }
    }
}

fn check(kernel: &Kernel, services: &BTreeMap<u8, ServiceIn>, slices: &BTreeMap<(u8, u8), Vec<EndpointIn>>) {
    let mut frontends = 0;
    let mut external_taken = false;
    for (n, service) in services {
        let endpoints: Vec<&EndpointIn> = slices.range((*n, 0)..=(*n, 1)).flat_map(|(_, e)| e).collect();
        let (cluster, local) = (expected(&endpoints, false), expected(&endpoints, true));
        let of = |is_local: bool| if is_local { &local } else { &cluster };
        let mut keys = vec![(
            FrontendKey::new(addr(service.cluster_ips[0]), Port::new(80), proto::TCP),
            service.internal_local,
            service.internal_local,
        )];
        if let Some(port) = service.ports[0].node_port {
            keys.push((FrontendKey::node_port(Port::new(port), proto::TCP), false, service.external_local));
        }
        // The first Service in order has an address that several want.
        if !service.external_ips.is_empty() && !external_taken {
            external_taken = true;
            keys.push((FrontendKey::new(addr(service.external_ips[0]), Port::new(80), proto::TCP), false, service.external_local));
        }
        for (key, internal_local, external_local) in keys {
            let frontend = kernel.0.frontends.get(&key).unwrap_or_else(|| panic!("{key:?} is missing"));
            assert_eq!(&backends(kernel, frontend.internal), of(internal_local), "{key:?} inside");
            assert_eq!(&backends(kernel, frontend.external), of(external_local), "{key:?} outside");
            assert_eq!(frontend.flags & Frontend::AFFINITY != 0, service.affinity.is_some());
            let external = kernel.0.sets[&frontend.external].header.expect("a header").flags;
            assert_eq!(
                external != 0,
                external_local && !(cluster.is_empty() && local.is_empty()),
                "dropped, not refused, where others have endpoints"
            );
            if service.affinity.is_some() {
                let set = &kernel.0.sets[&frontend.internal];
                assert_eq!(set.members.keys().collect::<BTreeSet<_>>(), set.slots.values().collect::<BTreeSet<_>>());
            }
            frontends += 1;
        }
    }
    assert_eq!(kernel.0.frontends.len(), frontends, "nothing else is served");
    let used: BTreeSet<u32> = kernel.0.frontends.values().flat_map(|f| [f.internal, f.external]).collect();
    assert!(kernel.0.sets.len() <= used.len() + services.len() * 2);
    let referred: BTreeSet<u32> = kernel.0.sets.values().flat_map(|s| s.slots.values().copied()).collect();
    assert_eq!(kernel.0.backends.keys().copied().collect::<BTreeSet<_>>(), referred, "no backend without a set");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn frontends_lead_where_the_api_says(steps in proptest::collection::vec(step(), 1..25)) {
        let (mut services, mut slices) = (BTreeMap::new(), BTreeMap::new());
        let mut kernel = Kernel::default();
        let mut state = State::new(NODE);
        feed(&mut state, &services, &slices);
        kernel.follow(&mut state, consistent);
        for step in steps {
            let restart = matches!(step, Step::Restart);
            match step {
                Step::Service(n, Some(service)) => { services.insert(n, service); }
                Step::Service(n, None) => { services.remove(&n); }
                Step::Slice(n, s, Some(endpoints)) => { slices.insert((n, s), endpoints); }
                Step::Slice(n, s, None) => { slices.remove(&(n, s)); }
                Step::Restart => {
                    state = State::new(NODE);
                    state.load(kernel.contents());
                }
            }
            feed(&mut state, &services, &slices);
            let ops = kernel.follow(&mut state, consistent);
            if restart {
                // Sets of frontends that another Service has may get other numbers: nothing reads them.
                let read: BTreeSet<u32> = kernel.0.frontends.values().flat_map(|f| [f.internal, f.external]).collect();
                let unread = |op: &Op| match op {
                    Op::Set(set, _) => !read.contains(set),
                    Op::Slot(key, _) => !read.contains(&key.set),
                    Op::Member(key, _) => !read.contains(&key.set),
                    _ => false,
                };
                prop_assert!(ops.iter().all(unread), "a restart changes nothing: {:?}", ops);
            }
            check(&kernel, &services, &slices);
            prop_assert_eq!(state.plan(), vec![], "one round is enough");
        }
    }
}
