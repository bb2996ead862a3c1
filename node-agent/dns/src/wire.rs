//! Bytes to questions, replies to bytes. Pure; takes anything a network may bring.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;
use rand::seq::SliceRandom;

use crate::answer::Reply;

/// Largest datagram we send and ask for: fits every path without fragments.
pub const UDP_PAYLOAD: u16 = 1232;
/// What every resolver takes without saying so.
const PLAIN_PAYLOAD: u16 = 512;
const HEADER: usize = 12;

/// What to do with bytes from a client.
#[derive(Debug)]
pub enum Read {
    /// A question.
    Question(Request),
    /// Nothing that can be answered, as an answer would only be answered again.
    Ignore,
    /// No good, and told so.
    Refused(Refusal),
}

/// A request that is answered with a code and nothing else.
#[derive(Debug)]
pub struct Refusal {
    /// The code.
    pub code: ResponseCode,
    /// The reply.
    pub bytes: Vec<u8>,
}

/// A question and how its answer is to look.
#[derive(Clone, Debug)]
pub struct Request {
    /// The client's number for it.
    pub id: u16,
    /// The question, in the client's spelling.
    pub query: Query,
    /// Flags that go back as they came.
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    /// The client's EDNS: largest datagram it takes, whether it wants DNSSEC's records.
    pub edns: Option<(u16, bool)>,
}

impl Request {
    /// It wants DNSSEC's records.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|(_, dnssec_ok)| dnssec_ok)
    }

    /// Largest datagram for the reply.
    pub fn payload(&self) -> u16 {
        self.edns.map_or(PLAIN_PAYLOAD, |(size, _)| size.clamp(PLAIN_PAYLOAD, UDP_PAYLOAD))
    }
}

/// Reads what a client sent.
pub fn read(bytes: &[u8]) -> Read {
    // Too short for a number to answer to, or an answer itself.
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Read::Ignore;
    }
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    let op_code = OpCode::from_u8((bytes[2] >> 3) & 0x0f);
    let refuse = |code: ResponseCode, message: Option<&Message>| {
        let mut reply = Message::response(id, op_code);
        reply.metadata.response_code = code;
        if let Some(message) = message {
            reply.metadata.recursion_desired = message.metadata.recursion_desired;
            reply.queries = message.queries.clone();
            if message.edns.is_some() {
                reply.set_edns(edns(false));
            }
        }
        match reply.to_vec() {
            Ok(bytes) => Read::Refused(Refusal { code, bytes }),
            Err(_) => Read::Ignore,
        }
    };
    if op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp, None);
    }
    let Ok(message) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr, None) };
    let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr, None) };
    if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return refuse(ResponseCode::BADVERS, Some(&message));
    }
    if query.query_class() != DNSClass::IN {
        return refuse(ResponseCode::Refused, Some(&message));
    }
    Read::Question(Request {
        id,
        query: query.clone(),
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        edns: message.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)),
    })
}

fn edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(dnssec_ok);
    edns
}

/// Writes a reply of at most `limit` bytes. What does not fit is left out: additional records without a word, as they are only
/// a help, answers with the mark that makes the client come again by TCP (those that fit stay, for clients that do not).
pub fn write(request: &Request, reply: Reply, limit: usize) -> Vec<u8> {
    let mut message = Message::response(request.id, OpCode::Query);
    message.metadata.recursion_desired = request.recursion_desired;
    message.metadata.checking_disabled = request.checking_disabled;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = reply.authoritative;
    message.metadata.response_code = reply.code;
    message.queries = vec![request.query.clone()];
    message.answers = reply.answers;
    message.authorities = reply.authorities;
    message.additionals = reply.additionals;
    if request.edns.is_some() {
        message.set_edns(edns(request.dnssec_ok()));
    }
    if let Some(bytes) = fitting(&message, limit) {
        return bytes;
    }
    message.additionals.clear();
    if let Some(bytes) = fitting(&message, limit) {
        return bytes;
    }
    message.authorities.clear();
    message.metadata.truncation = true;
    let answers = std::mem::take(&mut message.answers);
    let (mut fits, mut too_many) = (0, answers.len());
    let mut best = None;
    while fits < too_many {
        let middle = fits + (too_many - fits) / 2;
        message.answers = answers[..middle].to_vec();
        match fitting(&message, limit) {
            Some(bytes) => (fits, best) = (middle + 1, Some(bytes)),
            None => too_many = middle,
        }
    }
    best.unwrap_or_else(|| failure(request))
}

fn fitting(message: &Message, limit: usize) -> Option<Vec<u8>> {
    message.to_vec().ok().filter(|bytes| bytes.len() <= limit)
}

/// The header alone: cannot fail, whatever the records were.
fn failure(request: &Request) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..2].copy_from_slice(&request.id.to_be_bytes());
    bytes[2] = 0x80 | u8::from(request.recursion_desired);
    bytes[3] = 0x80 | ResponseCode::ServFail.low();
    bytes
}

/// Puts addresses that stand side by side in another order, so that clients who take the first are spread.
pub fn shuffle(reply: &mut Reply) {
    let is_address = |kind| matches!(kind, hickory_proto::rr::RecordType::A | hickory_proto::rr::RecordType::AAAA);
    for run in reply.answers.chunk_by_mut(|a, b| a.record_type() == b.record_type() && a.name == b.name) {
        if run.len() > 1 && is_address(run[0].record_type()) {
            run.shuffle(&mut rand::rng());
        }
    }
}

/// A question to an upstream server.
pub fn question(query: &Query, dnssec_ok: bool, checking_disabled: bool, with_edns: bool) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(query.clone());
    if with_edns {
        message.set_edns(edns(dnssec_ok));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    fn query(name: &str) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message
    }

    fn request(message: &Message) -> Request {
        match read(&message.to_vec().unwrap()) {
            Read::Question(request) => request,
            other => panic!("{other:?}"),
        }
    }

    fn code(bytes: &[u8]) -> Option<ResponseCode> {
        match read(bytes) {
            Read::Refused(refusal) => {
                let reply = Message::from_vec(&refusal.bytes).unwrap();
                assert_eq!(reply.metadata.message_type, MessageType::Response);
                assert_eq!(reply.metadata.id.to_be_bytes(), bytes[..2]);
                assert_eq!(u16::from(reply.metadata.response_code), u16::from(refusal.code));
                Some(refusal.code)
            }
            Read::Question(_) | Read::Ignore => None,
        }
    }

    fn many(count: u8) -> Reply {
        let name = Name::from_ascii("Many.Example.").unwrap();
        let record = |last| Record::from_rdata(name.clone(), 5, RData::A(A([10, 0, 0, last].into())));
        Reply { answers: (0..count).map(record).collect(), additionals: (0..4).map(record).collect(), ..Reply::default() }
    }

    #[test]
    fn what_is_no_question_is_told_so() {
        let good = query("a.example.");
        let change = |how: fn(&mut Message)| {
            let mut message = good.clone();
            how(&mut message);
            code(&message.to_vec().unwrap())
        };
        assert_eq!(change(|_| ()), None);
        assert_eq!(change(|m| m.queries.clear()), Some(ResponseCode::FormErr));
        assert_eq!(change(|m| m.queries.push(m.queries[0].clone())), Some(ResponseCode::FormErr));
        assert_eq!(change(|m| m.metadata.op_code = OpCode::Notify), Some(ResponseCode::NotImp));
        assert_eq!(change(|m| m.metadata.op_code = OpCode::Update), Some(ResponseCode::NotImp));
        assert_eq!(change(|m| m.queries[0].query_class = DNSClass::CH), Some(ResponseCode::Refused));
        let newer = |m: &mut Message| {
            let mut edns = Edns::new();
            edns.set_version(1);
            m.set_edns(edns);
        };
        assert_eq!(change(newer), Some(ResponseCode::BADVERS));
        let bytes = good.to_vec().unwrap();
        assert_eq!(code(&bytes[..bytes.len() - 1]), Some(ResponseCode::FormErr));
        // A name that points at itself.
        let mut looping = bytes[..12].to_vec();
        looping.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&looping), Some(ResponseCode::FormErr));
        assert!(matches!(read(&bytes[..11]), Read::Ignore));
        assert!(matches!(read(&Message::response(1, OpCode::Query).to_vec().unwrap()), Read::Ignore), "answers are not answered");
    }

    #[test]
    fn replies_fit() {
        let mut message = query("Many.Example.");
        let plain = request(&message);
        let bytes = write(&plain, many(20), plain.payload().into());
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (20, false));
        assert_eq!(reply.queries[0].name().to_ascii(), "Many.Example.");
        assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired && reply.edns.is_none());

        // Answers before additional records, and those that fit before none.
        let reply = Message::from_vec(&write(&plain, many(29), 512)).unwrap();
        assert_eq!((reply.answers.len(), reply.additionals.len(), reply.metadata.truncation), (29, 0, false));
        let bytes = write(&plain, many(200), 512);
        assert!(bytes.len() <= 512);
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (30, true));

        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        message.set_edns(edns);
        let large = request(&message);
        assert_eq!(large.payload(), UDP_PAYLOAD);
        let reply = Message::from_vec(&write(&large, many(60), large.payload().into())).unwrap();
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (60, false));
        let theirs = reply.edns.unwrap();
        assert_eq!((theirs.max_payload(), theirs.version(), theirs.flags().dnssec_ok), (UDP_PAYLOAD, 0, true));
    }

    #[test]
    fn names_are_compressed() {
        let plain = request(&query("Many.Example."));
        // Owner names beyond the first are two bytes: 12 header, 18 question, 16 a record.
        assert_eq!(write(&plain, Reply { additionals: Vec::new(), ..many(3) }, 512).len(), 12 + 18 + 3 * 16);
    }

    #[test]
    fn only_addresses_change_places() {
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut reply = many(3);
            let alias = Name::from_ascii("alias.example.").unwrap();
            let cname = RData::CNAME(hickory_proto::rr::rdata::CNAME(alias.clone()));
            reply.answers.insert(0, Record::from_rdata(alias, 5, cname));
            shuffle(&mut reply);
            assert_eq!(reply.answers[0].record_type(), RecordType::CNAME);
            orders.insert(reply.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>());
        }
        assert_eq!(orders.len(), 6);
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Read::Refused(refusal) = read(&bytes) {
                prop_assert!(Message::from_vec(&refusal.bytes).is_ok());
            }
        }

        #[test]
        fn broken_questions_are_answered_or_told(position in 0usize..60, value in any::<u8>(), cut in 0usize..60) {
            let mut message = query("_https._tcp.web.default.svc.cluster.local.");
            message.set_edns(edns(true));
            let mut bytes = message.to_vec().unwrap();
            let length = bytes.len();
            bytes[position % length] = value;
            bytes.truncate(length - cut % length);
            match read(&bytes) {
                Read::Question(request) => {
                    let reply = write(&request, many(40), request.payload().into());
                    prop_assert!(reply.len() <= usize::from(request.payload()));
                    prop_assert!(Message::from_vec(&reply).is_ok());
                }
                Read::Refused(refusal) => prop_assert!(Message::from_vec(&refusal.bytes).is_ok()),
                Read::Ignore => {}
            }
        }
    }
}
