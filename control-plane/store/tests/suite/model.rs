//! Random histories, applied to the backend and to a map; everything readable must agree at every step.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xebec_store::{Compare, Op, RangeRequest, Revision, Store, Txn, TxnResponse};

use super::{Fixture, delete, next, pairs, put, short};

#[derive(Debug, Clone)]
enum Step {
    /// (key, delete instead of put); compares pick the key's true revision or a wrong one.
    Write {
        writes: BTreeMap<u8, bool>,
        compares: Vec<(u8, bool)>,
    },
    /// Read as of so many revisions ago.
    Range {
        ago: u64,
        start: Option<u8>,
        limit: Option<usize>,
    },
    Compact {
        ago: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..6u8;
    let write = (
        prop::collection::btree_map(key.clone(), prop::bool::weighted(0.3), 1..4),
        prop::collection::vec((key.clone(), prop::bool::weighted(0.8)), 0..3),
    )
        .prop_map(|(writes, compares)| Step::Write { writes, compares });
    let range =
        (0..12u64, prop::option::of(key), prop::option::of(1..4usize)).prop_map(|(ago, start, limit)| Step::Range { ago, start, limit });
    let compact = (0..12u64).prop_map(|ago| Step::Compact { ago });
    prop::collection::vec(prop_oneof![6 => write, 4 => range, 1 => compact], 1..40)
}

/// What the store should be: every revision's whole contents.
struct Model {
    /// Contents as key → (value, create, mod), by revision.
    history: BTreeMap<Revision, BTreeMap<String, (String, Revision, Revision)>>,
    events: BTreeMap<Revision, Vec<String>>,
    compacted: Revision,
}

impl Model {
    fn revision(&self) -> Revision {
        *self.history.keys().next_back().expect("never empty")
    }

    fn now(&self) -> &BTreeMap<String, (String, Revision, Revision)> {
        &self.history[&self.revision()]
    }
}

pub fn run<F: Fixture>() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fixture = runtime.block_on(F::new());
    let store = fixture.store();
    let case = std::cell::Cell::new(0u32);
    let config = Config { cases: 48, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            case.set(case.get() + 1);
            let prefix = format!("/case{}/", case.get());
            runtime.block_on(play(&*store, &prefix, &steps));
            Ok(())
        })
        .unwrap();
}

async fn play(store: &dyn Store, prefix: &str, steps: &[Step]) {
    let key = |k: u8| format!("{prefix}{k}");
    let start = store.revision().await.unwrap();
    let mut model = Model { history: BTreeMap::from([(start, BTreeMap::new())]), events: BTreeMap::new(), compacted: 0 };
    let mut follower = store.watch(prefix, start + 1).await.unwrap();

    for (number, step) in steps.iter().enumerate() {
        let current = model.revision();
        match step {
            Step::Write { writes, compares } => {
                let compares: Vec<(Compare, bool)> = compares
                    .iter()
                    .map(|(k, truth)| match (model.now().get(&key(*k)), truth) {
                        (Some((_, _, revision)), true) => (Compare::ModRevision { key: key(*k), revision: *revision }, true),
                        (Some((_, _, revision)), false) => (Compare::ModRevision { key: key(*k), revision: *revision + 1 }, false),
                        (None, true) => (Compare::Absent { key: key(*k) }, true),
                        (None, false) => (Compare::ModRevision { key: key(*k), revision: current }, false),
                    })
                    .collect();
                let ops: Vec<Op> =
                    writes.iter().map(|(k, gone)| if *gone { delete(&key(*k)) } else { put(&key(*k), &number.to_string()) }).collect();
                let holds = compares.iter().all(|(_, holds)| *holds);
                let txn = Txn { compares: compares.iter().map(|(c, _)| c.clone()).collect(), ops };
                let mut contents = model.now().clone();
                let mut events = Vec::new();
                for (k, gone) in writes {
                    if *gone {
                        if contents.remove(&key(*k)).is_some() {
                            events.push(format!("-{}", key(*k)));
                        }
                    } else {
                        let created = contents.get(&key(*k)).map_or(current + 1, |(_, created, _)| *created);
                        contents.insert(key(*k), (number.to_string(), created, current + 1));
                        events.push(format!("+{}={number}", key(*k)));
                    }
                }
                match store.txn(txn).await.unwrap() {
                    TxnResponse::Committed { revision } => {
                        assert!(holds, "must conflict");
                        assert_eq!(revision, if events.is_empty() { current } else { current + 1 });
                        if !events.is_empty() {
                            model.history.insert(revision, contents);
                            model.events.insert(revision, events);
                        }
                    }
                    TxnResponse::Conflict { current: found, revision } => {
                        assert!(!holds, "must commit");
                        assert_eq!(revision, current);
                        for ((compare, _), found) in compares.iter().zip(found) {
                            let (Compare::Absent { key } | Compare::ModRevision { key, .. }) = compare;
                            assert_eq!(found.map(|kv| kv.mod_revision), model.now().get(key).map(|v| v.2));
                        }
                    }
                }
            }
            Step::Range { ago, start: from, limit } => {
                let revision = current.saturating_sub(*ago).max(start).max(model.compacted);
                let request = RangeRequest {
                    prefix: prefix.to_owned(),
                    start: from.map(key),
                    limit: *limit,
                    revision: (*ago > 0).then_some(revision),
                };
                let revision = if *ago > 0 { revision } else { current };
                let response = store.range(request).await.unwrap();
                let expected: Vec<(String, String)> = model.history[&revision]
                    .iter()
                    .filter(|(k, _)| from.is_none_or(|from| **k >= key(from)))
                    .map(|(k, (v, _, _))| (k.clone(), v.clone()))
                    .collect();
                let cut = limit.unwrap_or(usize::MAX).min(expected.len());
                assert_eq!(pairs(&response.kvs), expected[..cut]);
                assert_eq!((response.remaining, response.revision), ((expected.len() - cut) as u64, revision));
                for kv in &response.kvs {
                    let (_, created, modified) = &model.history[&revision][&kv.key];
                    assert_eq!((kv.create_revision, kv.mod_revision), (*created, *modified));
                }
            }
            Step::Compact { ago } => {
                let revision = current.saturating_sub(*ago).max(start);
                store.compact(revision).await.unwrap();
                model.compacted = model.compacted.max(revision);
            }
        }
    }

    for (revision, events) in &model.events {
        let batch = next(&mut follower).await.unwrap();
        assert_eq!((batch.revision, short(&batch)), (*revision, events.clone()));
    }
    // A watch that starts late replays what is not compacted.
    let from = start.max(model.compacted) + 1;
    let mut late = store.watch(prefix, from).await.unwrap();
    for (revision, events) in model.events.range(from..) {
        let batch = next(&mut late).await.unwrap();
        assert_eq!((batch.revision, short(&batch)), (*revision, events.clone()));
    }
}
