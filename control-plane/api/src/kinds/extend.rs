//! Kinds that extend or steer the API server: webhooks, policies, custom resources, aggregated APIs, flow control,
//! and dynamic resources.

use serde_json::{Value, json};

use super::{PLAIN, Rules, age, field};
use crate::{
    Document, table,
    validate::extend,
    value::{child, default, each, list, set, text, with},
};

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => Rules {
            default: if kind.starts_with('M') {
                |doc| {
                    each(doc, "webhooks", |hook| {
                        default_webhook(hook);
                        default(hook, "reinvocationPolicy", "Never");
                    });
                }
            } else {
                |doc| each(doc, "webhooks", default_webhook)
            },
            validate: extend::webhooks,
            columns: &[("Webhooks", "integer", 0), ("Age", "string", 0)],
            cells: |doc, now| vec![list(&doc["webhooks"]).len().into(), age(doc, now)],
            ..PLAIN
        },
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => Rules {
            default: |doc| {
                if let Some(spec) = child(doc, "spec") {
                    default(spec, "failurePolicy", "Fail");
                    with(spec, "matchConstraints", default_match);
                }
            },
            validate: extend::policy,
            columns: if kind.starts_with('V') { POLICY_COLUMNS } else { MUTATING_POLICY_COLUMNS },
            cells: |doc, now| {
                let spec = &doc["spec"];
                let rules = list(&spec["validations"]).len() + list(&spec["mutations"]).len();
                let param = &spec["paramKind"];
                let param =
                    if param.is_null() { "<unset>".into() } else { format!("{}/{}", text(&param["apiVersion"]), text(&param["kind"])) };
                vec![rules.into(), param.into(), age(doc, now)]
            },
            ..PLAIN
        },
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => Rules {
            default: |doc| with(doc, "spec", |spec| with(spec, "matchResources", default_match)),
            validate: extend::policy_binding,
            columns: &[("PolicyName", "string", 0), ("ParamRef", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| {
                let param = &doc["spec"]["paramRef"];
                let param = match (text(&param["namespace"]), text(&param["name"])) {
                    _ if param.is_null() => "<unset>".into(),
                    ("", name) => name.to_owned(),
                    (namespace, name) => format!("{namespace}/{name}"),
                };
                vec![doc["spec"]["policyName"].clone(), param.into(), age(doc, now)]
            },
            ..PLAIN
        },
        "CustomResourceDefinition" => Rules {
            default: default_crd,
            prepare_create: |doc| {
                let stored: Vec<Value> =
                    list(&doc["spec"]["versions"]).iter().filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect();
                set(doc, "status", json!({"conditions": null, "acceptedNames": {"kind": "", "plural": ""}, "storedVersions": stored}));
                if let Some(status) = child(doc, "status") {
                    crate::value::unset(status, "conditions");
                }
            },
            validate: extend::custom_resource,
            validate_update: extend::custom_resource_update,
            columns: &[("Created At", "string", 0)],
            cells: super::pods::created_at,
            ..PLAIN
        },
        "APIService" => Rules {
            default: |doc| {
                with(doc, "spec", |spec| with(spec, "service", |s| default(s, "port", 443)));
            },
            validate: extend::api_service,
            fields: |doc| vec![("spec.group", field(doc, "/spec/group"))],
            columns: &[("Service", "string", 0), ("Available", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| {
                let service = &doc["spec"]["service"];
                let shown = match service {
                    Value::Null => "Local".into(),
                    s => format!("{}/{}", text(&s["namespace"]), text(&s["name"])),
                };
                let available = match table::condition(doc, "Available") {
                    None => "Unknown".into(),
                    Some(c) if c["status"] == "True" => "True".into(),
                    Some(c) => format!("{} ({})", text(&c["status"]), text(&c["reason"])),
                };
                vec![shown.into(), available.into(), age(doc, now)]
            },
            ..PLAIN
        },
        "FlowSchema" => Rules {
            default: |doc| with(doc, "spec", |spec| default(spec, "matchingPrecedence", 1000)),
            columns: &[
                ("PriorityLevel", "string", 0),
                ("MatchingPrecedence", "string", 0),
                ("DistinguisherMethod", "string", 0),
                ("Age", "string", 0),
                ("MissingPL", "string", 0),
            ],
            cells: |doc, now| {
                let spec = &doc["spec"];
                let missing = table::condition(doc, "Dangling").map_or("?", |c| text(&c["status"]));
                vec![
                    spec["priorityLevelConfiguration"]["name"].clone(),
                    table::scalar(&spec["matchingPrecedence"], ""),
                    table::or_none(text(&spec["distinguisherMethod"]["type"])),
                    age(doc, now),
                    missing.into(),
                ]
            },
            ..PLAIN
        },
        "PriorityLevelConfiguration" => Rules {
            default: default_priority_level,
            columns: &[
                ("Type", "string", 0),
                ("NominalConcurrencyShares", "string", 0),
                ("Queues", "string", 0),
                ("HandSize", "string", 0),
                ("QueueLengthLimit", "string", 0),
                ("Age", "string", 0),
            ],
            cells: |doc, now| {
                let spec = &doc["spec"];
                let queuing = &spec["limited"]["limitResponse"]["queuing"];
                let number = |v: &Value| table::scalar(v, table::NONE);
                vec![
                    spec["type"].clone(),
                    number(&spec["limited"]["nominalConcurrencyShares"]),
                    number(&queuing["queues"]),
                    number(&queuing["handSize"]),
                    number(&queuing["queueLengthLimit"]),
                    age(doc, now),
                ]
            },
            ..PLAIN
        },
        "ResourceClaim" => Rules {
            default: |doc| with(doc, "spec", default_claim),
            validate_update: |new, old, sub, errors| {
                if sub.is_empty() {
                    super::immutable(new, old, "/spec", errors);
                }
            },
            columns: &[("State", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| {
                let status = &doc["status"];
                let mut states = Vec::new();
                if !doc["metadata"]["deletionTimestamp"].is_null() {
                    states.push("deleted");
                }
                states.push(match (status["allocation"].is_null(), list(&status["reservedFor"]).is_empty()) {
                    (true, _) => "pending",
                    (false, true) => "allocated",
                    (false, false) => "allocated,reserved",
                });
                vec![states.join(",").into(), age(doc, now)]
            },
            ..PLAIN
        },
        "ResourceClaimTemplate" => Rules {
            default: |doc| with(doc, "spec", |t| with(t, "spec", default_claim)),
            validate_update: |new, old, _, errors| super::immutable(new, old, "/spec", errors),
            ..PLAIN
        },
        "ResourceSlice" => Rules {
            fields: |doc| vec![("spec.nodeName", field(doc, "/spec/nodeName")), ("spec.driver", field(doc, "/spec/driver"))],
            columns: &[("Node", "string", 0), ("Driver", "string", 0), ("Pool", "string", 0), ("Age", "string", 0)],
            cells: |doc, now| {
                let spec = &doc["spec"];
                vec![table::scalar(&spec["nodeName"], "<unset>"), spec["driver"].clone(), spec["pool"]["name"].clone(), age(doc, now)]
            },
            ..PLAIN
        },
        _ => return None,
    })
}

const POLICY_COLUMNS: &[(&str, &str, i32)] = &[("Validations", "integer", 0), ("ParamKind", "string", 0), ("Age", "string", 0)];
const MUTATING_POLICY_COLUMNS: &[(&str, &str, i32)] = &[("Mutations", "integer", 0), ("ParamKind", "string", 0), ("Age", "string", 0)];

fn default_match(resources: &mut Value) {
    default(resources, "matchPolicy", "Equivalent");
    child(resources, "namespaceSelector");
    child(resources, "objectSelector");
    for rules in ["resourceRules", "excludeResourceRules"] {
        each(resources, rules, |rule| default(rule, "scope", "*"));
    }
}

fn default_webhook(hook: &mut Value) {
    default(hook, "failurePolicy", "Fail");
    default(hook, "matchPolicy", "Equivalent");
    default(hook, "timeoutSeconds", 10);
    child(hook, "namespaceSelector");
    child(hook, "objectSelector");
    each(hook, "rules", |rule| default(rule, "scope", "*"));
    with(hook, "clientConfig", |client| with(client, "service", |s| default(s, "port", 443)));
}

fn default_crd(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    if let Some(names) = child(spec, "names") {
        let kind = text(&names["kind"]).to_owned();
        if !kind.is_empty() {
            default(names, "singular", kind.to_lowercase());
            default(names, "listKind", format!("{kind}List"));
        }
    }
    if let Some(conversion) = child(spec, "conversion") {
        default(conversion, "strategy", "None");
        with(conversion, "webhook", |w| {
            with(w, "clientConfig", |c| with(c, "service", |s| default(s, "port", 443)));
        });
    }
}

fn default_priority_level(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    with(spec, "exempt", |exempt| {
        default(exempt, "nominalConcurrencyShares", 0);
        default(exempt, "lendablePercent", 0);
    });
    with(spec, "limited", |limited| {
        default(limited, "nominalConcurrencyShares", 30);
        default(limited, "lendablePercent", 0);
        with(limited, "limitResponse", |response| {
            with(response, "queuing", |queuing| {
                default(queuing, "queues", 64);
                default(queuing, "handSize", 8);
                default(queuing, "queueLengthLimit", 50);
            });
        });
    });
}

fn default_claim(spec: &mut Value) {
    with(spec, "devices", |devices| {
        each(devices, "requests", |request| {
            with(request, "exactly", |r| {
                default(r, "allocationMode", "ExactCount");
                if r["allocationMode"] == "ExactCount" {
                    default(r, "count", 1);
                }
            });
            each(request, "firstAvailable", |r| {
                default(r, "allocationMode", "ExactCount");
                if r["allocationMode"] == "ExactCount" {
                    default(r, "count", 1);
                }
            });
        });
    });
}
