//! The etcd backend against the common suite and a real etcd (`etcd` on PATH), which each test starts for itself.

mod suite;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use suite::{Fixture, commit, keys, next, put, put_ttl, short, suite};
use xebec_store::etcd::{self, Etcd, Tls};
use xebec_store::{Op, Store, StoreError, Txn, TxnResponse};

/// An etcd process on loopback with its own folder; killed when dropped.
struct Process {
    child: Option<Child>,
    folder: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    arguments: Vec<String>,
    scheme: &'static str,
}

impl Process {
    fn start(scheme: &'static str, arguments: &[&str]) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, peer) = (free(), free());
        let (client_port, peer_port) = (client.local_addr().unwrap().port(), peer.local_addr().unwrap().port());
        drop((client, peer));
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        let mut process = Self { child: None, folder: tempfile::tempdir().unwrap(), client_port, peer_port, arguments, scheme };
        process.run();
        process
    }

    fn run(&mut self) {
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let client = self.endpoint();
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = Command::new("etcd")
            .args(["--data-dir".into(), self.folder.path().join("data").display().to_string()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start etcd: install the package etcd-server");
        self.child = Some(child);
    }

    fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client_port)
    }

    /// SIGKILL: what is on disk is all that is left.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Server {
    store: Arc<Etcd>,
    process: Process,
}

impl Fixture for Server {
    async fn new() -> Self {
        let process = Process::start("http", &["--max-request-bytes", "4194304"]);
        let store = Arc::new(etcd::connect(&[process.endpoint()], None).await.expect("connect"));
        Self { store, process }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// etcd goes away and comes back; the same client must find it again.
    async fn restart(&mut self) {
        self.process.kill();
        self.process.run();
        settled(&*self.store).await;
    }
}

/// Waits until etcd answers again.
async fn settled(store: &dyn Store) {
    let deadline = std::time::Instant::now() + suite::DEADLINE;
    while let Err(error) = store.revision().await {
        assert!(std::time::Instant::now() < deadline, "etcd stays away: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

suite!(Server);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_watch_outlives_lost_connections() {
    let mut server = Server::new().await;
    let start = server.store.revision().await.unwrap();
    let mut stream = server.store.watch("/w/", start + 1).await.unwrap();
    let mut other = server.store.watch("/w/even", start + 1).await.unwrap();
    let mut seen = 0;
    for round in 0..4u64 {
        for i in 0..10 {
            let number = round * 10 + i;
            let name = if number % 2 == 0 { "even" } else { "odd" };
            commit(&*server.store, vec![put(&format!("/w/{name}"), &number.to_string()), put("/x", "1")]).await;
        }
        // In turn with everything read, and with some of it on the way.
        if round % 2 == 0 {
            while seen < round * 10 + 10 {
                expect(&mut stream, start, &mut seen).await;
            }
        }
        server.restart().await;
    }
    while seen < 40 {
        expect(&mut stream, start, &mut seen).await;
    }
    for number in (0..40).step_by(2) {
        assert_eq!(short(&next(&mut other).await.unwrap()), [format!("+/w/even={number}")]);
    }
}

async fn expect(
    stream: &mut futures::stream::BoxStream<'static, xebec_store::Result<xebec_store::WatchBatch>>,
    start: u64,
    seen: &mut u64,
) {
    let batch = next(stream).await.unwrap();
    assert_eq!(batch.revision, start + 1 + *seen, "neither lost nor repeated");
    assert!(short(&batch)[0].ends_with(&format!("={seen}")));
    *seen += 1;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_missed_compacted_history_is_cut_off() {
    let server = Server::new().await;
    let elsewhere = etcd::connect(&[server.process.endpoint()], None).await.unwrap();
    let first = commit(&elsewhere, vec![put("/w/a", "0")]).await;
    let mut slow = server.store.watch("/w/", first).await.unwrap();
    next(&mut slow).await.unwrap();
    let large = "x".repeat(1 << 20);
    for _ in 0..12 {
        commit(&elsewhere, vec![put("/other", &large)]).await;
        commit(&elsewhere, vec![put("/w/a", "1")]).await;
    }
    let last = elsewhere.revision().await.unwrap();
    elsewhere.compact(last).await.unwrap();
    // A second watch shows when the first server has heard of it all.
    let mut marker = server.store.watch("/w/", last).await.unwrap();
    next(&mut marker).await.unwrap();
    let cut = loop {
        match next(&mut slow).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(cut, StoreError::Lagged { last } if last >= first), "{cut:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_sigkill() {
    let mut server = Server::new().await;
    for round in 0..3u64 {
        let tasks: Vec<_> = (0..6u64)
            .map(|writer| {
                let store = server.store.clone();
                tokio::spawn(async move {
                    let mut acknowledged = None;
                    for i in 0u64.. {
                        let ops = vec![
                            put(&format!("/kill/{writer}"), &(round * 1_000_000 + i).to_string()),
                            Op::Put { key: format!("/pad/{writer}"), value: Bytes::from(vec![b'p'; 3000]), ttl: None },
                        ];
                        match store.txn(Txn { compares: vec![], ops }).await {
                            Ok(TxnResponse::Committed { .. }) => acknowledged = Some(round * 1_000_000 + i),
                            Ok(other) => panic!("{other:?}"),
                            Err(StoreError::Unavailable(_)) => return acknowledged,
                            Err(other) => panic!("not a lost connection: {other:?}"),
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        // In the middle of it, not at a time: once enough was written.
        let begin = server.store.revision().await.unwrap();
        while server.store.revision().await.unwrap() < begin + 100 {
            tokio::task::yield_now().await;
        }
        server.process.kill();
        let mut acknowledged = Vec::new();
        for task in tasks {
            acknowledged.push(task.await.unwrap());
        }
        server.process.run();
        settled(&*server.store).await;
        for (writer, last) in acknowledged.into_iter().enumerate() {
            let Some(last) = last else { continue };
            let found: u64 = keys(&*server.store, &format!("/kill/{writer}"), None).await[0].1.parse().unwrap();
            assert!(found == last || found == last + 1, "writer {writer}: {found}, acknowledged {last}");
        }
    }
}

#[tokio::test]
async fn the_size_limit_of_etcd_is_reported() {
    let process = Process::start("http", &[]);
    let store = etcd::connect(&[process.endpoint()], None).await.unwrap();
    for size in [(3 << 19) + 1, 5 << 19] {
        let ops = vec![put("/small", "1"), Op::Put { key: "/large".into(), value: Bytes::from(vec![b'x'; size]), ttl: None }];
        let refused = store.txn(Txn { compares: vec![], ops }).await;
        assert!(matches!(&refused, Err(StoreError::TooLarge { key, size: told, .. }) if key == "/large" && *told == size), "{refused:?}");
    }
    assert_eq!(store.count("/").await.unwrap(), 0);
}

#[tokio::test]
async fn long_leases_are_shared() {
    let server = Server::new().await;
    let ttl = Duration::from_secs(3600);
    for i in 0..20 {
        commit(&*server.store, vec![put_ttl(&format!("/events/{i}"), "x", ttl)]).await;
    }
    let mut client = etcd_client::Client::connect([server.process.endpoint()], None).await.unwrap();
    let leases = client.leases().await.unwrap();
    assert_eq!(leases.leases().len(), 1);
    let left = client.lease_time_to_live(leases.leases()[0].id(), None).await.unwrap();
    assert!(left.granted_ttl() >= 3600);
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(params, ca_key).unwrap();
    let issue = |names: Vec<String>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &ca).unwrap();
        (cert.pem(), key.serialize_pem())
    };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = issue(vec!["127.0.0.1".into()]);
    std::fs::write(path("ca"), ca.pem()).unwrap();
    std::fs::write(path("cert"), cert).unwrap();
    std::fs::write(path("key"), key).unwrap();
    let arguments = ["--cert-file", &path("cert"), "--key-file", &path("key"), "--trusted-ca-file", &path("ca"), "--client-cert-auth"];
    let process = Process::start("https", &arguments);

    let (cert, key) = issue(vec!["client".into()]);
    let tls = Tls { ca: ca.pem().into_bytes(), identity: Some((cert.into_bytes(), key.into_bytes())) };
    let store = etcd::connect(&[process.endpoint()], Some(tls)).await.unwrap();
    let revision = commit(&store, vec![put("/a", "1")]).await;
    let mut stream = store.watch("/", revision).await.unwrap();
    assert_eq!(short(&next(&mut stream).await.unwrap()), ["+/a=1"]);

    let nameless = Tls { ca: ca.pem().into_bytes(), identity: None };
    let refused = etcd::connect(&[process.endpoint()], Some(nameless)).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
}
