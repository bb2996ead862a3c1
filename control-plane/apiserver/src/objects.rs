//! Objects as authorization, admission and allocation see them: from the watch cache, decoded.

use xebec_api::Document;

/// Reads of stored objects by storage prefix (`pods`, `services/specs`, ...); `namespace` is empty for cluster scope.
pub trait Objects: Send + Sync + 'static {
    fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Document>;

    /// All objects of a namespace, or of all with an empty one.
    fn list(&self, prefix: &str, namespace: &str) -> Vec<Document>;

    /// Those whose selectable field has the value.
    fn select(&self, prefix: &str, namespace: &str, field: &str, value: &str) -> Vec<Document>;

    /// A number that changes when any object of the prefix does.
    fn changed(&self, prefix: &str) -> u64;
}

/// A fixed set of objects, for tests.
#[cfg(test)]
pub mod fixed {
    use parking_lot::RwLock;
    use xebec_api::Document;

    use super::Objects;

    #[derive(Default)]
    pub struct Fixed(RwLock<(u64, Vec<(String, Document)>)>);

    impl Fixed {
        pub fn new(objects: Vec<(&str, Document)>) -> Fixed {
            Fixed(RwLock::new((1, objects.into_iter().map(|(p, d)| (p.to_string(), d)).collect())))
        }

        pub fn add(&self, prefix: &str, doc: Document) {
            let mut inner = self.0.write();
            inner.0 += 1;
            inner.1.push((prefix.to_string(), doc));
        }
    }

    impl Objects for Fixed {
        fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Document> {
            self.list(prefix, namespace).into_iter().find(|d| d["metadata"]["name"] == name)
        }

        fn list(&self, prefix: &str, namespace: &str) -> Vec<Document> {
            let of = |d: &Document| namespace.is_empty() || d["metadata"]["namespace"] == namespace;
            self.0.read().1.iter().filter(|(p, d)| p == prefix && of(d)).map(|(_, d)| d.clone()).collect()
        }

        fn select(&self, prefix: &str, namespace: &str, field: &str, value: &str) -> Vec<Document> {
            let pointer = format!("/{}", field.replace('.', "/"));
            let matches = |d: &Document| d.pointer(&pointer).and_then(Document::as_str).unwrap_or_default() == value;
            self.list(prefix, namespace).into_iter().filter(matches).collect()
        }

        fn changed(&self, _prefix: &str) -> u64 {
            self.0.read().0
        }
    }
}
