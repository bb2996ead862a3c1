//! What every backend must do, as functions over a [`Fixture`]; `suite!` makes a test of each.

pub mod model;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use xebec_store::{Compare, Event, KeyValue, Op, RangeRequest, Result, Revision, Store, StoreError, Txn, TxnResponse, WatchBatch};

/// A backend that can be stopped and started again on the same data.
pub trait Fixture: Sized + Send {
    async fn new() -> Self;
    fn store(&self) -> Arc<dyn Store>;
    /// An orderly stop and start; [`Fixture::store`] gives a working store afterwards.
    async fn restart(&mut self);
}

/// Nothing here waits that long unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(60);

macro_rules! suite {
    ($fixture:ty: $($name:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            tokio::time::timeout(suite::DEADLINE * 2, suite::$name::<$fixture>()).await.expect("the test hangs");
        })+
    };
    ($fixture:ty) => {
        suite!($fixture: revisions_count_transactions, compares_decide, absent_deletes_change_nothing, range_pages_in_key_order,
            range_reads_the_past, concurrent_writers_lose_nothing, watch_sees_each_revision_whole, watch_replays_then_follows,
            watch_waits_for_the_future, watch_of_another_prefix_makes_progress, watch_resumes_after_restart, compaction_forgets,
            large_values_fit, keys_expire_with_an_event, expiry_survives_restart, a_put_cancels_expiry, deletes_and_recreates,
            odd_transactions_are_refused);
        #[test]
        fn agrees_with_the_model() {
            suite::model::run::<$fixture>();
        }
    };
}
pub(crate) use suite;

pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), ttl: None }
}

pub fn put_ttl(key: &str, value: &str, ttl: Duration) -> Op {
    Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), ttl: Some(ttl) }
}

pub fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

/// Commits without compares and returns the revision.
pub async fn commit(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match store.txn(Txn { compares: vec![], ops }).await.expect("txn") {
        TxnResponse::Committed { revision } => revision,
        TxnResponse::Conflict { .. } => panic!("conflict without compares"),
    }
}

pub async fn keys(store: &dyn Store, prefix: &str, revision: Option<Revision>) -> Vec<(String, String)> {
    let request = RangeRequest { prefix: prefix.into(), revision, ..Default::default() };
    pairs(&store.range(request).await.expect("range").kvs)
}

pub fn pairs(kvs: &[KeyValue]) -> Vec<(String, String)> {
    kvs.iter().map(|kv| (kv.key.clone(), String::from_utf8_lossy(&kv.value).into_owned())).collect()
}

pub fn owned(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The next batch that has events.
pub async fn next(stream: &mut BoxStream<'static, Result<WatchBatch>>) -> Result<WatchBatch> {
    let wait = async {
        loop {
            match stream.next().await.expect("the watch ended without an error") {
                Ok(batch) if batch.events.is_empty() => {}
                other => return other,
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("no event came")
}

/// `+key=value`, `-key`, in order.
pub fn short(batch: &WatchBatch) -> Vec<String> {
    batch
        .events
        .iter()
        .map(|event| match event {
            Event::Put { kv, .. } => format!("+{}={}", kv.key, String::from_utf8_lossy(&kv.value)),
            Event::Delete { key, .. } => format!("-{key}"),
        })
        .collect()
}

pub async fn revisions_count_transactions<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    assert_eq!(store.get("/a").await.unwrap().kv, None);
    let first = commit(&*store, vec![put("/a", "1"), put("/b", "1")]).await;
    assert_eq!(first, start + 1, "one transaction, one revision");
    let second = commit(&*store, vec![put("/a", "2")]).await;
    assert_eq!(second, first + 1);
    let a = store.get("/a").await.unwrap();
    assert_eq!(a.revision, second);
    let a = a.kv.unwrap();
    assert_eq!((a.create_revision, a.mod_revision, &a.value[..]), (first, second, &b"2"[..]));
    let b = store.get("/b").await.unwrap().kv.unwrap();
    assert_eq!((b.create_revision, b.mod_revision), (first, first));
    assert_eq!(store.revision().await.unwrap(), second);
    assert_eq!(store.count("/").await.unwrap(), 2);
    assert!(store.size().await.unwrap() > 0);
}

pub async fn compares_decide<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let create = Txn { compares: vec![Compare::Absent { key: "/a".into() }], ops: vec![put("/a", "1")] };
    let TxnResponse::Committed { revision } = store.txn(create.clone()).await.unwrap() else { panic!("absent key") };
    let TxnResponse::Conflict { current, revision: at } = store.txn(create).await.unwrap() else { panic!("present key") };
    assert_eq!(at, revision);
    let current = current[0].clone().unwrap();
    assert_eq!((current.mod_revision, &current.value[..]), (revision, &b"1"[..]));

    let stale = Compare::ModRevision { key: "/a".into(), revision: revision - 1 };
    let good = Compare::ModRevision { key: "/a".into(), revision };
    let gone = Compare::ModRevision { key: "/gone".into(), revision };
    for (compares, present) in [
        (vec![stale.clone()], vec![true]),
        (vec![good.clone(), stale.clone()], vec![true, true]),
        (vec![gone.clone(), good.clone()], vec![false, true]),
    ] {
        let answer = store.txn(Txn { compares, ops: vec![put("/a", "no"), put("/b", "no")] }).await.unwrap();
        let TxnResponse::Conflict { current, .. } = answer else { panic!("compare must fail") };
        assert_eq!(current.iter().map(Option::is_some).collect::<Vec<_>>(), present);
    }
    assert_eq!(keys(&*store, "/", None).await, owned(&[("/a", "1")]));
    assert_eq!(store.revision().await.unwrap(), revision, "a conflict is no revision");
    let answer = store.txn(Txn { compares: vec![good], ops: vec![put("/a", "2")] }).await.unwrap();
    assert_eq!(answer, TxnResponse::Committed { revision: revision + 1 });
}

pub async fn absent_deletes_change_nothing<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let revision = commit(&*store, vec![put("/a", "1")]).await;
    assert_eq!(commit(&*store, vec![delete("/none")]).await, revision);
    assert_eq!(commit(&*store, vec![]).await, revision);
    assert_eq!(commit(&*store, vec![delete("/a"), delete("/none")]).await, revision + 1);
    assert_eq!(store.count("/").await.unwrap(), 0);
}

pub async fn range_pages_in_key_order<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let names = ["/p/a", "/p/a/b", "/p/a0", "/p/b", "/p/ä", "/p0", "/q/a", "/p"];
    for name in names {
        commit(&*store, vec![put(name, "x")]).await;
    }
    let expected = ["/p/a", "/p/a/b", "/p/a0", "/p/b", "/p/ä"];
    let all: Vec<String> = keys(&*store, "/p/", None).await.into_iter().map(|(k, _)| k).collect();
    assert_eq!(all, expected);
    assert_eq!(store.count("/p/").await.unwrap(), 5);
    assert_eq!(store.count("/none/").await.unwrap(), 0);

    let first = store.range(RangeRequest { prefix: "/p/".into(), limit: Some(2), ..Default::default() }).await.unwrap();
    assert_eq!((first.kvs.len(), first.remaining), (2, 3));
    // What happens between two pages is not seen by the second.
    commit(&*store, vec![delete("/p/b"), put("/p/a1", "new")]).await;
    let mut seen: Vec<String> = first.kvs.into_iter().map(|kv| kv.key).collect();
    let mut remaining = first.remaining;
    while remaining > 0 {
        let start = format!("{}\0", seen.last().unwrap());
        let page = RangeRequest { prefix: "/p/".into(), start: Some(start), limit: Some(2), revision: Some(first.revision) };
        let page = store.range(page).await.unwrap();
        assert_eq!(page.revision, first.revision);
        assert_eq!(remaining - page.kvs.len() as u64, page.remaining);
        remaining = page.remaining;
        seen.extend(page.kvs.into_iter().map(|kv| kv.key));
    }
    assert_eq!(seen, expected);
}

pub async fn range_reads_the_past<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let mut past: Vec<(Revision, Vec<(String, String)>)> = vec![(store.revision().await.unwrap(), vec![])];
    let mut now: BTreeMap<String, String> = BTreeMap::new();
    for step in 0..24u32 {
        let key = format!("/k/{}", step * 7 % 5);
        let revision = if step % 4 == 3 {
            now.remove(&key);
            commit(&*store, vec![delete(&key)]).await
        } else {
            now.insert(key.clone(), step.to_string());
            commit(&*store, vec![put(&key, &step.to_string()), put("/other", "x")]).await
        };
        past.push((revision, now.clone().into_iter().collect()));
    }
    for (revision, expected) in &past {
        let read = keys(&*store, "/k/", Some(*revision)).await;
        // A delete of an absent key made no revision: the later entry of the same revision is the same state.
        assert_eq!(&read, expected, "at revision {revision}");
    }
    let current = store.revision().await.unwrap();
    let future = store.range(RangeRequest { revision: Some(current + 1), ..Default::default() }).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })), "{future:?}");
}

pub async fn concurrent_writers_lose_nothing<F: Fixture>() {
    const WRITERS: usize = 8;
    const EACH: u64 = 25;
    let fixture = F::new().await;
    let store = fixture.store();
    let start = commit(&*store, vec![put("/counter", "0")]).await;
    let mut stream = store.watch("/counter", start + 1).await.unwrap();
    let tasks: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..EACH {
                    let mut kv = store.get("/counter").await.unwrap().kv.unwrap();
                    loop {
                        let value: u64 = String::from_utf8_lossy(&kv.value).parse().unwrap();
                        let compare = Compare::ModRevision { key: kv.key.clone(), revision: kv.mod_revision };
                        let txn = Txn { compares: vec![compare], ops: vec![put("/counter", &(value + 1).to_string())] };
                        match store.txn(txn).await.unwrap() {
                            TxnResponse::Committed { .. } => break,
                            TxnResponse::Conflict { mut current, .. } => kv = current.remove(0).unwrap(),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let total = WRITERS as u64 * EACH;
    for expected in 1..=total {
        let batch = next(&mut stream).await.unwrap();
        assert_eq!(batch.revision, start + expected);
        assert_eq!(short(&batch), [format!("+/counter={expected}")]);
    }
    assert_eq!(keys(&*store, "/counter", None).await, owned(&[("/counter", &total.to_string())]));
}

pub async fn watch_sees_each_revision_whole<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    let mut stream = store.watch("/w/", start + 1).await.unwrap();
    let first = commit(&*store, vec![put("/w/a", "1"), put("/other", "1"), put("/w/b", "1")]).await;
    let second = commit(&*store, vec![delete("/w/a"), put("/w/b", "2"), put("/w/c", "1")]).await;
    let batch = next(&mut stream).await.unwrap();
    assert_eq!((batch.revision, short(&batch)), (first, vec!["+/w/a=1".into(), "+/w/b=1".into()]));
    let batch = next(&mut stream).await.unwrap();
    assert_eq!(batch.revision, second);
    assert_eq!(short(&batch), ["-/w/a", "+/w/b=2", "+/w/c=1"]);
    let Event::Delete { prev: Some(prev), .. } = &batch.events[0] else { panic!("{batch:?}") };
    assert_eq!((prev.mod_revision, &prev.value[..]), (first, &b"1"[..]));
    let Event::Put { kv, prev: Some(prev) } = &batch.events[1] else { panic!("{batch:?}") };
    assert_eq!((kv.create_revision, kv.mod_revision, prev.mod_revision), (first, second, first));
    let Event::Put { prev: None, .. } = &batch.events[2] else { panic!("{batch:?}") };
}

pub async fn watch_replays_then_follows<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    // More than any buffer of recent changes holds in one piece.
    let big = "x".repeat(64 << 10);
    for i in 0..100 {
        commit(&*store, vec![put(&format!("/w/{}", i % 3), &format!("{i}:{big}")), put("/x", "1")]).await;
    }
    let mut streams = Vec::new();
    for from in [start + 1, start + 50, start + 101] {
        streams.push((from, store.watch("/w/", from).await.unwrap()));
    }
    for i in 100..110 {
        commit(&*store, vec![put(&format!("/w/{}", i % 3), &format!("{i}:{big}"))]).await;
    }
    for (from, mut stream) in streams {
        for revision in from..=start + 110 {
            let batch = next(&mut stream).await.unwrap();
            assert_eq!(batch.revision, revision);
            let number = revision - start - 1;
            assert!(short(&batch)[0].starts_with(&format!("+/w/{}={number}:", number % 3)), "revision {revision}");
            assert_eq!(batch.events.len(), 1);
        }
    }
}

pub async fn watch_waits_for_the_future<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = commit(&*store, vec![put("/w/a", "1")]).await;
    let mut stream = store.watch("/w/", start + 3).await.unwrap();
    for value in ["2", "3", "4"] {
        commit(&*store, vec![put("/w/a", value)]).await;
    }
    let batch = next(&mut stream).await.unwrap();
    assert_eq!((batch.revision, short(&batch)), (start + 3, vec!["+/w/a=4".into()]));
}

pub async fn watch_of_another_prefix_makes_progress<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    let mut stream = store.watch("/quiet/", start + 1).await.unwrap();
    for _ in 0..5 {
        commit(&*store, vec![put("/busy", "1")]).await;
    }
    let deadline = Instant::now() + DEADLINE;
    loop {
        let batch = tokio::time::timeout_at(deadline.into(), stream.next()).await.expect("no progress").unwrap().unwrap();
        assert!(batch.events.is_empty());
        if batch.revision == start + 5 {
            break;
        }
    }
}

pub async fn watch_resumes_after_restart<F: Fixture>() {
    let mut fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    let mut stream = store.watch("/w/", start + 1).await.unwrap();
    let mut last = start;
    let mut written = 0u64;
    for round in 0..3 {
        let store = fixture.store();
        for _ in 0..5 {
            written += 1;
            commit(&*store, vec![put("/w/a", &written.to_string())]).await;
        }
        // Read some, leave some unread, restart, resume at the last seen plus one.
        for _ in 0..3 {
            let batch = next(&mut stream).await.unwrap();
            assert_eq!(batch.revision, last + 1, "round {round}");
            last = batch.revision;
        }
        drop(store);
        fixture.restart().await;
        stream = fixture.store().watch("/w/", last + 1).await.unwrap();
    }
    while last < start + written {
        let batch = next(&mut stream).await.unwrap();
        assert_eq!(batch.revision, last + 1);
        last = batch.revision;
        assert_eq!(short(&batch), [format!("+/w/a={}", last - start)]);
    }
}

pub async fn compaction_forgets<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    commit(&*store, vec![put("/c/stay", "1")]).await;
    for i in 0..10 {
        commit(&*store, vec![put("/c/a", &i.to_string())]).await;
    }
    commit(&*store, vec![delete("/c/a")]).await;
    let at = commit(&*store, vec![put("/c/b", "b")]).await;
    commit(&*store, vec![put("/c/a", "again")]).await;
    let current = store.revision().await.unwrap();

    store.compact(at).await.unwrap();
    store.compact(at).await.expect("twice is no error");
    store.compact(at - 1).await.expect("less is no error");
    assert!(matches!(store.compact(current + 1).await, Err(StoreError::FutureRevision { .. })));
    assert_eq!(store.revision().await.unwrap(), current, "compaction is no revision");

    assert_eq!(keys(&*store, "/c/", Some(at)).await, owned(&[("/c/b", "b"), ("/c/stay", "1")]));
    assert_eq!(keys(&*store, "/c/", None).await, owned(&[("/c/a", "again"), ("/c/b", "b"), ("/c/stay", "1")]));
    for revision in [start + 1, at - 1] {
        let read = store.range(RangeRequest { prefix: "/c/".into(), revision: Some(revision), ..Default::default() }).await;
        assert!(matches!(read, Err(StoreError::Compacted { .. })), "{read:?}");
        let refused = match store.watch("/c/", revision).await {
            Err(error) => error,
            Ok(mut stream) => next(&mut stream).await.expect_err("compacted"),
        };
        assert!(matches!(refused, StoreError::Compacted { oldest, .. } if oldest >= at), "{refused:?}");
    }
    let mut stream = store.watch("/c/", at + 1).await.unwrap();
    assert_eq!(short(&next(&mut stream).await.unwrap()), ["+/c/a=again"]);
}

pub async fn large_values_fit<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    let mut stream = store.watch("/large/", start + 1).await.unwrap();
    let value = |i: u8| Bytes::from(vec![b'a' + i; 3 << 19]);
    for i in 0..4 {
        let key = format!("/large/{i}");
        let txn = Txn { compares: vec![Compare::Absent { key: key.clone() }], ops: vec![Op::Put { key, value: value(i), ttl: None }] };
        assert!(matches!(store.txn(txn).await.unwrap(), TxnResponse::Committed { .. }));
    }
    for i in 0..4 {
        let batch = next(&mut stream).await.unwrap();
        let Event::Put { kv, .. } = &batch.events[0] else { panic!("put") };
        assert_eq!(kv.value, value(i));
    }
    let all = store.range(RangeRequest { prefix: "/large/".into(), ..Default::default() }).await.unwrap();
    assert!(all.kvs.iter().zip(0..).all(|(kv, i)| kv.value == value(i)));
    assert_eq!(all.kvs.len(), 4);
    let txn = Txn { compares: vec![], ops: vec![Op::Put { key: "/huge".into(), value: Bytes::from(vec![0; 16 << 20]), ttl: None }] };
    let refused = store.txn(txn).await;
    assert!(matches!(&refused, Err(StoreError::TooLarge { key, .. }) if key == "/huge"), "{refused:?}");
    assert_eq!(store.get("/huge").await.unwrap().kv, None);
}

pub async fn keys_expire_with_an_event<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    let mut stream = store.watch("/e/", start + 1).await.unwrap();
    let began = Instant::now();
    commit(&*store, vec![put_ttl("/e/soon", "1", Duration::from_secs(2)), put("/e/never", "1")]).await;
    next(&mut stream).await.unwrap();
    let batch = next(&mut stream).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2), "expired after {:?}", began.elapsed());
    assert_eq!(short(&batch), ["-/e/soon"]);
    assert_eq!(batch.revision, start + 2);
    let Event::Delete { prev: Some(prev), .. } = &batch.events[0] else { panic!("{batch:?}") };
    assert_eq!(&prev.value[..], b"1");
    assert_eq!(keys(&*store, "/e/", None).await, owned(&[("/e/never", "1")]));
}

pub async fn expiry_survives_restart<F: Fixture>() {
    let mut fixture = F::new().await;
    let start = fixture.store().revision().await.unwrap();
    commit(&*fixture.store(), vec![put_ttl("/e/soon", "1", Duration::from_secs(3))]).await;
    fixture.restart().await;
    let store = fixture.store();
    let mut stream = store.watch("/e/", start + 2).await.unwrap();
    assert_eq!(short(&next(&mut stream).await.unwrap()), ["-/e/soon"]);
    assert_eq!(store.count("/e/").await.unwrap(), 0);
}

pub async fn a_put_cancels_expiry<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let start = store.revision().await.unwrap();
    let mut stream = store.watch("/e/", start + 1).await.unwrap();
    let ttl = Duration::from_secs(2);
    commit(&*store, vec![put_ttl("/e/kept", "1", ttl), put_ttl("/e/renewed", "1", ttl)]).await;
    commit(&*store, vec![put("/e/kept", "2"), put_ttl("/e/renewed", "2", Duration::from_secs(3600))]).await;
    commit(&*store, vec![put_ttl("/e/clock", "1", Duration::from_secs(4))]).await;
    let mut deleted = Vec::new();
    while deleted.is_empty() {
        deleted.extend(short(&next(&mut stream).await.unwrap()).into_iter().filter(|e| e.starts_with('-')));
    }
    assert_eq!(deleted, ["-/e/clock"]);
    assert_eq!(keys(&*store, "/e/", None).await, owned(&[("/e/kept", "2"), ("/e/renewed", "2")]));
}

pub async fn deletes_and_recreates<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let first = commit(&*store, vec![put("/a", "1")]).await;
    commit(&*store, vec![delete("/a")]).await;
    let again = commit(&*store, vec![put("/a", "2")]).await;
    let kv = store.get("/a").await.unwrap().kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (again, again));
    let stale = Compare::ModRevision { key: "/a".into(), revision: first };
    let answer = store.txn(Txn { compares: vec![stale], ops: vec![delete("/a")] }).await.unwrap();
    assert!(matches!(answer, TxnResponse::Conflict { .. }));
}

pub async fn odd_transactions_are_refused<F: Fixture>() {
    let fixture = F::new().await;
    let store = fixture.store();
    let revision = store.revision().await.unwrap();
    for ops in [vec![put("/a", "1"), put("/a", "2")], vec![put("/a", "1"), delete("/a")], vec![put("", "1")]] {
        let answer = store.txn(Txn { compares: vec![], ops }).await;
        assert!(matches!(answer, Err(StoreError::Backend(_))), "{answer:?}");
    }
    assert_eq!(store.revision().await.unwrap(), revision);
}
