//! Every program is accepted by the verifier, with room to grow.

use crate::fixture::Dataplane;
use xebec_ebpf_abi::{map, prog};

/// A tenth of the verifier's own limit of a million: growth shows here long before it breaks a load.
const MAX_VERIFIED: u32 = 100_000;

#[test]
fn all_programs_load_within_the_instruction_budget() {
    let dataplane = Dataplane::load();
    let others = [prog::SOCK_RELEASE, prog::ROOT_SOCK_RELEASE, prog::XDP_UPLINK];
    for name in prog::SOCKET.iter().chain(prog::ROOT_SOCKET).chain(prog::TC).chain(&others) {
        let verified = dataplane.verified_instructions(name);
        println!("{name}: {verified} instructions verified");
        assert!(verified < MAX_VERIFIED, "{name} costs {verified} verified instructions");
    }
}

#[test]
fn kernels_without_set_retval_can_load_the_socket_hooks() {
    let dataplane = Dataplane::load_with(|loader| {
        loader.override_global(xebec_ebpf_abi::global::SET_RETVAL, &0u32, true);
    });
    assert!(dataplane.verified_instructions(prog::CONNECT4) > 0);
}

#[test]
fn every_map_is_there_under_its_name_and_pinned() {
    let dataplane = Dataplane::load();
    for name in map::ALL {
        assert!(dataplane.ebpf.map(name).is_some(), "map {name} is missing");
        assert!(dataplane.pin(name).exists(), "map {name} is not pinned");
    }
    // Maps that user space has no business with are not pinned.
    let mut others: Vec<&str> =
        dataplane.ebpf.maps().map(|(name, _)| name).filter(|name| !name.starts_with('.') && !map::ALL.contains(name)).collect();
    others.sort_unstable();
    assert_eq!(others, ["ALLOWANCE", "DECIDED", "HEADERS", "ICMP_BUDGET", "NAT_SCRATCH", "SCRATCH"]);
    assert!(others.iter().all(|name| !dataplane.pin(name).exists()));
}
