//! Reading many objects: freshness, pages, selectors.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use xebec_api::{
    selector::{FieldSelector, LabelSelector},
    status::{self, ApiError},
};
use xebec_store::{RangeRequest, Revision, StoreError};

use super::{
    Call,
    options::{self, Match},
    present::Presenter,
    store_error,
};
use crate::{
    cache::{Entry, ROOT},
    http::{Response, respond},
};

/// What a list or watch is narrowed to.
pub(crate) struct Selectors {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// The fields are those of another row than the stored one.
    converted: bool,
}

impl Selectors {
    pub fn parse(call: &Call) -> Result<Selectors, ApiError> {
        let labels = LabelSelector::parse(call.query().get("labelSelector"))?;
        let fields = FieldSelector::parse(call.query().get("fieldSelector"))?;
        fields.check(&call.resource)?;
        Ok(Selectors { labels, fields, converted: call.converts() })
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, presenter: &Presenter, entry: &Entry) -> bool {
        if !self.labels.is_empty() && !self.labels.matches_labels(|key| entry.label(key)) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        if self.converted {
            return self.fields.matches(&presenter.resource, &presenter.document(entry));
        }
        self.fields.matches_fields(|field| entry.field(field))
    }
}

/// A `continue` token, in kube-apiserver's form.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Token {
    v: String,
    rv: Revision,
    /// The key to go on at, relative to the kind's prefix.
    start: String,
}

impl Token {
    fn new(rv: Revision, last_key: &str) -> Token {
        // The next possible key.
        Token { v: "meta.k8s.io/v1".into(), rv, start: format!("{last_key}\0") }
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Token, ApiError> {
        let invalid = |why: String| status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| invalid(e.to_string()))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        if token.v != "meta.k8s.io/v1" || token.rv == 0 || token.start.is_empty() || token.start.contains("../") {
            return Err(invalid("unrecognized token".into()));
        }
        Ok(token)
    }
}

/// Which state the list must show.
enum At {
    /// The newest.
    Present,
    /// Whatever the cache has.
    Any,
    NotOlderThan(Revision),
    Exactly(Revision),
}

/// GET of a collection.
pub(crate) async fn list(call: Call) -> Result<Response, ApiError> {
    let presenter = Presenter::new(call.resource.clone(), call.wanted()?, call.query())?;
    let page = collect(&call, &presenter).await?;
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), page.revision.to_string().into());
    if let Some(token) = &page.token {
        metadata.insert("continue".into(), token.as_str().into());
        if let Some(remaining) = page.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
    }
    let metadata = Value::Object(metadata);
    if presenter.is_verbatim() {
        let resource = &call.resource;
        let head = json!({"kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": metadata});
        return Ok(respond::maybe_gzip(&call.headers, presenter.wanted.format, splice_items(&head, &page.entries)));
    }
    let docs: Vec<_> = page.entries.iter().map(|entry| presenter.document(entry)).collect();
    let list = presenter.list(&docs, metadata);
    let body = respond::encode(presenter.wanted.format, &list);
    Ok(respond::maybe_gzip(&call.headers, presenter.wanted.format, body.into()))
}

/// The list document with the entries' own bytes as its items.
fn splice_items(head: &Value, entries: &[Arc<Entry>]) -> Vec<u8> {
    let mut out = serde_json::to_vec(head).unwrap_or_default();
    out.pop();
    out.reserve(entries.iter().map(|entry| entry.bytes.len() + 1).sum::<usize>() + 16);
    out.extend_from_slice(b",\"items\":[");
    for (i, entry) in entries.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&entry.bytes);
    }
    out.extend_from_slice(b"]}\n");
    out
}

pub(crate) struct Page {
    pub entries: Vec<Arc<Entry>>,
    pub revision: Revision,
    pub token: Option<String>,
    pub remaining: Option<u64>,
}

/// The objects a list asks for.
pub(crate) async fn collect(call: &Call, presenter: &Presenter) -> Result<Page, ApiError> {
    let kind = call.kind()?;
    let query = call.query();
    let selectors = Selectors::parse(call)?;
    let version_match = options::version_match(query, false)?;
    let limit = limit(query.get("limit"))?;
    let namespace = call.namespace().unwrap_or_default().to_string();
    let token = match query.get("continue") {
        "" => None,
        text => {
            if !matches!(query.get("resourceVersion"), "" | "0") {
                return Err(status::bad_request("specifying resource version is not allowed when using continue"));
            }
            Some(Token::decode(text)?)
        }
    };
    let asked = options::resource_version(query.get("resourceVersion"))?;
    let at = match (&token, query.get("resourceVersion"), version_match) {
        (Some(token), ..) => At::Exactly(token.rv),
        (None, "", _) => At::Present,
        (None, "0", _) => At::Any,
        (None, _, Some(Match::Exact)) => At::Exactly(asked),
        (None, _, Some(Match::NotOlderThan)) => At::NotOlderThan(asked),
        (None, _, None) if limit.is_some() => At::Exactly(asked),
        (None, _, None) => At::NotOlderThan(asked),
    };
    let hub = &call.core.hub;
    match at {
        At::Present => hub.wait_for_present().await.map_err(store_error)?,
        At::Any => {}
        At::NotOlderThan(revision) | At::Exactly(revision) => {
            if !hub.wait(revision).await {
                return Err(status::too_large_resource_version(revision, hub.revision()));
            }
        }
    }
    // The snapshot holds everything up to what the hub had reached before it was taken.
    let reached = hub.revision();
    let (mut entries, last_change) = kind.snapshot(&namespace);
    let mut revision = reached.max(last_change);
    if let At::Exactly(exact) = at {
        revision = exact;
        if last_change > exact {
            entries = from_history(call, &namespace, exact, token.is_some()).await?;
        }
    }
    let start = token.as_ref().map_or("", |token| token.start.as_str());
    let mut rest = entries.into_iter().skip_while(|entry| &*entry.key < start);
    let mut chosen: Vec<Arc<Entry>> = Vec::new();
    // From the cache at any revision upstream sends all.
    let limit = if matches!(at, At::Any) { None } else { limit };
    let mut next = None;
    let mut remaining = None;
    for entry in rest.by_ref() {
        if !selectors.is_empty() && !selectors.matches(presenter, &entry) {
            continue;
        }
        if limit.is_some_and(|limit| chosen.len() == limit) {
            next = chosen.last().map(|last| Token::new(revision, &last.key).encode());
            break;
        }
        chosen.push(entry);
    }
    if next.is_some() && selectors.is_empty() {
        remaining = Some(rest.count() as u64 + 1);
    }
    Ok(Page { entries: chosen, revision, token: next, remaining })
}

fn limit(text: &str) -> Result<Option<usize>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let limit: i64 = text.parse().map_err(|_| status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?;
    Ok(usize::try_from(limit).ok().filter(|limit| *limit > 0))
}

/// Objects as they were: from the store, which keeps history until it is compacted.
async fn from_history(call: &Call, namespace: &str, revision: Revision, continued: bool) -> Result<Vec<Arc<Entry>>, ApiError> {
    let kind = call.kind()?;
    let root = format!("{ROOT}{}/", call.resource.storage_prefix);
    let prefix = if namespace.is_empty() { root.clone() } else { format!("{root}{namespace}/") };
    let response = match call.core.store.range(RangeRequest { prefix, revision: Some(revision), ..RangeRequest::default() }).await {
        Ok(response) => response,
        Err(StoreError::Compacted { .. }) if continued => return Err(status::continue_expired()),
        Err(StoreError::Compacted { .. }) => return Err(status::expired("The resourceVersion for the provided list is too old.")),
        Err(error) => return Err(store_error(error)),
    };
    let entries = response.kvs.iter().filter_map(|kv| Entry::new(&kv.key[root.len()..], &kv.value, kv.mod_revision, &kind.resource).ok());
    Ok(entries.map(Arc::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_survive_and_bad_ones_are_refused() {
        let token = Token::new(7, "ns/a");
        assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        for bad in ["x", "", "e30", &URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#)] {
            assert_eq!(Token::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(limit("").unwrap(), None);
        assert_eq!(limit("0").unwrap(), None);
        assert_eq!(limit("500").unwrap(), Some(500));
        assert!(limit("many").is_err());
    }
}
