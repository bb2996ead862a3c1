//! Who owns whom: the objects of every kind as far as garbage collection cares, and what a change of them asks for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::discovery::{Kind, group_of};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub kind: Arc<Kind>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub owners: Vec<OwnerReference>,
    /// Deletion has begun.
    pub deleting: bool,
    /// Waits for its dependents to go first.
    pub foreground: bool,
    /// Its dependents are to lose it as owner.
    pub orphan: bool,
}

impl Item {
    /// Reads what matters from metadata.
    pub fn new(kind: Arc<Kind>, meta: &ObjectMeta) -> Self {
        let has = |f: &str| meta.finalizers.iter().flatten().any(|x| x == f);
        Item {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
            kind,
        }
    }

    /// Whether its dependents must go before it does.
    pub fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }

    /// Whether it keeps the owner from going as long as it is there.
    pub fn blocks(&self, owner_uid: &str) -> bool {
        self.owners.iter().any(|o| o.uid == owner_uid && o.block_owner_deletion == Some(true))
    }

    /// Whether `reference`, found on an object of `namespace`, means this object.
    pub fn is(&self, reference: &OwnerReference, namespace: &str) -> bool {
        self.uid == reference.uid
            && self.name == reference.name
            && self.kind.kind == reference.kind
            && self.kind.group == group_of(&reference.api_version)
            && (!self.kind.namespaced || self.namespace == namespace)
    }
}

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Should this object be deleted, or may it go at last?
    Delete(String),
    /// Take this object from the owners of its dependents.
    Orphan(String),
}

/// All objects, by uid.
#[derive(Debug, Default)]
pub struct Graph {
    items: HashMap<String, Item>,
    /// Objects that name this uid as owner, whether or not the owner is known.
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// The object with this uid.
    pub fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// The objects that name this uid as owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Item> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|d| self.items.get(d))
    }

    /// Uids of one kind.
    pub fn of_kind(&self, kind: &Kind) -> Vec<String> {
        self.items.values().filter(|i| *i.kind == *kind).map(|i| i.uid.clone()).collect()
    }

    /// Every uid that has an owner or waits for something.
    pub fn interesting(&self) -> Vec<String> {
        self.items.values().filter(|i| !i.owners.is_empty() || i.deleting).map(|i| i.uid.clone()).collect()
    }

    /// Takes in a new or changed object.
    pub fn apply(&mut self, item: Item) -> Vec<Work> {
        let mut work = Vec::new();
        let uid = item.uid.clone();
        let old = self.items.get(&uid).cloned();
        let old_owners = old.as_ref().map(|o| o.owners.clone()).unwrap_or_default();
        for gone in old_owners.iter().filter(|o| !item.owners.iter().any(|n| n.uid == o.uid)) {
            self.unlink(&gone.uid, &uid);
            work.extend(self.wake_waiting(&gone.uid));
        }
        for owner in &item.owners {
            let before = old_owners.iter().find(|o| o.uid == owner.uid);
            if before.is_none() {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            }
            let unblocked = before.is_some_and(|b| b.block_owner_deletion == Some(true)) && owner.block_owner_deletion != Some(true);
            if unblocked {
                work.extend(self.wake_waiting(&owner.uid));
            }
            let sound = self.items.get(&owner.uid).is_some_and(|o| !o.deleting && o.is(owner, &item.namespace));
            if !sound && (old.is_none() || before.is_none()) {
                work.push(Work::Delete(uid.clone()));
            }
        }
        let newly = |f: fn(&Item) -> bool| f(&item) && !old.as_ref().is_some_and(f);
        if newly(|i| i.deleting && i.orphan) {
            work.push(Work::Orphan(uid.clone()));
        }
        if newly(Item::waits_for_dependents) {
            work.extend(self.dependents.get(&uid).into_iter().flatten().cloned().map(Work::Delete));
            work.push(Work::Delete(uid.clone()));
        }
        self.items.insert(uid, item);
        work
    }

    /// Takes in that an object is gone.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        let mut work: Vec<Work> = self.dependents.get(uid).into_iter().flatten().cloned().map(Work::Delete).collect();
        for owner in &item.owners {
            self.unlink(&owner.uid, uid);
            work.extend(self.wake_waiting(&owner.uid));
        }
        work
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(d) = self.dependents.get_mut(owner) {
            d.remove(dependent);
            if d.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn wake_waiting(&self, owner: &str) -> Option<Work> {
        self.items.get(owner).filter(|o| o.waits_for_dependents()).map(|o| Work::Delete(o.uid.clone()))
    }

    /// What an owner's graph entry says, if that is enough to decide; else the API must be asked.
    pub fn known_owner(&self, reference: &OwnerReference, namespace: &str) -> Option<OwnerState> {
        let owner = self.items.get(&reference.uid)?;
        (owner.is(reference, namespace) && !owner.deleting).then_some(OwnerState::Solid)
    }
}

/// What an owner is to its dependent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// There and staying (or going without caring for its dependents yet).
    Solid,
    /// Not there.
    Dangling,
    /// Waits for its dependents to go before it does.
    Waiting,
}

/// What happens to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// It loses these owners and stays for the sake of another one.
    DropOwners(Vec<String>),
    /// It is deleted; with `unblock` it first stops blocking its owners.
    Delete { policy: Policy, unblock: bool },
}

/// How the dependents of a deleted object fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// Decides about an object that is not being deleted, from the state of each of its owners.
pub fn verdict(graph: &Graph, item: &Item, owners: &[(OwnerReference, OwnerState)]) -> Verdict {
    let with = |s: OwnerState| owners.iter().filter(move |(_, state)| *state == s).map(|(o, _)| o.uid.clone());
    if owners.is_empty() {
        return Verdict::Keep;
    }
    let lost: Vec<String> = with(OwnerState::Dangling).chain(with(OwnerState::Waiting)).collect();
    if with(OwnerState::Solid).next().is_some() {
        return if lost.is_empty() { Verdict::Keep } else { Verdict::DropOwners(lost) };
    }
    let mut dependents = graph.dependents(&item.uid).peekable();
    if with(OwnerState::Waiting).next().is_some() && dependents.peek().is_some() {
        // A dependent that waits itself may be the owner's owner: in a ring nobody would ever be first.
        let unblock = dependents.any(Item::waits_for_dependents);
        return Verdict::Delete { policy: Policy::Foreground, unblock };
    }
    let policy = match (item.orphan, item.foreground) {
        (true, _) => Policy::Orphan,
        (false, true) => Policy::Foreground,
        (false, false) => Policy::Background,
    };
    Verdict::Delete { policy, unblock: false }
}
