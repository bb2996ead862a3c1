//! Who is behind an address, as a node-local number: everything a policy can ask about it, interned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use xebec_ebpf_abi::identity::FIRST_FREE;

use super::input::{Key, Labels, PodIn};

/// All that policies can tell addresses apart by. Two addresses with the same facts are the same peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Facts {
    /// The pod, if it is one.
    pub pod: Option<PodFacts>,
    /// The address is one of this node.
    pub host: bool,
    /// The address is one of another node.
    pub remote_node: bool,
    /// Labels of the node whose address it is, while a policy asks for them.
    pub node: Option<Labels>,
    /// Blocks named in policies that the address lies in.
    pub blocks: BTreeSet<IpNet>,
}

/// What policies see of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its named ports.
    pub named_ports: BTreeMap<String, (u8, u16)>,
}

impl PodFacts {
    /// Of a pod.
    pub fn new(key: &Key, pod: &PodIn) -> PodFacts {
        PodFacts { namespace: key.namespace.clone(), labels: pod.labels.clone(), named_ports: pod.named_ports.clone() }
    }
}

/// Blocks named in policies, with how often.
#[derive(Clone, Debug, Default)]
pub struct Blocks(BTreeMap<IpNet, usize>);

impl Blocks {
    /// One more mention; true if it is the first.
    pub fn add(&mut self, net: IpNet) -> bool {
        let mentions = self.0.entry(net).or_insert(0);
        *mentions += 1;
        *mentions == 1
    }

    /// One less; true if it was the last.
    pub fn remove(&mut self, net: &IpNet) -> bool {
        match self.0.get_mut(net) {
            Some(mentions) if *mentions > 1 => {
                *mentions -= 1;
                false
            }
            Some(_) => self.0.remove(net).is_some(),
            None => false,
        }
    }

    /// Blocks that hold all of `net`.
    pub fn covering(&self, net: IpNet) -> BTreeSet<IpNet> {
        // One lookup for each shorter prefix: the cost does not grow with the number of blocks.
        let supernets = (0..=net.prefix_len()).filter_map(|len| IpNet::new(net.addr(), len).ok()).map(|n| n.trunc());
        supernets.filter(|n| self.0.contains_key(n)).collect()
    }

    /// Every block.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.0.keys().copied()
    }
}

/// An address as a net of its own.
pub fn host_net(ip: IpAddr) -> IpNet {
    IpNet::from(ip.to_canonical())
}

/// Numbers and what they stand for, counted by users.
#[derive(Default)]
pub struct Identities {
    numbers: BTreeMap<Facts, u32>,
    facts: BTreeMap<u32, (Facts, usize)>,
    by_block: BTreeMap<IpNet, BTreeSet<u32>>,
    by_namespace: BTreeMap<String, BTreeSet<u32>>,
    next: u32,
}

impl Identities {
    /// Fresh numbers start above those the kernel holds from before.
    pub fn start_above(&mut self, number: u32) {
        self.next = self.next.max(number);
    }

    /// The number for these facts, one user more. `hint` is the number the kernel has at the address: kept if
    /// nothing else has it, so that a restart changes nothing. True if the number is new.
    pub fn hold(&mut self, facts: &Facts, hint: Option<u32>) -> (u32, bool) {
        if let Some(number) = self.numbers.get(facts) {
            if let Some((_, users)) = self.facts.get_mut(number) {
                *users += 1;
            }
            return (*number, false);
        }
        let number = match hint.filter(|h| *h >= FIRST_FREE && !self.facts.contains_key(h)) {
            Some(hint) => hint,
            None => loop {
                self.next = self.next.wrapping_add(1).max(FIRST_FREE);
                if !self.facts.contains_key(&self.next) {
                    break self.next;
                }
            },
        };
        self.numbers.insert(facts.clone(), number);
        self.facts.insert(number, (facts.clone(), 1));
        for block in &facts.blocks {
            self.by_block.entry(*block).or_default().insert(number);
        }
        if let Some(pod) = &facts.pod {
            self.by_namespace.entry(pod.namespace.clone()).or_default().insert(number);
        }
        (number, true)
    }

    /// One user less; the facts if it was the last.
    pub fn release(&mut self, number: u32) -> Option<Facts> {
        let (_, users) = self.facts.get_mut(&number)?;
        *users -= 1;
        if *users > 0 {
            return None;
        }
        let (facts, _) = self.facts.remove(&number)?;
        self.numbers.remove(&facts);
        for block in &facts.blocks {
            leave(&mut self.by_block, block, number);
        }
        if let Some(pod) = &facts.pod {
            leave(&mut self.by_namespace, &pod.namespace, number);
        }
        Some(facts)
    }

    /// What a number stands for.
    pub fn get(&self, number: u32) -> Option<&Facts> {
        self.facts.get(&number).map(|(f, _)| f)
    }

    /// Identities whose addresses lie in a block that policies name.
    pub fn within(&self, block: &IpNet) -> impl Iterator<Item = (u32, &Facts)> {
        self.listed(self.by_block.get(block))
    }

    /// Identities of pods of a namespace.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = (u32, &Facts)> {
        self.listed(self.by_namespace.get(namespace))
    }

    fn listed<'a>(&'a self, numbers: Option<&'a BTreeSet<u32>>) -> impl Iterator<Item = (u32, &'a Facts)> {
        numbers.into_iter().flatten().filter_map(|n| Some((*n, self.get(*n)?)))
    }

    /// Every identity.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Facts)> {
        self.facts.iter().map(|(n, (f, _))| (*n, f))
    }
}

fn leave<K: Ord>(index: &mut BTreeMap<K, BTreeSet<u32>>, key: &K, number: u32) {
    if let Some(numbers) = index.get_mut(key) {
        numbers.remove(&number);
        if numbers.is_empty() {
            index.remove(key);
        }
    }
}
