//! Which addresses a Service gets. Pure: what is assigned is read from the statuses of all Services.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use xebec_loops::Key;
use xebec_loops::meta::annotation;

use super::pool::Pool;

/// Addresses a Service asks for, separated by commas.
pub const REQUEST: &str = "xebec.dev/lb-ips";
/// Services with the same value may have one address if no port is wanted twice.
pub const SHARING: &str = "xebec.dev/lb-sharing-key";

/// What of a Service the choice depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    pub key: Key,
    /// Age: who came first keeps what two have.
    pub created: String,
    /// IPv4?
    pub families: Vec<bool>,
    pub requested: Vec<IpAddr>,
    /// What of the request is no address.
    pub misread: Option<String>,
    pub sharing: Option<String>,
    pub ports: BTreeSet<(String, i32)>,
    /// Announced only by nodes with endpoints: then one address cannot serve two Services.
    pub local: bool,
    pub labels: BTreeMap<String, String>,
    /// Addresses in its status.
    pub held: Vec<IpAddr>,
}

impl Claim {
    pub fn of(service: &Service) -> Claim {
        let spec = service.spec.clone().unwrap_or_default();
        let meta = &service.metadata;
        let mut requested = Vec::new();
        let mut misread = None;
        let asked = annotation(meta, REQUEST).map(str::to_owned).or(spec.load_balancer_ip).unwrap_or_default();
        for text in asked.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            match text.parse() {
                Ok(ip) => requested.push(ip),
                Err(_) => misread = Some(text.to_owned()),
            }
        }
        let mut families: Vec<bool> = spec.ip_families.iter().flatten().map(|f| f != "IPv6").collect();
        if families.is_empty() {
            families.push(!spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':')));
        }
        let ports = spec.ports.iter().flatten();
        let ingress = service.status.iter().flat_map(|s| &s.load_balancer).flat_map(|l| l.ingress.iter().flatten());
        Claim {
            key: Key::of(service),
            created: meta.creation_timestamp.as_ref().map(|t| t.0.to_string()).unwrap_or_default(),
            families,
            requested,
            misread,
            sharing: annotation(meta, SHARING).filter(|k| !k.is_empty()).map(str::to_owned),
            ports: ports.map(|p| (p.protocol.clone().unwrap_or_else(|| "TCP".into()), p.port)).collect(),
            local: spec.external_traffic_policy.as_deref() == Some("Local"),
            labels: meta.labels.clone().unwrap_or_default(),
            held: ingress.filter_map(|i| i.ip.as_ref()?.parse().ok()).collect(),
        }
    }

    fn may_share_with(&self, other: &Claim) -> bool {
        self.sharing.is_some() && self.sharing == other.sharing && !self.local && !other.local && self.ports.is_disjoint(&other.ports)
    }

    /// Whether another Service keeps this one from an address.
    fn is_blocked_by(&self, other: &Claim, ip: IpAddr) -> bool {
        let older = (&other.created, &other.key) < (&self.created, &self.key);
        other.key != self.key && other.held.contains(&ip) && !self.may_share_with(other) && (older || !self.held.contains(&ip))
    }
}

/// Why a Service does not get all it wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// The request names something that is no address.
    Misread(String),
    /// The address is in no pool for this Service.
    NotInPool(IpAddr),
    /// Another Service has the address and does not share it.
    Taken(IpAddr, Key),
    /// Every pool for this Service is used up, or there is none.
    Exhausted { v4: bool, pools: usize },
}

impl Problem {
    /// For conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Problem::Misread(_) => "AddressInvalid",
            Problem::NotInPool(_) => "AddressNotInPool",
            Problem::Taken(..) => "AddressInUse",
            Problem::Exhausted { pools: 0, .. } => "NoPool",
            Problem::Exhausted { .. } => "PoolExhausted",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |v4: &bool| if *v4 { "IPv4" } else { "IPv6" };
        match self {
            Problem::Misread(text) => write!(f, "{text:?} is no address; {REQUEST} takes addresses separated by commas"),
            Problem::NotInPool(ip) => write!(f, "{ip} is in no enabled LoadBalancerPool whose serviceSelector matches this Service"),
            Problem::Taken(ip, by) => write!(f, "{ip} is assigned to Service {by}, and the two do not share it (annotation {SHARING})"),
            Problem::Exhausted { v4, pools: 0 } => {
                write!(f, "no enabled LoadBalancerPool with {} addresses has a serviceSelector that matches this Service", family(v4))
            }
            Problem::Exhausted { v4, pools } => {
                write!(f, "no {} address is free in the {pools} LoadBalancerPools for this Service", family(v4))
            }
        }
    }
}

/// What a Service gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment {
    /// At most one of each family, in the order of the Service's families.
    pub addresses: Vec<IpAddr>,
    pub problem: Option<Problem>,
}

/// Decides for one Service, beside all others. What it has it keeps while that is still right.
pub fn assign(claim: &Claim, pools: &[Pool], others: &[Claim]) -> Assignment {
    let mut result = Assignment { addresses: Vec::new(), problem: claim.misread.clone().map(Problem::Misread) };
    for v4 in &claim.families {
        match of_family(claim, *v4, pools, others) {
            Ok(ip) => result.addresses.push(ip),
            Err(problem) => result.problem = result.problem.or(Some(problem)),
        }
    }
    result
}

fn of_family(claim: &Claim, v4: bool, pools: &[Pool], others: &[Claim]) -> Result<IpAddr, Problem> {
    let mine: Vec<&Pool> = pools.iter().filter(|p| p.selector.matches(Some(&claim.labels))).collect();
    let blocker = |ip: IpAddr| others.iter().find(|o| claim.is_blocked_by(o, ip));
    let held = claim.held.iter().copied().find(|ip| ip.is_ipv4() == v4);
    // A disabled pool gives nothing, but takes nothing away.
    let may_have = |ip: IpAddr| mine.iter().any(|p| p.contains(ip) && (!p.disabled || held == Some(ip)));
    if let Some(ip) = claim.requested.iter().copied().find(|ip| ip.is_ipv4() == v4) {
        return match blocker(ip) {
            _ if !may_have(ip) => Err(Problem::NotInPool(ip)),
            Some(by) => Err(Problem::Taken(ip, by.key.clone())),
            None => Ok(ip),
        };
    }
    if let Some(ip) = held.filter(|ip| may_have(*ip) && blocker(*ip).is_none()) {
        return Ok(ip);
    }
    let shared = others.iter().filter(|o| claim.may_share_with(o)).flat_map(|o| &o.held);
    if let Some(ip) = shared.copied().find(|ip| ip.is_ipv4() == v4 && may_have(*ip) && blocker(*ip).is_none()) {
        return Ok(ip);
    }
    let taken: BTreeSet<IpAddr> = others.iter().flat_map(|o| o.held.iter().copied()).collect();
    let giving: Vec<&&Pool> = mine.iter().filter(|p| !p.disabled && p.ranges.iter().any(|r| r.v4 == v4)).collect();
    let mut free = giving.iter().flat_map(|p| &p.ranges).filter(|r| r.v4 == v4).flat_map(|r| r.addresses());
    free.find(|ip| !taken.contains(ip)).ok_or(Problem::Exhausted { v4, pools: giving.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, from_value, json};

    fn pool(name: &str, spec: Value) -> Pool {
        Pool::of(&from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn service(name: &str, annotations: Value, held: &[&str]) -> Claim {
        Claim::of(
            &from_value(json!({
                "metadata": {"name": name, "namespace": "n", "annotations": annotations, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
                "status": {"loadBalancer": {"ingress": held.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}},
            }))
            .unwrap(),
        )
    }

    fn got(claim: &Claim, pools: &[Pool], others: &[Claim]) -> Result<String, &'static str> {
        let Assignment { addresses, problem } = assign(claim, pools, others);
        match problem {
            None => Ok(addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")),
            Some(problem) => Err(problem.reason()),
        }
    }

    #[test]
    fn the_first_free_address_is_given_and_kept() {
        let pools = [pool("a", json!({"cidrs": ["192.0.2.0/30"]}))];
        let first = service("s", json!({}), &[]);
        assert_eq!(got(&first, &pools, &[]), Ok("192.0.2.1".into()));
        let other = service("o", json!({}), &["192.0.2.1"]);
        assert_eq!(got(&first, &pools, std::slice::from_ref(&other)), Ok("192.0.2.2".into()));
        assert_eq!(got(&service("s", json!({}), &["192.0.2.2"]), &pools, &[]), Ok("192.0.2.2".into()));
        let full = [other, service("p", json!({}), &["192.0.2.2"])];
        assert_eq!(got(&first, &pools, &full), Err("PoolExhausted"));
        // What left the pool is given back.
        assert_eq!(got(&service("s", json!({}), &["198.51.100.9"]), &pools, &[]), Ok("192.0.2.1".into()));
        assert_eq!(got(&first, &[], &[]), Err("NoPool"));
    }

    #[test]
    fn a_disabled_pool_keeps_what_it_gave() {
        let pools = [pool("a", json!({"cidrs": ["192.0.2.0/24"], "disabled": true}))];
        assert_eq!(got(&service("s", json!({}), &["192.0.2.7"]), &pools, &[]), Ok("192.0.2.7".into()));
        assert_eq!(got(&service("s", json!({}), &[]), &pools, &[]), Err("NoPool"));
        assert_eq!(got(&service("s", json!({REQUEST: "192.0.2.8"}), &["192.0.2.7"]), &pools, &[]), Err("AddressNotInPool"));
    }

    #[test]
    fn requests_are_honoured_or_refused_with_a_reason() {
        let selective = json!({"cidrs": ["192.0.3.0/24"], "serviceSelector": {"matchLabels": {"tier": "gold"}}});
        let pools = [pool("a", json!({"cidrs": ["192.0.2.0/24"]})), pool("b", selective)];
        let asks = |ip: &str| service("s", json!({REQUEST: ip}), &[]);
        assert_eq!(got(&asks("192.0.2.99"), &pools, &[]), Ok("192.0.2.99".into()));
        assert_eq!(got(&asks("192.0.3.99"), &pools, &[]), Err("AddressNotInPool"));
        assert_eq!(got(&asks("203.0.113.1"), &pools, &[]), Err("AddressNotInPool"));
        assert_eq!(got(&asks("192.0.2.9 9"), &pools, &[]), Err("AddressInvalid"));
        assert_eq!(got(&asks("192.0.2.99"), &pools, &[service("o", json!({}), &["192.0.2.99"])]), Err("AddressInUse"));
        let mut gold = asks("192.0.3.99");
        gold.labels.insert("tier".into(), "gold".into());
        assert_eq!(got(&gold, &pools, &[]), Ok("192.0.3.99".into()));
        let by_field = from_value(json!({"spec": {"loadBalancerIP": "192.0.2.50", "ipFamilies": ["IPv4"]}})).unwrap();
        assert_eq!(got(&Claim::of(&by_field), &pools, &[]), Ok("192.0.2.50".into()));
    }

    #[test]
    fn one_address_serves_two_services_that_agree_and_differ_in_ports() {
        let pools = [pool("a", json!({"cidrs": ["192.0.2.0/24"]}))];
        let key = json!({SHARING: "k"});
        let holder = [service("o", key.clone(), &["192.0.2.5"])];
        let mut second = service("s", key.clone(), &[]);
        assert_eq!(got(&second, &pools, &holder), Ok("192.0.2.1".into()), "the same port");
        second.ports = [("UDP".to_owned(), 80)].into();
        assert_eq!(got(&second, &pools, &holder), Ok("192.0.2.5".into()));
        second.local = true;
        assert_eq!(got(&second, &pools, &holder), Ok("192.0.2.1".into()), "announced from elsewhere");
        second.local = false;
        second.sharing = Some("other".into());
        assert_eq!(got(&second, &pools, &holder), Ok("192.0.2.1".into()));
        // Two that hold one address and stopped agreeing: who is older keeps it.
        let late = service("z", json!({}), &["192.0.2.5"]);
        assert_eq!(got(&late, &pools, &holder), Ok("192.0.2.1".into()));
        assert_eq!(got(&holder[0], &pools, std::slice::from_ref(&late)), Ok("192.0.2.5".into()));
    }

    #[test]
    fn both_families_are_served_and_one_may_fail_alone() {
        let mut dual = service("s", json!({REQUEST: "192.0.2.9"}), &[]);
        dual.families = vec![false, true];
        let pools = [pool("a", json!({"cidrs": ["192.0.2.0/24", "2001:db8::/64"]}))];
        assert_eq!(got(&dual, &pools, &[]), Ok("2001:db8::1,192.0.2.9".into()));
        let v4 = [pool("a", json!({"cidrs": ["192.0.2.0/24"]}))];
        let part = assign(&dual, &v4, &[]);
        assert_eq!((part.addresses.len(), part.problem.map(|p| p.reason())), (1, Some("NoPool")));
    }

    proptest! {
        /// Rounds of arrivals, departures and changed wishes, each Service decided in turn: nobody ever shares
        /// what may not be shared, and a settled Service is not moved.
        #[test]
        fn nobody_has_what_another_has(
            rounds in prop::collection::vec((0..6usize, any::<bool>(), prop::option::of(1..6u8), prop::option::of(0..2u8), 80..82i32), 1..40),
        ) {
            let pools = [pool("a", json!({"ranges": [{"start": "192.0.2.1", "stop": "192.0.2.4"}]}))];
            let mut live: BTreeMap<usize, Claim> = BTreeMap::new();
            for (n, present, wish, sharing, port) in rounds {
                if !present {
                    live.remove(&n);
                    continue;
                }
                let held = live.get(&n).map(|c| c.held.clone()).unwrap_or_default();
                let mut claim = service(&format!("s{n}"), json!({}), &[]);
                claim.requested = wish.map(|w| IpAddr::from([192, 0, 2, w])).into_iter().collect();
                claim.sharing = sharing.map(|s| s.to_string());
                claim.ports = [("TCP".to_owned(), port)].into();
                claim.held = held;
                live.insert(n, claim);
                for turn in [0, 1] {
                    for n in live.keys().copied().collect::<Vec<_>>() {
                        let others: Vec<Claim> = live.values().filter(|c| c.key != live[&n].key).cloned().collect();
                        let decided = assign(&live[&n], &pools, &others).addresses;
                        if turn == 1 {
                            let had = live[&n].held.clone();
                            prop_assert!(had.is_empty() || decided == had, "{} was moved", live[&n].key);
                        }
                        live.get_mut(&n).unwrap().held = decided;
                    }
                }
                for (a, b) in live.values().flat_map(|a| live.values().map(move |b| (a, b))).filter(|(a, b)| a.key < b.key) {
                    let both = a.held.iter().any(|ip| b.held.contains(ip));
                    prop_assert!(!both || a.may_share_with(b), "{} and {} have one address", a.key, b.key);
                }
            }
        }
    }
}
