//! Patches over documents: JSON patch, JSON merge patch, strategic merge patch, server-side apply.

mod apply;
mod fieldset;
mod merge;
mod strategic;

use serde_json::Value;

use crate::{
    Document,
    status::{ApiError, bad_request, patch_rejected, request_too_large_because},
};

pub use apply::{Manager, apply, track_update};
pub use merge::merge_patch;
pub use strategic::strategic_merge_patch;

#[cfg(test)]
pub(crate) use merge::tests as merge_tests;

/// Operations one JSON patch may have.
const MAX_OPERATIONS: usize = 10_000;

/// RFC 6902. Errors: 400 when `patch` is no JSON patch, 422 when an operation fails, 413 for too many operations.
pub fn json_patch(doc: &Document, patch: &Value) -> Result<Document, ApiError> {
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| bad_request(format!("error decoding patch: {e}")))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(request_too_large_because(&format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut out = doc.clone();
    json_patch::patch(&mut out, &operations).map_err(|_| patch_rejected())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patch_applies_or_fails_whole() {
        let doc = json!({"a": [1, 2]});
        let patch = json!([{"op": "add", "path": "/a/-", "value": 3}, {"op": "test", "path": "/a/0", "value": 1}]);
        assert_eq!(json_patch(&doc, &patch).unwrap(), json!({"a": [1, 2, 3]}));
        assert_eq!(json_patch(&doc, &json!([{"op": "remove", "path": "/b"}])).unwrap_err().code, 422);
        assert_eq!(json_patch(&doc, &json!({})).unwrap_err().code, 400);
    }
}
