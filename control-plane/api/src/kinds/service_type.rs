//! Fields that only some types of Service have: an update that changes the type and leaves them as they were means them gone,
//! as with an apply or a patch of the type alone (`dropTypeDependentFields` of kube-apiserver's Service strategy).

use std::collections::BTreeSet;

use crate::{
    Document,
    value::{each, is_zero, list, text, unset},
};

/// A use of some fields, and whether a Service has it.
struct Group {
    needed: fn(&Document) -> bool,
    fields: &'static [&'static str],
}

const GROUPS: [Group; 5] = [
    Group { needed: |doc| type_of(doc) != "ExternalName", fields: &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] },
    Group { needed: |doc| is_load_balancer(doc) && doc["spec"]["externalTrafficPolicy"] == "Local", fields: &["healthCheckNodePort"] },
    Group { needed: is_load_balancer, fields: &["allocateLoadBalancerNodePorts"] },
    Group { needed: is_load_balancer, fields: &["loadBalancerClass"] },
    Group { needed: is_externally_accessible, fields: &["externalTrafficPolicy"] },
];

/// Drops from `new` what only the type of `old` has use for, where the two agree on it.
pub(super) fn drop_dependent_fields(new: &mut Document, old: &Document) {
    // Judged by what was sent: dropping one field must not decide about the next.
    let useless: Vec<&Group> = GROUPS.iter().filter(|group| (group.needed)(old) && !(group.needed)(new)).collect();
    let drops_node_ports = has_node_ports(old) && !has_node_ports(new) && node_ports(new) == node_ports(old);
    let Some(spec) = new.get_mut("spec") else { return };
    for group in useless {
        for field in group.fields {
            if spec[*field] == old["spec"][*field] {
                unset(spec, field);
            }
        }
    }
    if drops_node_ports {
        each(spec, "ports", |port| unset(port, "nodePort"));
    }
}

fn type_of(doc: &Document) -> &str {
    match text(&doc["spec"]["type"]) {
        "" => "ClusterIP",
        given => given,
    }
}

fn is_load_balancer(doc: &Document) -> bool {
    type_of(doc) == "LoadBalancer"
}

fn has_node_ports(doc: &Document) -> bool {
    matches!(type_of(doc), "NodePort" | "LoadBalancer")
}

fn is_externally_accessible(doc: &Document) -> bool {
    has_node_ports(doc) || (type_of(doc) == "ClusterIP" && !list(&doc["spec"]["externalIPs"]).is_empty())
}

fn node_ports(doc: &Document) -> BTreeSet<u64> {
    list(&doc["spec"]["ports"]).iter().filter(|port| !is_zero(&port["nodePort"])).filter_map(|port| port["nodePort"].as_u64()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(old: serde_json::Value, new: serde_json::Value) -> Document {
        let mut new = json!({ "spec": new });
        drop_dependent_fields(&mut new, &json!({ "spec": old }));
        new["spec"].clone()
    }

    #[test]
    fn a_smaller_type_drops_what_the_larger_one_had() {
        let balanced = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.5", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "x/y", "ports": [{"port": 80, "nodePort": 30001}]});
        let mut to_cluster = balanced.clone();
        to_cluster["type"] = "ClusterIP".into();
        assert_eq!(changed(balanced.clone(), to_cluster), json!({"type": "ClusterIP", "clusterIP": "10.96.0.5", "ports": [{"port": 80}]}));
        let mut to_node_port = balanced.clone();
        to_node_port["type"] = "NodePort".into();
        assert_eq!(
            changed(balanced.clone(), to_node_port),
            json!({"type": "NodePort", "clusterIP": "10.96.0.5", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30001}]})
        );
        let mut to_name = balanced.clone();
        to_name["type"] = "ExternalName".into();
        assert_eq!(changed(balanced.clone(), to_name), json!({"type": "ExternalName", "ports": [{"port": 80}]}));
        assert_eq!(changed(balanced.clone(), balanced.clone()), balanced, "the same type keeps all");
    }

    #[test]
    fn what_the_client_changed_as_well_is_left_to_validation() {
        let old = json!({"type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "nodePort": 30001}]});
        let new = json!({"type": "ClusterIP", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30002}]});
        assert_eq!(changed(old, new.clone()), new);
    }
}
