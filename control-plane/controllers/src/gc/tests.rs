//! The collector's decisions against a model of the API: random owners, random deletions, everything must settle right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use proptest::prelude::*;

use super::graph::{Graph, Item, OwnerState, Policy, Verdict, Work, verdict};
use crate::discovery::Kind;

/// Objects as the API server would keep them, and the graph fed by its changes.
struct World {
    kind: Arc<Kind>,
    objects: BTreeMap<String, Item>,
    graph: Graph,
    work: VecDeque<Work>,
}

impl World {
    fn new() -> Self {
        let kind = Kind {
            group: String::new(),
            version: "v1".into(),
            kind: "Thing".into(),
            plural: "things".into(),
            namespaced: true,
            delete_collection: true,
            watch: true,
        };
        World { kind: Arc::new(kind), objects: BTreeMap::new(), graph: Graph::default(), work: VecDeque::new() }
    }

    fn create(&mut self, name: &str, owners: &[(String, bool)]) {
        let reference = |(owner, block): &(String, bool)| OwnerReference {
            api_version: "v1".into(),
            kind: "Thing".into(),
            name: owner.clone(),
            uid: owner.clone(),
            block_owner_deletion: Some(*block),
            controller: None,
        };
        let item = Item {
            kind: self.kind.clone(),
            namespace: "n".into(),
            name: name.into(),
            uid: name.into(),
            owners: owners.iter().map(reference).collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        };
        self.write(item);
    }

    /// What the API server does with an object that is being deleted and has no finalizer left: it is gone.
    fn write(&mut self, item: Item) {
        let work = if item.deleting && !item.foreground && !item.orphan {
            self.objects.remove(&item.uid);
            self.graph.remove(&item.uid)
        } else {
            self.objects.insert(item.uid.clone(), item.clone());
            self.graph.apply(item)
        };
        self.work.extend(work);
    }

    fn delete(&mut self, uid: &str, policy: Policy) {
        let Some(mut item) = self.objects.get(uid).cloned() else { return };
        item.deleting = true;
        item.foreground = policy == Policy::Foreground;
        item.orphan = policy == Policy::Orphan;
        self.write(item);
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some(work) = self.work.pop_front() else { return };
            match work {
                Work::Delete(uid) => self.attempt_delete(&uid),
                Work::Orphan(uid) => {
                    let dependents: Vec<String> = self.graph.dependents(&uid).map(|d| d.uid.clone()).collect();
                    for d in dependents {
                        let mut item = self.objects[&d].clone();
                        item.owners.retain(|o| o.uid != uid);
                        self.write(item);
                    }
                    let mut item = self.objects[&uid].clone();
                    item.orphan = false;
                    self.write(item);
                }
            }
        }
        panic!("the collector does not come to rest");
    }

    fn attempt_delete(&mut self, uid: &str) {
        let Some(item) = self.objects.get(uid).cloned() else { return };
        if item.waits_for_dependents() {
            let blocking: Vec<Item> = self.graph.dependents(uid).filter(|d| d.blocks(uid)).cloned().collect();
            if blocking.is_empty() {
                self.write(Item { foreground: false, ..item });
            } else {
                let waiting = blocking.iter().filter(|d| !d.waits_for_dependents());
                self.work.extend(waiting.map(|d| Work::Delete(d.uid.clone())));
            }
            return;
        }
        if item.deleting {
            return;
        }
        let state = |o: &OwnerReference| match self.objects.get(&o.uid) {
            None => OwnerState::Dangling,
            Some(o) if o.waits_for_dependents() => OwnerState::Waiting,
            Some(_) => OwnerState::Solid,
        };
        let owners: Vec<_> = item.owners.iter().map(|o| (o.clone(), state(o))).collect();
        match verdict(&self.graph, &item, &owners) {
            Verdict::Keep => {}
            Verdict::DropOwners(uids) => {
                let mut item = item;
                item.owners.retain(|o| !uids.contains(&o.uid));
                self.write(item);
            }
            Verdict::Delete { policy, unblock } => {
                if unblock {
                    let mut item = item.clone();
                    item.owners.iter_mut().for_each(|o| o.block_owner_deletion = Some(false));
                    self.write(item);
                }
                self.delete(uid, policy);
            }
        }
    }

    fn names(&self) -> BTreeSet<&str> {
        self.objects.keys().map(String::as_str).collect()
    }
}

fn chain() -> World {
    let mut w = World::new();
    w.create("deployment", &[]);
    w.create("set", &[("deployment".into(), true)]);
    w.create("pod", &[("set".into(), true)]);
    w.settle();
    assert_eq!(w.names().len(), 3);
    w
}

#[test]
fn background_deletes_everything_below() {
    let mut w = chain();
    w.delete("deployment", Policy::Background);
    assert_eq!(w.names(), ["pod", "set"].into(), "the owner goes at once");
    w.settle();
    assert_eq!(w.names(), [].into());
}

#[test]
fn foreground_deletes_the_owner_last() {
    let mut w = chain();
    w.delete("deployment", Policy::Foreground);
    assert!(w.names().contains("deployment"), "the owner waits");
    w.settle();
    assert_eq!(w.names(), [].into());
}

#[test]
fn orphan_keeps_what_is_below() {
    let mut w = chain();
    w.delete("deployment", Policy::Orphan);
    w.settle();
    assert_eq!(w.names(), ["pod", "set"].into());
    assert!(w.objects["set"].owners.is_empty());
}

#[test]
fn an_object_with_another_owner_stays() {
    let mut w = chain();
    w.create("other", &[]);
    w.create("shared", &[("set".into(), true), ("other".into(), true)]);
    w.delete("deployment", Policy::Background);
    w.settle();
    assert_eq!(w.names(), ["other", "shared"].into());
    assert_eq!(w.objects["shared"].owners.len(), 1);
}

#[test]
fn an_object_born_to_a_dead_owner_goes() {
    let mut w = World::new();
    w.create("late", &[("never-was".into(), false)]);
    w.settle();
    assert_eq!(w.names(), [].into());
}

#[test]
fn a_ring_of_owners_goes_too() {
    let mut w = World::new();
    w.create("a", &[]);
    w.create("b", &[("a".into(), true)]);
    let mut a = w.objects["a"].clone();
    a.owners = w.objects["b"].owners.iter().map(|o| OwnerReference { name: "b".into(), uid: "b".into(), ..o.clone() }).collect();
    w.write(a);
    w.settle();
    w.delete("a", Policy::Foreground);
    w.settle();
    assert_eq!(w.names(), [].into());
}

proptest! {
    /// Owners always come before their dependents, as in real life. After deleting some objects, exactly those stay
    /// that are reachable from a kept root or were orphaned.
    #[test]
    fn everything_settles(
        parents in prop::collection::vec(prop::collection::vec((0..12_usize, any::<bool>()), 0..3), 1..12),
        deletions in prop::collection::vec((0..12_usize, 0..2_u8), 0..4),
    ) {
        let mut w = World::new();
        for (i, owners) in parents.iter().enumerate() {
            let owners: BTreeMap<usize, bool> = owners.iter().filter(|(o, _)| *o < i).copied().collect();
            let owners: Vec<_> = owners.into_iter().map(|(o, b)| (format!("o{o:02}"), b)).collect();
            w.create(&format!("o{i:02}"), &owners);
        }
        w.settle();
        let deleted: BTreeSet<String> = deletions.iter().map(|(i, _)| format!("o{i:02}")).collect();
        let before: Vec<Item> = w.objects.values().cloned().collect();
        for (i, policy) in &deletions {
            let policy = if *policy == 0 { Policy::Background } else { Policy::Foreground };
            w.delete(&format!("o{i:02}"), policy);
            w.settle();
        }
        let mut alive: BTreeSet<String> = BTreeSet::new();
        for item in &before {
            let rooted = item.owners.is_empty() || item.owners.iter().any(|o| alive.contains(&o.uid));
            if rooted && !deleted.contains(&item.uid) {
                alive.insert(item.uid.clone());
            }
        }
        prop_assert_eq!(w.names(), alive.iter().map(String::as_str).collect::<BTreeSet<_>>());
    }
}
