//! Roles and who has them.

use serde_json::Value;

use super::{PLAIN, Rules, age};
use crate::{
    Document, table,
    validate::{names, rbac},
    value::{child, default, each, list, text},
};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn rules(kind: &str) -> Option<Rules> {
    let base = Rules { name: names::path_segment, ..PLAIN };
    Some(match kind {
        "Role" | "ClusterRole" => Rules {
            validate: if kind == "Role" { rbac::role } else { rbac::cluster_role },
            columns: &[("Created At", "string", 0)],
            cells: super::pods::created_at,
            ..base
        },
        "RoleBinding" | "ClusterRoleBinding" => Rules {
            default: default_binding,
            validate: if kind == "RoleBinding" { rbac::role_binding } else { rbac::cluster_role_binding },
            validate_update: rbac::binding_update,
            columns: &[
                ("Role", "string", 0),
                ("Age", "string", 0),
                ("Users", "string", 1),
                ("Groups", "string", 1),
                ("ServiceAccounts", "string", 1),
            ],
            cells: binding_cells,
            ..base
        },
        _ => return None,
    })
}

fn default_binding(doc: &mut Document) {
    if let Some(role) = child(doc, "roleRef") {
        default(role, "apiGroup", GROUP);
    }
    each(doc, "subjects", |subject| {
        if matches!(text(&subject["kind"]), "User" | "Group") {
            default(subject, "apiGroup", GROUP);
        }
    });
}

fn binding_cells(doc: &Document, now: i64) -> Vec<Value> {
    let subjects = |kind: &str| -> Value {
        let of_kind = list(&doc["subjects"]).iter().filter(|s| s["kind"] == kind);
        let shown = of_kind.map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", text(&s["namespace"]), text(&s["name"])),
            _ => text(&s["name"]).to_owned(),
        });
        shown.collect::<Vec<_>>().join(", ").into()
    };
    let role = &doc["roleRef"];
    vec![
        table::scalar(&format!("{}/{}", text(&role["kind"]), text(&role["name"])).into(), ""),
        age(doc, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
