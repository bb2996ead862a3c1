//! The value of the label `pod-template-hash`.

use k8s_openapi::api::core::v1::PodTemplateSpec;

pub const LABEL: &str = "pod-template-hash";

/// Letters and digits that spell no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short hash of a template. `collisions` makes another one when the first is taken by another template.
pub fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for b in bytes {
            hash = (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193);
        }
    };
    // Maps in the template are sorted, so equal templates have equal text.
    feed(&serde_json::to_vec(template).unwrap_or_default());
    if collisions > 0 {
        feed(&collisions.to_le_bytes());
    }
    hash.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

/// Whether two templates are the same but for the hash label.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    without_hash(a) == without_hash(b)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut t = template.clone();
    let mut meta = t.metadata.take().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(LABEL);
    }
    meta.labels = meta.labels.filter(|l| !l.is_empty());
    meta.creation_timestamp = None;
    t.metadata = Some(meta);
    t
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        let mut v = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
        if let Some(h) = hash {
            v["metadata"]["labels"][LABEL] = json!(h);
        }
        from_value(v).unwrap()
    }

    #[test]
    fn hash_depends_on_template_and_collisions() {
        let h = template_hash(&template("x", None), 0);
        assert_eq!(h, template_hash(&template("x", None), 0));
        assert_ne!(h, template_hash(&template("y", None), 0));
        assert_ne!(h, template_hash(&template("x", None), 1));
        assert!(h.bytes().all(|b| ALPHABET.contains(&b)) && h.len() <= 10);
    }

    #[test]
    fn the_hash_label_is_no_difference() {
        assert!(same_template(&template("x", Some("abc")), &template("x", None)));
        assert!(!same_template(&template("x", None), &template("y", None)));
    }
}
