//! Precedence, resolved where rules become map entries: the tiers' rules that concern one peer, in their order, become one
//! table in which the narrowest prefix that holds a port decides.
//!
//! Prefixes are disjoint or nested. So the rules that hold a port are those that hold the narrowest prefix any rule names
//! around it, and a verdict worked out once for each named prefix is right for every port.

use std::collections::BTreeMap;

use xebec_ebpf_abi::PolicyVerdict;

use super::cluster::Action;
use super::prefix::Prefix;

/// The rules of a tier of ClusterNetworkPolicies that concern one peer, by what they match: the first of each.
#[derive(Clone, Debug, Default)]
pub struct Tier {
    rules: BTreeMap<Prefix, (u32, Action, u32)>,
}

impl Tier {
    /// Adds a rule behind all before it. `number` names it towards people.
    pub fn push(&mut self, order: u32, prefix: Prefix, action: Action, number: u32) {
        self.rules.entry(prefix).or_insert((order, action, number));
    }

    /// The first rule that holds all of a prefix.
    fn decide(&self, prefix: Prefix) -> Option<(Action, u32)> {
        prefix.up().filter_map(|p| self.rules.get(&p)).min_by_key(|(order, ..)| *order).map(|(_, action, number)| (*action, *number))
    }
}

/// All that decides about one peer in one direction.
#[derive(Clone, Debug, Default)]
pub struct Tiers {
    /// Before NetworkPolicies.
    pub admin: Tier,
    /// What NetworkPolicies allow, with the rule's number; none if none selects the pod for the direction.
    pub network: Option<BTreeMap<Prefix, u32>>,
    /// For what no NetworkPolicy has decided.
    pub baseline: Tier,
}

impl Tiers {
    /// The entries for the peer, the one for everything included.
    pub fn table(&self) -> BTreeMap<Prefix, PolicyVerdict> {
        let named = self.admin.rules.keys().chain(self.baseline.rules.keys()).chain(self.network.iter().flat_map(|n| n.keys()));
        let mut named: Vec<Prefix> = named.copied().chain([Prefix::ALL]).collect();
        // Wide ones first: a narrow one that says the same as the one around it is left out.
        named.sort_unstable();
        named.dedup();
        let mut table = BTreeMap::new();
        for prefix in named {
            let verdict = self.decide(prefix);
            let around = prefix.up().skip(1).find_map(|p| table.get(&p));
            if around != Some(&verdict) {
                table.insert(prefix, verdict);
            }
        }
        table
    }

    fn decide(&self, prefix: Prefix) -> PolicyVerdict {
        let say = |verdict: u32, rule: u32| PolicyVerdict { verdict, rule };
        match self.admin.decide(prefix) {
            Some((Action::Accept, rule)) => return say(PolicyVerdict::ALLOW, rule),
            Some((Action::Deny, rule)) => return say(PolicyVerdict::DENY, rule),
            Some((Action::Pass, _)) | None => {}
        }
        if let Some(allowed) = &self.network {
            return match prefix.up().filter_map(|p| allowed.get(&p)).min() {
                Some(rule) => say(PolicyVerdict::ALLOW, *rule),
                None => say(PolicyVerdict::DENY, 0),
            };
        }
        match self.baseline.decide(prefix) {
            Some((Action::Deny, rule)) => say(PolicyVerdict::DENY, rule),
            Some((Action::Accept | Action::Pass, rule)) => say(PolicyVerdict::ALLOW, rule),
            None => say(PolicyVerdict::ALLOW, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A rule as written: protocol (none: any), ports, action.
    #[derive(Clone, Debug)]
    struct Rule(Option<(u8, Option<(u16, u16)>)>, Action);

    impl Rule {
        fn prefixes(&self) -> Vec<Prefix> {
            match self.0 {
                None => vec![Prefix::ALL],
                Some((proto, None)) => vec![Prefix::protocol(proto)],
                Some((proto, Some((first, last)))) => Prefix::range(proto, first, last).collect(),
            }
        }

        fn meets(&self, proto: u8, port: u16) -> bool {
            self.0.is_none_or(|(p, ports)| p == proto && ports.is_none_or(|(first, last)| (first..=last).contains(&port)))
        }
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let proto = prop_oneof![Just(6u8), Just(17)];
        let ports = proptest::option::of((0u16..40, 0u16..40).prop_map(|(a, b)| (a.min(b), a.max(b))));
        let action = prop_oneof![Just(Action::Accept), Just(Action::Deny), Just(Action::Pass)];
        (proptest::option::weighted(0.8, (proto, ports)), action).prop_map(|(what, action)| Rule(what, action))
    }

    fn tier(rules: &[Rule]) -> Tier {
        let mut tier = Tier::default();
        for (order, rule) in rules.iter().enumerate() {
            rule.prefixes().into_iter().for_each(|p| tier.push(order as u32, p, rule.1, order as u32));
        }
        tier
    }

    /// The order of tiers in the API's words.
    fn may(admin: &[Rule], network: Option<&[Rule]>, baseline: &[Rule], proto: u8, port: u16) -> bool {
        match admin.iter().find(|r| r.meets(proto, port)) {
            Some(Rule(_, Action::Accept)) => return true,
            Some(Rule(_, Action::Deny)) => return false,
            _ => {}
        }
        match network {
            Some(rules) => rules.iter().any(|r| r.meets(proto, port)),
            None => !matches!(baseline.iter().find(|r| r.meets(proto, port)), Some(Rule(_, Action::Deny))),
        }
    }

    proptest! {
        #[test]
        fn the_narrowest_entry_says_what_the_tiers_say(
            admin in proptest::collection::vec(rule(), 0..6),
            network in proptest::option::of(proptest::collection::vec(rule(), 0..4)),
            baseline in proptest::collection::vec(rule(), 0..6),
        ) {
            let allowed = network.as_ref().map(|rules| rules.iter().flat_map(Rule::prefixes).map(|p| (p, 1)).collect());
            let table = Tiers { admin: tier(&admin), network: allowed, baseline: tier(&baseline) }.table();
            for proto in [6, 17, 132] {
                for port in 0..44 {
                    let found = Prefix::port(proto, port).up().find_map(|p| table.get(&p)).expect("an entry for everything");
                    let expected = may(&admin, network.as_deref(), &baseline, proto, port);
                    prop_assert_eq!(found.verdict == PolicyVerdict::ALLOW, expected, "proto {} port {}", proto, port);
                }
            }
        }
    }
}
