//! Watching: events from the cache, filtered, encoded once for each watcher, until the time is up.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use xebec_api::status::{self, ApiError};
use xebec_store::Revision;

use super::{Call, list::Selectors, options, present::Presenter, store_error};
use crate::{
    cache::{CacheEvent, Entry, Start, WatchScope},
    core::Core,
    http::{
        BoxError, Response,
        negotiate::{Format, Shape},
        stream as stream_body,
    },
};

/// Bookmarks come this often, as upstream.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` lasts between this and twice this.
const MIN_TIMEOUT: Duration = Duration::from_secs(1800);

/// One running watch.
struct Watch {
    core: Arc<Core>,
    presenter: Presenter,
    selectors: Selectors,
    events: mpsc::Receiver<Arc<CacheEvent>>,
    /// Events up to this one are none of the client's: it asked for what comes after.
    since: Revision,
    /// Revision up to which the client knows everything.
    seen: Revision,
    bookmarks: Option<tokio::time::Interval>,
    deadline: Instant,
    first: bool,
    ended: bool,
}

/// GET with `watch=true`.
pub(crate) async fn watch(call: Call) -> Result<Response, ApiError> {
    let kind = call.kind()?;
    let query = call.query();
    let presenter = Presenter::new(call.resource.clone(), call.wanted()?, query)?;
    let selectors = Selectors::parse(&call)?;
    options::version_match(query, true)?;
    let send_initial = query.flag("sendInitialEvents");
    let bookmarks = query.flag("allowWatchBookmarks");
    let asked = options::resource_version(query.get("resourceVersion"))?;
    let timeout = timeout(query.get("timeoutSeconds"))?;
    let hub = call.core.hub.clone();

    let start = if asked == 0 || send_initial { Start::Present } else { Start::After(asked) };
    // sendInitialEvents=false starts at the given or present revision without synthetic events.
    let start = if query.has("sendInitialEvents") && !send_initial && asked == 0 { Start::After(hub.revision()) } else { start };
    if start == Start::Present {
        if query.get("resourceVersion").is_empty() {
            hub.wait_for_present().await.map_err(store_error)?;
        } else if asked > 0 && !hub.wait(asked).await {
            return Err(status::too_large_resource_version(asked, hub.revision()));
        }
    }
    let exact_name = selectors.fields.exact("metadata.name").unwrap_or_default().to_string();
    let scope = WatchScope {
        namespace: call.namespace().unwrap_or_default().to_string(),
        name: if call.info.name.is_empty() { exact_name } else { call.info.name.clone() },
    };
    let reached = hub.revision();
    let subscription = match kind.subscribe(scope, start) {
        Ok(subscription) => subscription,
        Err(too_old) => {
            // Upstream answers 200 and sends the error as an event.
            let error = status::watch_too_old(asked, too_old.oldest);
            let event = event_line("ERROR", &serde_json::to_vec(&error.to_document()).unwrap_or_default());
            return Ok(answer(&presenter, stream::iter([Ok(event)])));
        }
    };
    let mut watch = Watch {
        core: call.core.clone(),
        presenter,
        selectors,
        events: subscription.events,
        since: match start {
            Start::Present => 0,
            Start::After(revision) => revision,
        },
        seen: match start {
            Start::Present => reached.max(subscription.revision),
            Start::After(revision) => revision,
        },
        bookmarks: bookmarks.then(|| tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY)),
        deadline: Instant::now() + timeout,
        first: true,
        ended: false,
    };
    let mut opening = Vec::new();
    for entry in &subscription.initial {
        if watch.selectors.matches(&watch.presenter, entry) {
            opening.push(watch.encode("ADDED", entry, entry.revision));
        }
    }
    if send_initial && bookmarks {
        opening.push(watch.bookmark(true));
    }
    for event in &subscription.backlog {
        opening.extend(watch.translate(event));
    }
    let opening = stream::iter(opening.into_iter().map(Ok));
    let rest = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok(chunk), watch))
    });
    let presenter = Presenter::new(call.resource.clone(), call.wanted()?, call.query())?;
    Ok(answer(&presenter, opening.chain(rest)))
}

impl Watch {
    /// The next chunk to send; none when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        loop {
            let tick = async {
                match &mut self.bookmarks {
                    Some(interval) => {
                        interval.tick().await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => {
                        if let Some(mut chunk) = self.translate(&event) {
                            // What else is waiting goes in the same write.
                            let mut more = Vec::new();
                            while chunk.len() + more.len() < 64 * 1024 && let Ok(event) = self.events.try_recv() {
                                if let Some(next) = self.translate(&event) {
                                    more.extend_from_slice(&next);
                                }
                            }
                            if !more.is_empty() {
                                let mut joined = Vec::with_capacity(chunk.len() + more.len());
                                joined.extend_from_slice(&chunk);
                                joined.extend_from_slice(&more);
                                chunk = joined.into();
                            }
                            return Some(chunk);
                        }
                    }
                    // Cut off: the client resumes by revision.
                    None => return None,
                },
                () = tick => {
                    if let Some(chunk) = self.catch_up() {
                        return Some(chunk);
                    }
                }
                () = self.core.stopping.cancelled() => {
                    self.ended = true;
                    return if self.bookmarks.is_some() { self.catch_up() } else { None };
                }
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    // A last bookmark spares the client a long way back.
                    return if self.bookmarks.is_some() { self.catch_up() } else { None };
                }
            }
        }
    }

    /// Everything queued, then a bookmark at what the cache had reached before the queue was read.
    fn catch_up(&mut self) -> Option<Bytes> {
        let reached = self.core.hub.revision();
        let mut out = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if let Some(chunk) = self.translate(&event) {
                out.extend_from_slice(&chunk);
            }
        }
        if self.events.is_closed() && self.events.is_empty() {
            // Cut off meanwhile: later events may be lost, so no promise about them.
            return (!out.is_empty()).then(|| out.into());
        }
        self.seen = self.seen.max(reached);
        out.extend_from_slice(&self.bookmark(false));
        Some(out.into())
    }

    /// What the client is told of an event, with objects entering and leaving the selection as ADDED and DELETED.
    fn translate(&mut self, event: &CacheEvent) -> Option<Bytes> {
        if event.revision <= self.since {
            return None;
        }
        self.seen = self.seen.max(event.revision);
        let passes = |entry: &Option<Arc<Entry>>| entry.as_ref().filter(|e| self.selectors.matches(&self.presenter, e)).cloned();
        let (type_, entry) = match (passes(&event.previous), passes(&event.current)) {
            (None, None) => return None,
            (None, Some(current)) => ("ADDED", current),
            (Some(_), Some(current)) => ("MODIFIED", current),
            // The last state that was selected, at the revision of the event.
            (Some(previous), None) => ("DELETED", previous),
        };
        Some(self.encode(type_, &entry, event.revision))
    }

    fn encode(&mut self, type_: &str, entry: &Entry, revision: Revision) -> Bytes {
        let object = self.presenter.watched(entry, revision, self.first);
        self.first = false;
        event_line(type_, &object)
    }

    fn bookmark(&self, initial_events_end: bool) -> Bytes {
        let resource = &self.presenter.resource;
        let mut metadata = json!({"resourceVersion": self.seen.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, api_version) = match self.presenter.wanted.shape {
            Shape::Object => (resource.kind.clone(), resource.api_version()),
            Shape::Metadata { .. } => ("PartialObjectMetadata".into(), "meta.k8s.io/v1".into()),
            Shape::Table { .. } => {
                let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [],
                    "rows": [{"cells": [], "object": {"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata}}]});
                return event_line("BOOKMARK", &serde_json::to_vec(&table).unwrap_or_default());
            }
        };
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        event_line("BOOKMARK", &serde_json::to_vec(&object).unwrap_or_default())
    }
}

fn event_line(type_: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(type_.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

fn answer<S>(presenter: &Presenter, chunks: S) -> Response
where
    S: futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    // YAML documents are streamed one event a document, separated as such.
    let yaml = presenter.wanted.format == Format::Yaml;
    let body = if yaml {
        stream_body(chunks.map(|chunk| {
            chunk.map(|bytes| {
                let events = serde_json::Deserializer::from_slice(&bytes).into_iter::<serde_json::Value>().flatten();
                events.map(|event| format!("---\n{}", serde_yaml_ng::to_string(&event).unwrap_or_default())).collect::<String>().into()
            })
        }))
    } else {
        stream_body(chunks)
    };
    let mut response = http::Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let type_ = if yaml { "application/yaml;stream=watch" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(type_));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn timeout(text: &str) -> Result<Duration, ApiError> {
    let seconds: u64 = match text {
        "" | "0" => 0,
        text => text.parse().map_err(|_| status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?,
    };
    if seconds > 0 {
        return Ok(Duration::from_secs(seconds.min(365 * 24 * 3600)));
    }
    // Spread out so that not all clients come back at once.
    Ok(MIN_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()))
}
