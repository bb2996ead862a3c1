//! Whatever decodes can be defaulted, validated, written, printed, patched and applied without a panic.

use serde_json::{Map, Value, json};
use xebec_api::{
    builtin,
    meta::{self, Fresh},
    patch,
    resource::Resource,
    schema::{self, FieldValidation, Type, schemas},
    table,
};

/// A small generator of numbers: the same documents in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const WORDS: [&str; 12] =
    ["", "a", "A b", "None", "Always", "RollingUpdate", "10.0.0.1", "::", "50%", "*/5 * * * *", "metadata.name", "TCP"];

/// Any value of a type, mostly sparse.
fn any(ty: &Type, dice: &mut Dice, depth: u32) -> Value {
    match ty {
        Type::Bool => (dice.roll(2) == 0).into(),
        Type::Int32 | Type::Int64 => ([-1, 0, 1, 80, 70_000][dice.roll(5) as usize]).into(),
        Type::Float => 0.5.into(),
        Type::Time | Type::MicroTime => "2026-01-02T03:04:05Z".into(),
        Type::Quantity => ["0", "1", "-1", "500m", "2Gi"][dice.roll(5) as usize].into(),
        Type::Bytes => "aGk=".into(),
        Type::IntOrString if dice.roll(2) == 0 => 80.into(),
        Type::String | Type::IntOrString => WORDS[dice.roll(WORDS.len() as u64) as usize].into(),
        Type::Any => [json!(null), json!({"a": 1}), json!([1]), json!("x")][dice.roll(4) as usize].clone(),
        Type::List(item) => (0..dice.roll(3)).map(|_| any(item, dice, depth + 1)).collect(),
        Type::Map(item) => {
            let keys = ["a", "cpu", "storage", "A b"];
            (0..dice.roll(3)).map(|i| (keys[i as usize].to_owned(), any(item, dice, depth + 1))).collect::<Map<_, _>>().into()
        }
        Type::Either(first, second) => any(if dice.roll(2) == 0 { first } else { second }, dice, depth + 1),
        Type::Struct(id) => {
            let mut out = Map::new();
            let mut names: Vec<_> = schemas().get(*id).fields.iter().collect();
            names.sort_by_key(|(name, _)| name.to_owned());
            for (name, field) in names {
                let wanted = depth < 2 || dice.roll(3) == 0;
                if wanted && depth < 12 && dice.roll(4) > 0 {
                    out.insert(name.to_string(), any(&field.ty, dice, depth + 1));
                }
            }
            out.into()
        }
    }
}

fn document(resource: &Resource, dice: &mut Dice) -> Option<Value> {
    let id = schemas().of(resource)?;
    let mut doc = any(&Type::Struct(id), dice, 0);
    doc["kind"] = resource.kind.as_str().into();
    doc["apiVersion"] = resource.api_version().into();
    doc["metadata"] = json!({"name": WORDS[dice.roll(3) as usize], "managedFields": doc["metadata"]["managedFields"]});
    let bytes = doc.to_string();
    schema::decode(resource, bytes.as_bytes(), "application/json", FieldValidation::Ignore).ok().map(|(doc, _)| doc)
}

#[test]
fn any_document_of_any_kind_goes_all_the_way() {
    let fresh = Fresh::generate();
    let mut seen = 0;
    for resource in builtin::resources() {
        for seed in 0..60 {
            let mut dice = Dice(seed * 7919 + 1);
            let (Some(first), Some(second)) = (document(resource, &mut dice), document(resource, &mut dice)) else { continue };
            seen += 1;
            let namespace = resource.is_namespaced().then_some("ns");
            let (mut old, mut new) = (first.clone(), second.clone());
            for doc in [&mut old, &mut new] {
                resource.hooks.default(doc);
                let once = doc.clone();
                resource.hooks.default(doc);
                assert_eq!(*doc, once, "defaulting {} twice differs from once", resource.kind);
            }
            let _ = meta::before_create(resource, &mut old.clone(), namespace, &fresh);
            for sub in std::iter::once("").chain(resource.subresources.iter().map(|s| s.name)) {
                let _ = meta::before_update(resource, &mut new.clone(), &old, sub);
            }
            let rows = table::table(resource, [&old, &new], json!({}), table::IncludeObject::Metadata, true, 0);
            let columns = rows["columnDefinitions"].as_array().unwrap().len();
            for row in rows["rows"].as_array().unwrap() {
                assert_eq!(row["cells"].as_array().unwrap().len(), columns, "{}", resource.kind);
            }
            let names: Vec<_> = resource.hooks.selectable_fields(&Value::Null).into_iter().map(|(n, _)| n).collect();
            let same: Vec<_> = resource.hooks.selectable_fields(&old).into_iter().map(|(n, _)| n).collect();
            assert_eq!(names, same);
            let _ = resource.hooks.to_storage(resource.hooks.from_storage(old.clone()));
            let _ = patch::strategic_merge_patch(resource, &old, &new);
            let manager = patch::Manager { name: "m", force: true, subresource: "", now: fresh.now };
            let mut config = new.clone();
            config["metadata"].as_object_mut().unwrap().remove("managedFields");
            let applied = patch::apply(resource, Some(&old), &config, &manager).unwrap();
            let _ = patch::track_update(resource, &mut new.clone(), &applied, &manager);
        }
    }
    assert!(seen > 3000, "only {seen} documents were any good");
}
