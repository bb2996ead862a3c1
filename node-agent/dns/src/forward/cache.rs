//! Answers of other servers, for as long as they said.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::answer::Reply;

/// No answer is kept longer, whatever it says.
const MAX_TTL: u32 = 3600;
/// Nor is the absence of one: what a pod waits for may appear.
const MAX_NEGATIVE_TTL: u32 = 30;

/// What was asked for. Names compare without case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    pub name: Name,
    pub kind: RecordType,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

struct Entry {
    reply: Arc<Reply>,
    stored: Instant,
    ttl: u32,
}

/// A bounded cache in two generations: what is not asked for during one is forgotten with it.
pub struct Cache {
    young: HashMap<Question, Entry>,
    old: HashMap<Question, Entry>,
    capacity: usize,
}

impl Cache {
    /// For about so many answers.
    pub fn new(capacity: usize) -> Cache {
        Cache { young: HashMap::new(), old: HashMap::new(), capacity: capacity.max(2) }
    }

    /// The answer with what is left of its life.
    pub fn get(&mut self, question: &Question, now: Instant) -> Option<Reply> {
        if let Some(entry) = self.old.remove(question) {
            self.insert(question.clone(), entry);
        }
        let entry = self.young.get(question)?;
        let age = u32::try_from(now.saturating_duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        if age >= entry.ttl {
            self.young.remove(question);
            return None;
        }
        let mut reply = (*entry.reply).clone();
        for record in reply.answers.iter_mut().chain(&mut reply.authorities).chain(&mut reply.additionals) {
            record.ttl = record.ttl.min(MAX_TTL).saturating_sub(age);
        }
        Some(reply)
    }

    /// Keeps an answer if it may be kept.
    pub fn put(&mut self, question: Question, reply: Arc<Reply>, now: Instant) {
        if let Some(ttl) = ttl(&reply).filter(|ttl| *ttl > 0) {
            self.old.remove(&question);
            self.insert(question, Entry { reply, stored: now, ttl });
        }
    }

    fn insert(&mut self, question: Question, entry: Entry) {
        if self.young.len() >= self.capacity / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(question, entry);
    }

    /// How many answers it holds, dead ones among them.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// For how long an answer may be kept; `None`: not at all.
fn ttl(reply: &Reply) -> Option<u32> {
    let soa = reply.authorities.iter().find_map(|record: &Record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let shortest = reply.answers.iter().map(|record| record.ttl).min();
    match reply.code {
        ResponseCode::NoError if shortest.is_some() && soa.is_none() => Some(shortest?.min(MAX_TTL)),
        // Absence without an SOA is no statement.
        ResponseCode::NoError | ResponseCode::NXDomain => Some(soa?.min(shortest.unwrap_or(u32::MAX)).min(MAX_NEGATIVE_TTL)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, SOA};

    fn after(start: Instant, seconds: u64) -> Instant {
        start + std::time::Duration::from_secs(seconds)
    }

    fn question(name: &str) -> Question {
        Question { name: Name::from_ascii(name).unwrap(), kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn positive(ttls: &[u32]) -> Arc<Reply> {
        let name = Name::from_ascii("a.example.").unwrap();
        let record = |ttl: &u32| Record::from_rdata(name.clone(), *ttl, RData::A(A([192, 0, 2, 1].into())));
        Arc::new(Reply { answers: ttls.iter().map(record).collect(), ..Reply::default() })
    }

    fn negative(code: ResponseCode, ttl: u32, minimum: u32) -> Arc<Reply> {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
        Arc::new(Reply { code, authorities: vec![Record::from_rdata(name, ttl, RData::SOA(soa))], ..Reply::default() })
    }

    #[test]
    fn lives_are_bounded() {
        let bare = |code| Arc::new(Reply { code, ..Reply::default() });
        let cases = [
            (positive(&[60, 10]), Some(10)),
            (positive(&[0]), Some(0)),
            (positive(&[86400]), Some(MAX_TTL)),
            (negative(ResponseCode::NXDomain, 20, 10), Some(10)),
            (negative(ResponseCode::NXDomain, 5, 10), Some(5)),
            (negative(ResponseCode::NoError, 600, 600), Some(MAX_NEGATIVE_TTL)),
            (bare(ResponseCode::NXDomain), None),
            (bare(ResponseCode::NoError), None),
            (negative(ResponseCode::ServFail, 600, 600), None),
            (bare(ResponseCode::Refused), None),
        ];
        for (reply, expected) in cases {
            assert_eq!(ttl(&reply), expected, "{reply:?}");
        }
    }

    #[test]
    fn answers_age_and_die() {
        let (mut cache, start) = (Cache::new(100), Instant::now());
        cache.put(question("a.example."), positive(&[60, 10]), start);
        let ttls = |reply: Reply| reply.answers.iter().map(|record| record.ttl).collect::<Vec<_>>();
        assert_eq!(cache.get(&question("A.Example."), after(start, 4)).map(ttls), Some(vec![56, 6]));
        assert_eq!(cache.get(&question("b.example."), start), None);
        let other = Question { dnssec_ok: true, ..question("a.example.") };
        assert_eq!(cache.get(&other, start), None);
        assert_eq!(cache.get(&question("a.example."), after(start, 10)), None);
        assert_eq!(cache.len(), 0);
        cache.put(question("a.example."), positive(&[0]), start);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn what_is_asked_for_outlives_a_flood() {
        let (mut cache, now) = (Cache::new(100), Instant::now());
        cache.put(question("kept.example."), positive(&[60]), now);
        for number in 0..10_000 {
            cache.put(question(&format!("{number}.example.")), positive(&[60]), now);
            assert!(cache.len() <= 100);
            if number % 20 == 0 {
                assert!(cache.get(&question("kept.example."), now).is_some());
            }
        }
        assert!(cache.get(&question("kept.example."), now).is_some());
        assert!(cache.get(&question("0.example."), now).is_none());
    }
}
