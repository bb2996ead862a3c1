//! What Prometheus sees of the name server.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// From the cluster's objects.
    Cluster,
    /// From memory.
    Cache,
    /// From another server.
    Upstream,
    /// From the bytes alone: refused.
    Refused,
}

impl Source {
    fn label(self) -> &'static str {
        match self {
            Source::Cluster => "cluster",
            Source::Cache => "cache",
            Source::Upstream => "upstream",
            Source::Refused => "refused",
        }
    }
}

/// How asking another server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardResult {
    /// With an answer.
    Answered,
    /// With a failure of its own.
    Failure,
    /// With nothing.
    Timeout,
    /// With an error of the network.
    Error,
}

impl ForwardResult {
    fn label(self) -> &'static str {
        match self {
            ForwardResult::Answered => "answered",
            ForwardResult::Failure => "failure",
            ForwardResult::Timeout => "timeout",
            ForwardResult::Error => "error",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    protocol: &'static str,
    r#type: String,
    rcode: &'static str,
}

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Udp,
    Tcp,
}

impl Protocol {
    fn label(self) -> &'static str {
        match self {
            Protocol::Udp => "udp",
            Protocol::Tcp => "tcp",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ForwardLabels {
    to: String,
    result: &'static str,
}

/// The figures; clones share them.
#[derive(Clone)]
pub struct Metrics {
    queries: Family<QueryLabels, Counter>,
    seconds: Family<SourceLabel, Histogram, fn() -> Histogram>,
    lookups: Family<CacheLabel, Counter>,
    entries: Gauge,
    forwards: Family<ForwardLabels, Counter>,
    serving: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        // From memory in microseconds to a name server that was asked three times.
        let histogram: fn() -> Histogram = || Histogram::new([0.00005, 0.0002, 0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 5.0]);
        Metrics {
            queries: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            lookups: Family::default(),
            entries: Gauge::default(),
            forwards: Family::default(),
            serving: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Makes the figures visible.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("xebec_dns");
        registry.register("queries", "Questions of clients by how they came, type and response code", self.queries.clone());
        registry.register_with_unit("answer", "Time to an answer by where it came from", Unit::Seconds, self.seconds.clone());
        registry.register("cache_lookups", "Questions for names outside the cluster by whether the answer was known", self.lookups.clone());
        registry.register("cache_entries", "Answers of other servers that are kept", self.entries.clone());
        registry.register("forwards", "Questions to other servers by server and how they ended", self.forwards.clone());
        registry.register("serving_addresses", "Cluster DNS addresses that are answered at", self.serving.clone());
    }

    pub(crate) fn answered(&self, protocol: Protocol, kind: RecordType, code: ResponseCode, source: Source, took: Duration) {
        self.queries.get_or_create(&QueryLabels { protocol: protocol.label(), r#type: type_label(kind), rcode: code_label(code) }).inc();
        self.seconds.get_or_create(&SourceLabel { source: source.label() }).observe(took.as_secs_f64());
    }

    pub(crate) fn cache(&self, hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        self.lookups.get_or_create(&CacheLabel { result }).inc();
    }

    pub(crate) fn cached(&self, entries: usize) {
        self.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    pub(crate) fn forwarded(&self, to: SocketAddr, result: ForwardResult) {
        self.forwards.get_or_create(&ForwardLabels { to: to.to_string(), result: result.label() }).inc();
    }

    pub(crate) fn serving(&self, addresses: usize) {
        self.serving.set(i64::try_from(addresses).unwrap_or(i64::MAX));
    }
}

/// Clients choose the type: only well-known ones get a series of their own.
fn type_label(kind: RecordType) -> String {
    use RecordType::{A, AAAA, ANY, CAA, CNAME, HTTPS, MX, NAPTR, NS, PTR, SOA, SRV, SVCB, TXT};
    match kind {
        A | AAAA | ANY | CAA | CNAME | HTTPS | MX | NAPTR | NS | PTR | SOA | SRV | SVCB | TXT => kind.to_string(),
        _ => "other".to_owned(),
    }
}

fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_under_their_names() {
        let (mut registry, metrics) = (Registry::default(), Metrics::default());
        metrics.register(&mut registry);
        metrics.answered(Protocol::Udp, RecordType::A, ResponseCode::NXDomain, Source::Cluster, Duration::from_micros(70));
        metrics.answered(Protocol::Tcp, RecordType::Unknown(4711), ResponseCode::NoError, Source::Cache, Duration::ZERO);
        metrics.cache(true);
        metrics.forwarded("192.0.2.1:53".parse().unwrap(), ForwardResult::Timeout);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "xebec_dns_queries_total{protocol=\"udp\",type=\"A\",rcode=\"NXDOMAIN\"} 1",
            "xebec_dns_queries_total{protocol=\"tcp\",type=\"other\",rcode=\"NOERROR\"} 1",
            "xebec_dns_answer_seconds_count{source=\"cluster\"} 1",
            "xebec_dns_cache_lookups_total{result=\"hit\"} 1",
            "xebec_dns_forwards_total{to=\"192.0.2.1:53\",result=\"timeout\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
