//! Contents of the volumes that are made of API objects. Pure.

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::atomic::{File, Payload};
use crate::fields::{self, Place};

/// Mode of a volume's files when it names none.
pub const DEFAULT_MODE: i32 = 0o644;

pub fn config_map(map: &ConfigMap, items: Option<&[KeyToPath]>, optional: bool, mode: i32) -> Result<Payload, String> {
    let get = |key: &str| {
        let text = map.data.as_ref().and_then(|d| d.get(key)).map(|v| v.clone().into_bytes());
        text.or_else(|| map.binary_data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.clone()))
    };
    let all = map.data.iter().flatten().map(|(k, _)| k).chain(map.binary_data.iter().flatten().map(|(k, _)| k));
    select(get, all, items, optional, mode, |key| format!("configmap references non-existent config key: {key}"))
}

pub fn secret(secret: &Secret, items: Option<&[KeyToPath]>, optional: bool, mode: i32) -> Result<Payload, String> {
    let get = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.clone());
    let all = secret.data.iter().flatten().map(|(k, _)| k);
    select(get, all, items, optional, mode, |key| format!("references non-existent secret key: {key}"))
}

fn select<'a>(
    get: impl Fn(&str) -> Option<Vec<u8>>,
    all: impl Iterator<Item = &'a String>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    match items {
        None | Some([]) => {
            for key in all {
                if let Some(data) = get(key) {
                    payload.insert(key.clone(), File { data, mode: mode as u32, uid: None });
                }
            }
        }
        Some(items) => {
            for item in items {
                match get(&item.key) {
                    Some(data) => {
                        let mode = item.mode.unwrap_or(mode) as u32;
                        payload.insert(item.path.clone(), File { data, mode, uid: None });
                    }
                    None if optional => {}
                    None => return Err(missing(&item.key)),
                }
            }
        }
    }
    Ok(payload)
}

pub fn downward_api(pod: &Pod, files: &[DownwardAPIVolumeFile], mode: i32, place: &Place) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for file in files {
        let text = match (&file.field_ref, &file.resource_field_ref) {
            (Some(field), _) => fields::field(pod, &field.field_path, place)?,
            (None, Some(resource)) => fields::resource(pod, None, resource, place)?,
            (None, None) => return Err(format!("downward API file {:?} names neither fieldRef nor resourceFieldRef", file.path)),
        };
        let mode = file.mode.unwrap_or(mode) as u32;
        payload.insert(file.path.clone(), File { data: text.into_bytes(), mode, uid: None });
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_items_and_modes() {
        let map: ConfigMap = serde_json::from_value(json!({"data": {"a": "1"}, "binaryData": {"b": "Mg=="}})).unwrap();
        let all = config_map(&map, None, false, 0o600).unwrap();
        assert_eq!((all["a"].data.as_slice(), all["b"].data.as_slice(), all["a"].mode), (&b"1"[..], &b"2"[..], 0o600));
        let item = |key: &str, mode| KeyToPath { key: key.into(), mode, path: "x/y".into() };
        let chosen = config_map(&map, Some(&[item("b", Some(0o400))]), false, 0o644).unwrap();
        assert_eq!((chosen.len(), chosen["x/y"].mode), (1, 0o400));
        assert_eq!(
            config_map(&map, Some(&[item("zz", None)]), false, 0o644).unwrap_err(),
            "configmap references non-existent config key: zz"
        );
        assert!(config_map(&map, Some(&[item("zz", None)]), true, 0o644).unwrap().is_empty());
    }
}
