//! The shells over real sockets of this host: a made-up name server behind, a client in front.

mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::answer::Zones;
use crate::forward::{Forwarder, Stub};
use crate::listen::listen;
use crate::metrics::Metrics;
use crate::records::{Endpoint, Key, Port, Records, Service, Slice, Target};
use crate::server::Server;
pub use upstream::{Behaviour, Upstream};

/// A name server with a small cluster, and everything else at `upstreams`.
struct Running {
    server: Arc<Server>,
    address: SocketAddr,
    cancel: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn records() -> Records {
    let mut records = Records::default();
    records.set_namespace("default", true);
    let ports = vec![Port { name: "https".into(), protocol: "tcp", number: 443 }];
    let mut service = |name: &str, target| {
        records.set_service(Key::new("default", name), Some(Service { target, ports: ports.clone(), is_node_dns: false }))
    };
    service("web", Target::Addresses(vec![Ipv4Addr::new(10, 96, 0, 1).into()]));
    service("many", Target::Endpoints);
    service("outside", Target::Alias(Name::from_ascii("www.example.com.").unwrap()));
    let endpoint = |n: u16| Endpoint { address: Ipv4Addr::new(10, 244, (n >> 8) as u8, n as u8).into(), hostname: None };
    let endpoints = (0..1000).map(endpoint).collect();
    records.set_slice(Key::new("default", "many-1"), Some(Slice { service: Key::new("default", "many"), ports, endpoints }));
    records
}

impl Running {
    async fn start(upstreams: &[SocketAddr]) -> Running {
        Running::with(upstreams, records()).await
    }

    async fn with(upstreams: &[SocketAddr], records: Records) -> Running {
        // The root as a stub, as a resolv.conf has no ports.
        let stubs = if upstreams.is_empty() { vec![] } else { vec![Stub { domain: Name::root(), servers: upstreams.to_vec() }] };
        let zones = Zones { domain: Name::from_ascii("cluster.local.").unwrap(), servers: Vec::new(), ranges: Vec::new() };
        let metrics = Metrics::default();
        let server = Arc::new(Server {
            zones,
            records: RwLock::new(records),
            synced: AtomicBool::new(true),
            forwarder: Forwarder::new(stubs, "/nonexistent".into(), Vec::new(), metrics.clone()),
            metrics,
        });
        // Free a moment ago on an address of our own.
        let address = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let cancel = CancellationToken::new();
        tokio::spawn(listen(server.clone(), address, cancel.clone()));
        let running = Running { server, address, cancel };
        // Until it listens.
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running
    }

    async fn udp(&self, question: &Message) -> Message {
        udp(self.address, question).await
    }

    async fn ask(&self, name: &str) -> Message {
        self.udp(&question(name, RecordType::A)).await
    }

    async fn tcp(&self, question: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        tcp_on(&mut stream, question).await
    }
}

async fn udp(address: SocketAddr, question: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(&question.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 65535];
    let received = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await;
    let length = received.expect("an answer").unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.queries, question.queries);
    answer
}

async fn tcp_on(stream: &mut TcpStream, question: &Message) -> Message {
    let bytes = question.to_vec().unwrap();
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().filter(|r| r.record_type() == RecordType::A).map(|r| r.data.to_string()).collect()
}

#[tokio::test]
async fn cluster_names_by_udp_and_tcp() {
    let running = Running::start(&[]).await;
    let ask = question("Web.default.svc.cluster.local.", RecordType::A);
    for answer in [running.udp(&ask).await, running.tcp(&ask).await] {
        assert_eq!(addresses(&answer), ["10.96.0.1"]);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(answer.queries[0].name().to_ascii(), "Web.default.svc.cluster.local.");
    }
    // One connection, several questions.
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    for _ in 0..3 {
        assert_eq!(addresses(&tcp_on(&mut stream, &ask).await), ["10.96.0.1"]);
    }
}

#[tokio::test]
async fn what_does_not_fit_comes_by_tcp() {
    let running = Running::start(&[]).await;
    let mut ask = question("many.default.svc.cluster.local.", RecordType::A);
    let plain = running.udp(&ask).await;
    assert!(plain.metadata.truncation && addresses(&plain).len() > 10);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    ask.set_edns(edns);
    let larger = running.udp(&ask).await;
    assert!(larger.metadata.truncation && addresses(&larger).len() > addresses(&plain).len());
    let whole = running.tcp(&ask).await;
    assert_eq!((whole.metadata.truncation, addresses(&whole).len()), (false, 1000));
}

#[tokio::test]
async fn nobody_to_ask_is_a_refusal_and_an_unknown_cluster_no_denial() {
    let running = Running::start(&[]).await;
    assert_eq!(running.ask("www.example.com.").await.metadata.response_code, ResponseCode::Refused);
    assert_eq!(running.ask("none.default.svc.cluster.local.").await.metadata.response_code, ResponseCode::NXDomain);
    running.server.synced.store(false, Ordering::Release);
    assert_eq!(running.ask("none.default.svc.cluster.local.").await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(running.ask("web.default.svc.cluster.local.").await.metadata.response_code, ResponseCode::ServFail, "half of the records");
}

#[tokio::test]
async fn names_of_others_are_asked_for_once_and_remembered() {
    let upstream = Upstream::start(Behaviour::Answer { ttl: 60 }).await;
    let running = Running::start(&[upstream.address]).await;
    for _ in 0..3 {
        let answer = running.ask("www.example.com.").await;
        assert_eq!(addresses(&answer), ["192.0.2.80"]);
        assert!(!answer.metadata.authoritative);
    }
    assert_eq!(upstream.asked(), 1);
    // An alias of ours leads there too, and finds it known.
    let answer = running.ask("outside.default.svc.cluster.local.").await;
    assert_eq!(answer.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(addresses(&answer), ["192.0.2.80"]);
    assert_eq!(upstream.asked(), 1);
    // Absence is remembered too.
    for _ in 0..2 {
        assert_eq!(running.ask("missing.example.com.").await.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn what_lives_for_no_time_is_asked_for_each_time() {
    let upstream = Upstream::start(Behaviour::Answer { ttl: 0 }).await;
    let running = Running::start(&[upstream.address]).await;
    for _ in 0..3 {
        assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
    }
    assert_eq!(upstream.asked(), 3);
}

#[tokio::test]
async fn the_same_question_of_many_is_one_question() {
    let upstream = Upstream::start(Behaviour::Late { pause: Duration::from_millis(300) }).await;
    let running = Running::start(&[upstream.address]).await;
    let asks = (0..50).map(|_| running.ask("www.example.com."));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(addresses(&answer), ["192.0.2.80"]);
    }
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn large_answers_are_fetched_by_tcp() {
    let upstream = Upstream::start(Behaviour::Truncate).await;
    let running = Running::start(&[upstream.address]).await;
    assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
    assert_eq!(upstream.asked_by_tcp(), 1);
}

#[tokio::test]
async fn servers_without_edns_are_asked_without() {
    let upstream = Upstream::start(Behaviour::NoEdns).await;
    let running = Running::start(&[upstream.address]).await;
    assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
}

#[tokio::test]
async fn a_failing_server_is_passed_over() {
    let failing = Upstream::start(Behaviour::Fail).await;
    let good = Upstream::start(Behaviour::Answer { ttl: 0 }).await;
    let running = Running::start(&[failing.address, good.address]).await;
    assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
    let alone = Running::start(&[failing.address]).await;
    assert_eq!(alone.ask("www.example.com.").await.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_silent_server_is_asked_last() {
    let silent = Upstream::start(Behaviour::Silent).await;
    let good = Upstream::start(Behaviour::Answer { ttl: 0 }).await;
    let running = Running::start(&[silent.address, good.address]).await;
    for _ in 0..2 {
        assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
    }
    let questions = || silent.asked_for("www.example.com.");
    assert_eq!(questions(), 2);
    for _ in 0..5 {
        assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
    }
    assert_eq!(questions(), 2, "dead servers are asked only when no other answers");
    // It is seen to live again, and is the first again.
    silent.behave(Behaviour::Answer { ttl: 0 });
    let (before, mut tries) = (good.asked(), 0);
    while silent.asked_for("www.example.com.") == 2 {
        assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        tries += 1;
        assert!(tries < 600, "it is still passed over ({} questions to the other)", good.asked() - before);
    }
}

#[tokio::test]
async fn nobody_answering_is_a_failure_in_time() {
    let silent = Upstream::start(Behaviour::Silent).await;
    let running = Running::start(&[silent.address]).await;
    let answer = tokio::time::timeout(Duration::from_secs(15), running.ask("www.example.com.")).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(silent.asked() >= 2, "a datagram may be lost");
    let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let running = Running::start(&[port]).await;
    assert_eq!(running.ask("www.example.com.").await.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn answers_of_strangers_are_not_taken() {
    let upstream = Upstream::start(Behaviour::Spoofed).await;
    let running = Running::start(&[upstream.address]).await;
    assert_eq!(addresses(&running.ask("www.example.com.").await), ["192.0.2.80"]);
}

#[tokio::test]
async fn malformed_questions_are_told_and_do_no_harm() {
    let running = Running::start(&[]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(running.address).await.unwrap();
    let mut broken = question("web.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    broken.pop();
    socket.send(&[]).await.unwrap();
    socket.send(&[0; 5]).await.unwrap();
    socket.send(&broken).await.unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::FormErr);
    // By TCP the connection may go on.
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_u16(broken.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&broken).await.unwrap();
    let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer).unwrap().metadata.response_code, ResponseCode::FormErr);
    assert_eq!(addresses(&running.ask("web.default.svc.cluster.local.").await), ["10.96.0.1"]);
}

#[tokio::test]
async fn the_sockets_can_be_had_again_at_once() {
    let running = Running::start(&[]).await;
    let ask = question("web.default.svc.cluster.local.", RecordType::A);
    // A connection that we close first lingers.
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    tcp_on(&mut stream, &ask).await;
    for _ in 0..3 {
        let cancel = CancellationToken::new();
        running.cancel.cancel();
        let again = tokio::spawn(listen(running.server.clone(), running.address, cancel.clone()));
        while TcpStream::connect(running.address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(addresses(&udp(running.address, &ask).await), ["10.96.0.1"]);
        cancel.cancel();
        again.await.unwrap();
    }
}
