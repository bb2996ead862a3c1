//! Counters of the server, served at `/metrics`.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{cache::Hub, request_info::RequestInfo};

/// Labels of a finished request, upstream's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: String,
    group: String,
    resource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    resource: String,
}

type Durations = Family<VerbLabels, Histogram, fn() -> Histogram>;

/// All counters of one server.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    durations: Durations,
    inflight: Gauge,
    objects: Family<KindLabels, Gauge>,
    watchers: Family<KindLabels, Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        fn histogram() -> Histogram {
            Histogram::new(exponential_buckets(0.001, 2.5, 10))
        }
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations: Durations = Family::new_with_constructor(histogram);
        let (inflight, objects, watchers) = (Gauge::default(), Family::default(), Family::default());
        registry.register("apiserver_request", "Requests answered", requests.clone());
        registry.register("apiserver_request_duration_seconds", "Seconds until the answer's head, watches left out", durations.clone());
        registry.register("apiserver_current_inflight_requests", "Requests under way", inflight.clone());
        registry.register("apiserver_storage_objects", "Live objects", objects.clone());
        registry.register("apiserver_longrunning_watchers", "Open watches", watchers.clone());
        Metrics { registry: Mutex::new(registry), requests, durations, inflight, objects, watchers }
    }

    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.inflight.inc();
        InFlight(self)
    }

    pub(crate) fn finished(&self, info: &RequestInfo, known: bool, code: u16, took: Duration) {
        // Names the client made up would make series without end.
        let text = |s: &str| if known { s.to_string() } else { String::new() };
        self.requests
            .get_or_create(&RequestLabels {
                verb: info.verb.to_uppercase(),
                group: text(&info.group),
                version: text(&info.version),
                resource: text(&info.resource),
                subresource: text(&info.subresource),
                code: code.into(),
            })
            .inc();
        if !info.is_long_running() {
            let labels = VerbLabels { verb: info.verb.to_uppercase(), group: text(&info.group), resource: text(&info.resource) };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// The text form.
    pub(crate) fn render(&self, hub: &Hub) -> String {
        for kind in hub.kinds() {
            let labels = KindLabels { resource: kind.resource.qualified_plural() };
            self.objects.get_or_create(&labels).set(kind.len() as i64);
            self.watchers.get_or_create(&labels).set(kind.watcher_count() as i64);
        }
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut out, &self.registry.lock());
        out
    }
}

/// Counts a request as under way while it lives.
pub(crate) struct InFlight<'a>(&'a Metrics);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.inflight.dec();
    }
}
