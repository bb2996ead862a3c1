//! A name server that behaves as a test wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// What it does with a question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Behaviour {
    /// Knows every name but `missing...`.
    Answer {
        ttl: u32,
    },
    /// The same after a while.
    Late {
        pause: Duration,
    },
    /// Says by UDP that it has more to say.
    Truncate,
    /// Does not know EDNS.
    NoEdns,
    Fail,
    Silent,
    /// Before the answer come some that are not.
    Spoofed,
}

#[derive(Default)]
struct Seen {
    udp: Vec<Name>,
    tcp: Vec<Name>,
}

/// It runs until it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    pub async fn start(behaviour: Behaviour) -> Upstream {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The number may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (Arc::new(udp), tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (behaviour, seen) = (Arc::new(Mutex::new(behaviour)), Arc::new(Mutex::new(Seen::default())));
        let mut tasks = JoinSet::new();
        tasks.spawn(by_udp(udp, behaviour.clone(), seen.clone()));
        tasks.spawn(by_tcp(tcp, seen.clone()));
        Upstream { address, behaviour, seen, _tasks: tasks }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    pub fn asked(&self) -> usize {
        self.seen.lock().udp.len()
    }

    pub fn asked_for(&self, name: &str) -> usize {
        let name = Name::from_ascii(name).unwrap();
        self.seen.lock().udp.iter().filter(|asked| **asked == name).count()
    }

    pub fn asked_by_tcp(&self) -> usize {
        self.seen.lock().tcp.len()
    }
}

async fn by_udp(socket: Arc<UdpSocket>, behaviour: Arc<Mutex<Behaviour>>, seen: Arc<Mutex<Seen>>) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let question = Message::from_vec(&buffer[..length]).unwrap();
        seen.lock().udp.push(question.queries[0].name().clone());
        let behaviour = *behaviour.lock();
        let replies = match behaviour {
            Behaviour::Silent => Vec::new(),
            Behaviour::Fail => vec![code(&question, ResponseCode::ServFail)],
            Behaviour::NoEdns if question.edns.is_some() => {
                let mut bare = code(&question, ResponseCode::FormErr);
                bare.queries.clear();
                vec![bare]
            }
            Behaviour::Truncate => {
                let mut reply = code(&question, ResponseCode::NoError);
                reply.metadata.truncation = true;
                vec![reply]
            }
            Behaviour::Spoofed => {
                let mut other_number = answer(&question, [203, 0, 113, 1], 60);
                other_number.metadata.id ^= 1;
                let mut other_name = answer(&question, [203, 0, 113, 1], 60);
                other_name.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
                vec![other_number, other_name, answer(&question, [192, 0, 2, 80], 60)]
            }
            Behaviour::Answer { ttl } => vec![answer(&question, [192, 0, 2, 80], ttl)],
            Behaviour::NoEdns | Behaviour::Late { .. } => vec![answer(&question, [192, 0, 2, 80], 60)],
        };
        if let Behaviour::Late { pause } = behaviour {
            tokio::time::sleep(pause).await;
        }
        for reply in replies {
            socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
        }
    }
}

async fn by_tcp(listener: TcpListener, seen: Arc<Mutex<Seen>>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut buffer).await.unwrap();
        let question = Message::from_vec(&buffer).unwrap();
        seen.lock().tcp.push(question.queries[0].name().clone());
        let reply = answer(&question, [192, 0, 2, 80], 60).to_vec().unwrap();
        stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&reply).await.unwrap();
    }
}

fn code(question: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.metadata.response_code = code;
    reply.queries = question.queries.clone();
    reply
}

fn answer(question: &Message, address: [u8; 4], ttl: u32) -> Message {
    let query = &question.queries[0];
    if query.name().iter().next() == Some(b"missing") {
        let mut reply = code(question, ResponseCode::NXDomain);
        let zone = Name::from_ascii("example.com.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 60);
        reply.authorities.push(Record::from_rdata(zone, 60, RData::SOA(soa)));
        return reply;
    }
    let mut reply = code(question, ResponseCode::NoError);
    if query.query_type() == RecordType::A {
        reply.answers.push(Record::from_rdata(query.name().clone(), ttl, RData::A(A(address.into()))));
    }
    reply
}
