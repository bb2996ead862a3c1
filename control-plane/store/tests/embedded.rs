//! The embedded backend against the common suite, and what only a file can suffer.

mod suite;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use suite::{Fixture, commit, delete, keys, put, put_ttl, suite};
use xebec_store::embedded::{self, Embedded, Options};
use xebec_store::{RangeRequest, Store, StoreError};

struct File {
    store: Option<Arc<Embedded>>,
    folder: tempfile::TempDir,
}

impl Fixture for File {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = embedded::open(folder.path().join("store.redb"), Options::default()).unwrap();
        Self { store: Some(Arc::new(store)), folder }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().expect("open")
    }

    async fn restart(&mut self) {
        self.store.take().expect("open").close();
        self.store = Some(Arc::new(reopen(&self.folder.path().join("store.redb")).await));
    }
}

/// A read that was under way when the store closed holds the file for a moment longer.
async fn reopen(path: &std::path::Path) -> Embedded {
    let deadline = Instant::now() + suite::DEADLINE;
    loop {
        match embedded::open(path, Options::default()) {
            Err(StoreError::InUse { .. }) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
            other => return other.expect("open again"),
        }
    }
}

suite!(File);

#[tokio::test]
async fn a_second_process_is_refused_and_the_file_is_private() {
    let fixture = File::new().await;
    let path = fixture.folder.path().join("store.redb");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let refused = embedded::open(&path, Options::default()).map(|_| ()).unwrap_err();
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
}

#[tokio::test]
async fn a_file_that_cannot_be_trusted_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good");
    let store = embedded::open(&good, Options::default()).unwrap();
    for i in 0..2000 {
        commit(&store, vec![put(&format!("/k/{i}"), &"v".repeat(500))]).await;
    }
    store.close();
    drop(store);
    let whole = std::fs::read(&good).unwrap();

    let half = whole[..whole.len() / 2].to_vec();
    let tiny = whole[..100].to_vec();
    let text = b"apiVersion: v1\nkind: Pod\n".repeat(1000);
    let zeros = vec![0u8; 65536];
    let mut header = whole.clone();
    header[0..64].fill(0xa5);
    // Values fill most of the file: find some of their pages and damage a byte in each.
    let mut flipped = whole.clone();
    let mut flips = 0;
    for page in flipped.chunks_mut(4096) {
        if page[1000..1100].iter().all(|b| *b == b'v') {
            page[1050] ^= 0x40;
            flips += 1;
        }
    }
    assert!(flips > 100, "{flips} pages of values");
    for (name, contents) in [("half", half), ("tiny", tiny), ("text", text), ("zeros", zeros), ("header", header), ("flipped", flipped)] {
        let path = folder.path().join(name);
        std::fs::write(&path, &contents).unwrap();
        let refused = embedded::open(&path, Options::default()).map(|_| ()).expect_err(name);
        assert!(matches!(refused, StoreError::Corrupted { .. }), "{name}: {refused:?}");
        let message = refused.to_string();
        assert!(message.contains(name) && message.contains("restore a backup"), "{message}");
        assert!(!message.contains("(open)"), "{message}");
    }
    assert_eq!(embedded::open(&good, Options::default()).unwrap().count("/k/").await.unwrap(), 2000);
}

#[tokio::test]
async fn a_store_of_another_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreign");
    let db = redb::Database::create(&path).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<u64, u64>::new("bitcoins")).unwrap();
    write.commit().unwrap();
    drop(db);
    let refused = embedded::open(&path, Options::default()).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("another program"), "{refused}");
}

#[tokio::test]
async fn the_file_is_bounded_by_the_live_set() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { retain_revisions: 200, ..Options::default() };
    let store = embedded::open(folder.path().join("s"), options).unwrap();
    let lease = "l".repeat(2000);
    let round = async |n: u32| {
        for chunk in 0..n {
            let txns = (0..50).map(|i| commit(&store, vec![put(&format!("/leases/{i}"), &format!("{chunk}{lease}"))]));
            futures::future::join_all(txns).await;
        }
        store.size().await.unwrap()
    };
    round(40).await;
    let before = round(40).await;
    let after = round(200).await;
    assert!(after <= before * 3 / 2, "{before} bytes grew to {after}");
    let old = store.range(RangeRequest { revision: Some(2), ..Default::default() }).await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
    assert_eq!(store.count("/leases/").await.unwrap(), 50);
}

#[tokio::test]
async fn old_history_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { retain_for: Duration::ZERO, ..Options::default() };
    let store = embedded::open(folder.path().join("s"), options).unwrap();
    commit(&store, vec![put("/a", "1")]).await;
    commit(&store, vec![put("/a", "2")]).await;
    let deadline = Instant::now() + suite::DEADLINE;
    // Each commit is a chance for the writer to note a revision and to forget what is before it.
    loop {
        commit(&store, vec![put("/a", "3")]).await;
        match store.range(RangeRequest { revision: Some(2), ..Default::default() }).await {
            Err(StoreError::Compacted { .. }) => break,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_reader_that_fell_behind_compaction_is_cut_off() {
    let fixture = File::new().await;
    let store = fixture.store();
    let first = commit(&*store, vec![put("/w/a", "0")]).await;
    let mut slow = store.watch("/w/", first).await.unwrap();
    suite::next(&mut slow).await.unwrap();
    // Push it out of memory, then out of the file.
    let large = "x".repeat(1 << 20);
    for _ in 0..20 {
        commit(&*store, vec![put("/other", &large)]).await;
        commit(&*store, vec![put("/w/a", "1")]).await;
    }
    store.compact(store.revision().await.unwrap()).await.unwrap();
    let cut = loop {
        match suite::next(&mut slow).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(cut, StoreError::Lagged { last } if last >= first), "{cut:?}");
}

#[tokio::test]
async fn closing_ends_calls_and_watches() {
    let fixture = File::new().await;
    let store = fixture.store();
    let mut stream = store.watch("/", 2).await.unwrap();
    fixture.store.as_ref().unwrap().close();
    assert!(matches!(suite::next(&mut stream).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.get("/a").await, Err(StoreError::Unavailable(_))));
    let txn = xebec_store::Txn { compares: vec![], ops: vec![put("/a", "1")] };
    assert!(matches!(store.txn(txn).await, Err(StoreError::Unavailable(_))));
}

/// Not a test of its own: the victim of the next one, which runs it in a process to kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Ok(path) = std::env::var("XEBEC_STORE_VICTIM") else {
        return;
    };
    let store = Arc::new(embedded::open(path, Options { retain_revisions: 100, ..Options::default() }).unwrap());
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0u64.. {
                let ops = vec![
                    put(&format!("/kill/{writer}"), &i.to_string()),
                    put_ttl("/ttl", "x", Duration::from_secs(1 + i % 2)),
                    delete(&format!("/gone/{writer}")),
                    put(&format!("/pad/{writer}"), &"p".repeat(3000)),
                ];
                commit(&*store, ops).await;
                // One write: lines of several threads do not mix.
                std::io::stdout().write_all(format!("\nack {writer} {i}\n").as_bytes()).unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
}

#[tokio::test]
async fn acknowledged_writes_survive_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut acknowledged = [None::<u64>; 8];
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["victim", "--exact", "--nocapture"])
            .env("XEBEC_STORE_VICTIM", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        // Kill in the middle of writing, then read what was acknowledged before.
        for line in lines.by_ref() {
            seen += note(&line.unwrap(), &mut acknowledged);
            if seen == 300 + round * 37 {
                child.kill().unwrap();
                break;
            }
        }
        for line in lines.map_while(Result::ok) {
            seen += note(&line, &mut acknowledged);
        }
        child.wait().unwrap();
        assert!(seen >= 300, "the victim wrote {seen} times");

        let store = reopen(&path).await;
        for (writer, last) in acknowledged.iter().enumerate() {
            let found = keys(&store, &format!("/kill/{writer}"), None).await;
            let found: u64 = found[0].1.parse().unwrap();
            let last = last.expect("each writer wrote");
            assert!(found == last || found == last + 1, "round {round}, writer {writer}: {found}, acknowledged {last}");
        }
        acknowledged = [None; 8];
        store.close();
    }
}

fn note(line: &str, acknowledged: &mut [Option<u64>; 8]) -> usize {
    let Some(rest) = line.strip_prefix("ack ") else {
        return 0;
    };
    let mut words = rest.split(' ').map(|w| w.parse::<u64>().ok());
    if let (Some(Some(writer)), Some(Some(i))) = (words.next(), words.next()) {
        let last = &mut acknowledged[writer as usize];
        *last = Some(last.map_or(i, |l| l.max(i)));
        return 1;
    }
    0
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty");
    std::fs::File::create(&path).unwrap();
    let store = embedded::open(&path, Options::default()).unwrap();
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "made private");
}
