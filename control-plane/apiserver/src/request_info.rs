//! What a request is about: verb, group, version, resource, subresource, namespace, name.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

/// The parsed path, method and query, `request.RequestInfo` upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names an API resource; the fields up to `name` are empty otherwise.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; else the lower-case method.
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// What follows the subresource, percent-encoding kept, without a leading slash: the path a proxy forwards.
    pub rest: String,
    pub path: String,
    pub query: Query,
}

/// Decoded query parameters in the order sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Query {
        let decode = |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
        Query(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of a parameter; empty if it is not there.
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(k, _)| k == key).map_or("", |(_, value)| value)
    }

    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// Every value of a parameter that may be repeated.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// A boolean as `runtime.Convert_Slice_string_To_bool`: absent is false, "0" and "false" are false, all else is true.
    pub fn flag(&self, key: &str) -> bool {
        self.has(key) && !matches!(self.get(key).to_ascii_lowercase().as_str(), "false" | "0")
    }
}

/// Subresources of namespaces; everything else behind `/namespaces/NAME/` is a resource in it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Parses method and URI. Never fails: what is no resource path is a plain path.
    pub fn parse(method: &Method, uri: &http::Uri) -> RequestInfo {
        let path = uri.path();
        let mut info = RequestInfo {
            verb: lower(method),
            path: percent_decode_str(path).decode_utf8_lossy().into_owned(),
            query: Query::parse(uri.query().unwrap_or_default()),
            ..RequestInfo::default()
        };
        let raw: Vec<&str> = path.trim_matches('/').split('/').collect();
        let parts: Vec<Cow<'_, str>> = raw.iter().map(|part| percent_decode_str(part).decode_utf8_lossy()).collect();
        let mut at = match parts.first().map(AsRef::as_ref) {
            Some("api") if parts.len() >= 3 => {
                info.version = parts[1].to_string();
                2
            }
            Some("apis") if parts.len() >= 4 => {
                info.group = parts[1].to_string();
                info.version = parts[2].to_string();
                3
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        };
        // The deprecated /api/v1/watch/... form.
        if parts[at] == "watch" && parts.len() > at + 1 {
            info.verb = "watch";
            at += 1;
        }
        if parts[at] == "namespaces" && parts.len() > at + 1 {
            info.namespace = parts[at + 1].to_string();
            if parts.len() > at + 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[at + 2].as_ref()) {
                at += 2;
            }
        }
        let part = |offset: usize| parts.get(at + offset).map(ToString::to_string).unwrap_or_default();
        info.resource = part(0);
        info.name = part(1);
        info.subresource = part(2);
        if raw.len() > at + 3 {
            info.rest = raw[at + 3..].join("/");
            if path.ends_with('/') {
                info.rest.push('/');
            }
        }
        if info.name.is_empty() {
            match info.verb {
                "get" if info.query.flag("watch") => info.verb = "watch",
                "get" => info.verb = "list",
                "delete" => info.verb = "deletecollection",
                _ => {}
            }
        }
        info
    }

    /// A name fixed by `fieldSelector=metadata.name=X` of list and watch: authorization treats it as a named request.
    pub fn name_for_authorization(&self) -> &str {
        if !self.name.is_empty() || !matches!(self.verb, "list" | "watch" | "deletecollection") {
            return &self.name;
        }
        self.query
            .get("fieldSelector")
            .split(',')
            .find_map(|term| term.strip_prefix("metadata.name="))
            .map_or("", |name| name.trim_start_matches('='))
    }

    /// Requests that last as long as the client wishes.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || (self.is_resource && matches!(self.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy"))
    }
}

fn lower(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, uri: &str, expected: [&str; 7]) {
        let info = RequestInfo::parse(&method, &uri.parse().unwrap());
        let got = [info.verb, &info.group, &info.version, &info.namespace, &info.resource, &info.name, &info.subresource];
        assert_eq!(got, expected, "{method} {uri}");
        assert!(info.is_resource);
    }

    #[test]
    fn resource_paths() {
        check(Method::GET, "/api/v1/pods", ["list", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/api/v1/pods?watch=true", ["watch", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/api/v1/pods?watch=0", ["list", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "a", ""]);
        check(Method::PUT, "/api/v1/namespaces/a/finalize", ["update", "", "v1", "a", "namespaces", "a", "finalize"]);
        check(Method::GET, "/api/v1/namespaces/a/pods/b/log", ["get", "", "v1", "a", "pods", "b", "log"]);
        check(Method::DELETE, "/apis/apps/v1/namespaces/a/deployments", ["deletecollection", "apps", "v1", "a", "deployments", "", ""]);
        check(Method::PATCH, "/apis/apps/v1/namespaces/a/deployments/d/scale", ["patch", "apps", "v1", "a", "deployments", "d", "scale"]);
        check(Method::GET, "/api/v1/watch/namespaces/a/pods/b", ["watch", "", "v1", "a", "pods", "b", ""]);
        check(Method::GET, "/apis/apps/v1/watch/deployments", ["watch", "apps", "v1", "", "deployments", "", ""]);
        check(Method::HEAD, "/api/v1/nodes/n", ["get", "", "v1", "", "nodes", "n", ""]);
    }

    #[test]
    fn proxy_keeps_the_rest_as_sent() {
        let info = RequestInfo::parse(&Method::GET, &"/api/v1/namespaces/a/services/https:b:80/proxy/x/y%2Fz/?q=1".parse().unwrap());
        assert_eq!((info.name.as_str(), info.subresource.as_str(), info.rest.as_str()), ("https:b:80", "proxy", "x/y%2Fz/"));
    }

    #[test]
    fn other_paths() {
        for uri in ["/", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v3/apis/apps/v1"] {
            let info = RequestInfo::parse(&Method::GET, &uri.parse().unwrap());
            assert!(!info.is_resource, "{uri}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&dryRun=All&dryRun=x&flag&plus=a+b");
        assert_eq!(query.get("labelSelector"), "a=b,c");
        assert_eq!(query.all("dryRun").collect::<Vec<_>>(), ["All", "x"]);
        assert!(query.flag("flag"));
        assert_eq!(query.get("plus"), "a b");
    }
}
