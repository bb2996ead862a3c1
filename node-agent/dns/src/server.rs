//! From a client's bytes to the bytes it gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use parking_lot::RwLock;

use crate::answer::{Answer, Reply, Zones, answer};
use crate::forward::{Error, Forwarder, Question};
use crate::metrics::{Metrics, Protocol, Source};
use crate::records::Records;
use crate::wire::{self, Read, Request};

/// Everything an answer depends on.
pub struct Server {
    pub zones: Zones,
    pub records: RwLock<Records>,
    /// The records were complete once: from then on they are followed.
    pub synced: AtomicBool,
    pub forwarder: Forwarder,
    pub metrics: Metrics,
}

/// What came of a client's bytes.
pub enum Begun {
    /// Nothing to say.
    Silence,
    /// This is the reply.
    Done(Vec<u8>),
    /// Others must be asked: see [`Server::finish`].
    Waiting(Box<Waiting>),
}

/// A request whose answer others have.
pub struct Waiting {
    request: Request,
    protocol: Protocol,
    since: Instant,
    aliases: Vec<Record>,
    target: Name,
}

impl Server {
    /// Answers what can be answered at once.
    pub fn begin(&self, bytes: &[u8], protocol: Protocol) -> Begun {
        let since = Instant::now();
        let request = match wire::read(bytes) {
            Read::Question(request) => request,
            Read::Ignore => return Begun::Silence,
            Read::Refused(refusal) => {
                self.metrics.answered(protocol, RecordType::ZERO, refusal.code, Source::Refused, since.elapsed());
                return Begun::Done(refusal.bytes);
            }
        };
        let (name, kind) = (request.query.name(), request.query.query_type());
        if self.forwarder.is_probe(name) {
            return Begun::Silence;
        }
        let answer = answer(&self.zones, &self.records.read(), name, kind);
        let (aliases, target) = match answer {
            // Half of the records would be worse than none.
            Answer::Ours(_) | Answer::Continue { .. } if !self.synced.load(Ordering::Acquire) => {
                let reply = Reply::code(ResponseCode::ServFail);
                return Begun::Done(self.write(&request, reply, protocol, since, Source::Cluster));
            }
            Answer::Ours(reply) => {
                return Begun::Done(self.write(&request, reply, protocol, since, Source::Cluster));
            }
            Answer::Continue { aliases, target } => (aliases, target),
            Answer::Forward => (Vec::new(), name.clone()),
        };
        let question = question(&request, &target);
        match self.forwarder.remembered(&question) {
            Some(reply) => Begun::Done(self.write(&request, joined(aliases, reply), protocol, since, Source::Cache)),
            None => Begun::Waiting(Box::new(Waiting { request, protocol, since, aliases, target })),
        }
    }

    /// Asks others.
    pub async fn finish(&self, waiting: Waiting) -> Vec<u8> {
        let Waiting { request, protocol, since, aliases, target } = waiting;
        let reply = match self.forwarder.ask(&question(&request, &target)).await {
            Ok(reply) => joined(aliases, reply),
            // Nobody to ask is no accident that another try would mend.
            Err(Error::Nobody) => Reply::code(ResponseCode::Refused),
            Err(error @ (Error::Silence(_) | Error::Busy)) => {
                tracing::debug!(name = %target, %error, "not answered");
                Reply::code(ResponseCode::ServFail)
            }
        };
        self.write(&request, reply, protocol, since, Source::Upstream)
    }

    fn write(&self, request: &Request, mut reply: Reply, protocol: Protocol, since: Instant, source: Source) -> Vec<u8> {
        wire::shuffle(&mut reply);
        self.metrics.answered(protocol, request.query.query_type(), reply.code, source, since.elapsed());
        let limit = match protocol {
            Protocol::Udp => request.payload(),
            Protocol::Tcp => u16::MAX,
        };
        wire::write(request, reply, limit.into())
    }

    /// The whole way; for clients that wait by themselves.
    pub async fn serve(self: &Arc<Self>, bytes: &[u8], protocol: Protocol) -> Option<Vec<u8>> {
        match self.begin(bytes, protocol) {
            Begun::Silence => None,
            Begun::Done(bytes) => Some(bytes),
            Begun::Waiting(waiting) => Some(self.finish(*waiting).await),
        }
    }
}

fn question(request: &Request, target: &Name) -> Question {
    Question {
        name: target.clone(),
        kind: request.query.query_type(),
        dnssec_ok: request.dnssec_ok(),
        checking_disabled: request.checking_disabled,
    }
}

/// Aliases of ours, and what others say of the name they lead to.
fn joined(aliases: Vec<Record>, mut reply: Reply) -> Reply {
    reply.answers.splice(..0, aliases);
    reply
}
