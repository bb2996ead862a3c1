//! What a Deployment does next: one step a time, from its ReplicaSets as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use xebec_loops::meta::{annotation, controller_reference, deleting};

use super::hash::{LABEL, template_hash};
use super::view::{DESIRED, MAX, REVISION, REVISION_HISTORY, View, available, revision, wanted};

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make the current template's set.
    Create(Box<ReplicaSet>),
    /// Bring a set's annotations, minReadySeconds and number up to date.
    Update { set: Arc<ReplicaSet>, to: Box<ReplicaSet> },
    /// Remove an old set.
    Delete(Arc<ReplicaSet>),
    /// Write the revision on the Deployment.
    SetRevision(String),
}

/// Annotations that are the Deployment's own and not copied to sets.
const NOT_COPIED: [&str; 5] = ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX];

/// The next writes; empty when nothing is to be done until something changes. `old_pods` tells whether pods of old
/// sets still run (which Recreate waits for).
pub fn plan(view: &View, old_pods: bool) -> Vec<Step> {
    if view.spec.paused == Some(true) || is_scaling_event(view) {
        let mut steps = upkeep(view);
        if steps.is_empty() {
            steps = scale_all(view);
        }
        if steps.is_empty() && view.spec.paused == Some(true) {
            steps = clean_up(view);
        }
        return steps;
    }
    if view.is_rolling() { plan_rolling(view) } else { plan_recreate(view, old_pods) }
}

fn plan_rolling(view: &View) -> Vec<Step> {
    let Some(new) = &view.new else { return vec![create_new(view)] };
    let mut steps = upkeep(view);
    if !steps.is_empty() {
        return steps;
    }
    let target = new_set_size(view, new);
    if target != wanted(new) {
        return vec![scale(view, new, target)];
    }
    steps = scale_down_old(view, new);
    if steps.is_empty() && super::status::is_complete(view) {
        steps = clean_up(view);
    }
    steps
}

fn plan_recreate(view: &View, old_pods: bool) -> Vec<Step> {
    let down: Vec<Step> = view.old.iter().filter(|s| wanted(s) > 0).map(|s| scale(view, s, 0)).collect();
    if !down.is_empty() {
        return down;
    }
    if old_pods {
        return Vec::new();
    }
    let Some(new) = &view.new else { return vec![create_new(view)] };
    let steps = upkeep(view);
    if !steps.is_empty() {
        return steps;
    }
    if wanted(new) != view.replicas() {
        return vec![scale(view, new, view.replicas())];
    }
    if super::status::is_complete(view) { clean_up(view) } else { Vec::new() }
}

/// Whether `spec.replicas` differs from what the active sets were last sized for.
fn is_scaling_event(view: &View) -> bool {
    view.all()
        .filter(|s| wanted(s) > 0)
        .any(|s| annotation(&s.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok()).is_some_and(|d| d != view.replicas()))
}

/// How large the current set may be: as far as the surge lets it grow.
fn new_set_size(view: &View, new: &ReplicaSet) -> i32 {
    let have = wanted(new);
    if have >= view.replicas() {
        return view.replicas();
    }
    first_size(view, view.total_wanted(), have)
}

fn first_size(view: &View, total: i32, have: i32) -> i32 {
    if !view.is_rolling() {
        return view.replicas();
    }
    let limit = view.replicas() + view.bounds().0;
    if total >= limit {
        return have;
    }
    have + (limit - total).min(view.replicas() - have)
}

/// Old sets shrink, first where pods are not available anyway, then as far as enough stay available.
fn scale_down_old(view: &View, new: &ReplicaSet) -> Vec<Step> {
    let old_wanted: i32 = view.old.iter().map(|s| wanted(s)).sum();
    if old_wanted == 0 {
        return Vec::new();
    }
    let min_available = view.replicas() - view.bounds().1.min(view.replicas());
    let new_unavailable = wanted(new) - available(new);
    let mut may_go = view.total_wanted() - min_available - new_unavailable;
    if may_go <= 0 {
        return Vec::new();
    }
    let mut sizes: BTreeMap<usize, i32> = view.old.iter().enumerate().map(|(i, s)| (i, wanted(s))).collect();
    for (i, set) in view.old.iter().enumerate() {
        let sick = (wanted(set) - available(set)).clamp(0, wanted(set));
        let n = sick.min(may_go);
        may_go -= n;
        sizes.entry(i).and_modify(|s| *s -= n);
    }
    let mut healthy_surplus = (view.total_available() - min_available).max(0);
    for (i, set) in view.old.iter().enumerate() {
        let size = sizes[&i];
        // What is left of the set after its sick pods: its available ones.
        let n = size.min(available(set)).min(healthy_surplus);
        healthy_surplus -= n;
        sizes.insert(i, size - n);
    }
    let changed = view.old.iter().enumerate().filter(|(i, s)| sizes[i] != wanted(s));
    changed.map(|(i, s)| scale(view, s, sizes[&i])).collect()
}

/// Resizes sets when `spec.replicas` changed or while paused: one active set takes all, several share in proportion.
fn scale_all(view: &View) -> Vec<Step> {
    let active: Vec<&Arc<ReplicaSet>> = view.all().filter(|s| wanted(s) > 0).collect();
    let only = match active.as_slice() {
        [] => view.new.as_ref().or(view.old.last()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(set) = only {
        return resize(view, set, view.replicas()).into_iter().collect();
    }
    if view.new.as_ref().is_some_and(|n| is_saturated(view, n)) {
        let old = view.old.iter().filter(|s| wanted(s) > 0);
        return old.map(|s| scale(view, s, 0)).collect();
    }
    if !view.is_rolling() {
        return Vec::new();
    }
    let allowed = if view.replicas() > 0 { view.replicas() + view.bounds().0 } else { 0 };
    let to_add = allowed - active.iter().map(|s| wanted(s)).sum::<i32>();
    let mut sets: Vec<&Arc<ReplicaSet>> = active;
    // Larger sets first; of equals the newer when growing, the older when shrinking.
    sets.sort_by(|a, b| {
        let age = |s: &ReplicaSet| (s.metadata.creation_timestamp.clone(), s.metadata.name.clone());
        let by_age = if to_add > 0 { age(b).cmp(&age(a)) } else { age(a).cmp(&age(b)) };
        wanted(b).cmp(&wanted(a)).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for set in &sets {
        let share = proportion(view, set, to_add, added);
        added += share;
        sizes.push(wanted(set) + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sets.iter().zip(sizes).filter_map(|(set, size)| resize(view, set, size)).collect()
}

/// A set's share of what is to be added (or taken), by its size in the last full state.
fn proportion(view: &View, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if wanted(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let annotated = annotation(&set.metadata, MAX).and_then(|m| m.parse::<i32>().ok()).filter(|m| *m > 0);
    let before = f64::from(annotated.unwrap_or_else(|| view.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0)));
    if before == 0.0 {
        return 0;
    }
    let after = f64::from(view.replicas() + view.max_surge());
    let share = (f64::from(wanted(set)) * after / before).round() as i32 - wanted(set);
    let left = to_add - added;
    if to_add > 0 { share.min(left) } else { share.max(left) }
}

fn is_saturated(view: &View, new: &ReplicaSet) -> bool {
    let sized_for = annotation(&new.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok());
    wanted(new) == view.replicas() && sized_for == Some(view.replicas()) && available(new) == view.replicas()
}

fn sized(view: &View, set: &ReplicaSet, size: i32) -> ReplicaSet {
    let mut to = set.clone();
    to.spec.get_or_insert_default().replicas = Some(size);
    let annotations = to.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.into(), view.replicas().to_string());
    annotations.insert(MAX.into(), (view.replicas() + view.max_surge()).to_string());
    to
}

fn scale(view: &View, set: &Arc<ReplicaSet>, size: i32) -> Step {
    Step::Update { set: set.clone(), to: Box::new(sized(view, set, size)) }
}

fn resize(view: &View, set: &Arc<ReplicaSet>, size: i32) -> Option<Step> {
    let to = sized(view, set, size);
    (to != **set).then(|| Step::Update { set: set.clone(), to: Box::new(to) })
}

/// The current set's annotations and minReadySeconds, and the Deployment's revision.
fn upkeep(view: &View) -> Vec<Step> {
    let Some(new) = &view.new else { return Vec::new() };
    let mut to = (**new).clone();
    annotate(view, &mut to, true);
    to.spec.get_or_insert_default().min_ready_seconds = view.spec.min_ready_seconds;
    let mut steps = Vec::new();
    if to != **new {
        steps.push(Step::Update { set: new.clone(), to: Box::new(to.clone()) });
    }
    let on_set = annotation(&to.metadata, REVISION).unwrap_or("0");
    if annotation(&view.deployment.metadata, REVISION) != Some(on_set) {
        steps.push(Step::SetRevision(on_set.to_owned()));
    }
    steps
}

fn annotate(view: &View, set: &mut ReplicaSet, exists: bool) {
    let newest_old = view.old.iter().map(|s| revision(&s.metadata)).max().unwrap_or(0);
    let next = newest_old + 1;
    let own = view.deployment.metadata.annotations.iter().flatten();
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in own.filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())) {
        annotations.insert(key.clone(), value.clone());
    }
    let had = annotations.get(REVISION).cloned();
    if had.as_deref().and_then(|r| r.parse::<i64>().ok()).unwrap_or(0) < next {
        annotations.insert(REVISION.into(), next.to_string());
        if let Some(had) = had.filter(|_| exists) {
            // A rollback gives an old set a new revision; the old one is remembered, as long as the list is short.
            let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
            let longer = if history.is_empty() { had } else { format!("{history},{had}") };
            if longer.len() <= 2000 {
                annotations.insert(REVISION_HISTORY.into(), longer);
            }
        }
    }
    if !exists {
        annotations.insert(DESIRED.into(), view.replicas().to_string());
        annotations.insert(MAX.into(), (view.replicas() + view.max_surge()).to_string());
    }
}

fn create_new(view: &View) -> Step {
    let deployment = &view.deployment;
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = template_hash(&view.spec.template, collisions);
    let mut template = view.spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = view.spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(LABEL.into(), hash.clone());
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(&**deployment)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(first_size(view, view.total_wanted(), 0)),
            min_ready_seconds: view.spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate(view, &mut set, false);
    Step::Create(Box::new(set))
}

/// Empty old sets beyond `revisionHistoryLimit` go, the oldest revisions first.
fn clean_up(view: &View) -> Vec<Step> {
    let limit = view.spec.revision_history_limit.unwrap_or(10);
    if limit == i32::MAX {
        return Vec::new();
    }
    let mut old: Vec<&Arc<ReplicaSet>> = view.old.iter().filter(|s| !deleting(&s.metadata)).collect();
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.sort_by_key(|s| revision(&s.metadata));
    old.truncate(surplus);
    let empty = |s: &&Arc<ReplicaSet>| {
        let status = s.status.clone().unwrap_or_default();
        status.replicas == 0 && wanted(s) == 0 && s.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0)
    };
    old.into_iter().filter(empty).map(|s| Step::Delete(s.clone())).collect()
}
