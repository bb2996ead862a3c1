//! Deployments against a model of ReplicaSets whose pods come, become available and die at random.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, from_value, json};

use super::plan::{Step, plan};
use super::status::{News, is_complete, status};
use super::view::{REVISION, REVISION_HISTORY, View, available, scaled, wanted};

fn deployment(replicas: i32, surge: Value, unavailable: Value, image: &str) -> Deployment {
    from_value(json!({"metadata": {"name": "d", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}}))
    .unwrap()
}

/// ReplicaSets as the API would have them, pods as numbers in their status.
#[derive(Clone, Debug)]
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    created: i64,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        World { deployment, sets: Vec::new(), created: 0 }
    }

    fn view(&self) -> View {
        View::new(Arc::new(self.deployment.clone()), self.sets.iter().cloned().map(Arc::new).collect()).unwrap()
    }

    fn set_image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    fn set_replicas(&mut self, n: i32) {
        self.deployment.spec.as_mut().unwrap().replicas = Some(n);
    }

    /// Applies one plan; says whether there was anything to do.
    fn step(&mut self) -> bool {
        let old_pods = self.view().old.iter().any(|s| s.status.as_ref().is_some_and(|s| s.replicas > 0));
        let steps = plan(&self.view(), old_pods);
        let busy = !steps.is_empty();
        for step in steps {
            match step {
                Step::Create(mut set) => {
                    self.created += 1;
                    set.metadata.creation_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::from_second(self.created).unwrap()));
                    set.status = Some(ReplicaSetStatus::default());
                    assert!(self.sets.iter().all(|s| s.metadata.name != set.metadata.name), "created twice");
                    self.sets.push(*set);
                }
                Step::Update { set, to } => {
                    let mine = self.sets.iter_mut().find(|s| s.metadata.name == set.metadata.name).unwrap();
                    *mine = *to;
                }
                Step::Delete(set) => self.sets.retain(|s| s.metadata.name != set.metadata.name),
                Step::SetRevision(r) => {
                    self.deployment.metadata.annotations.get_or_insert_default().insert(REVISION.into(), r);
                }
            }
        }
        busy
    }

    /// Every set's pods come and go as its number says; up to `n` new ones become available.
    fn run_pods(&mut self, mut n: i32) {
        for set in &mut self.sets {
            let want = wanted(set);
            let ready = available(set).min(want);
            let more = n.min(want - ready);
            n -= more;
            set.status = Some(ReplicaSetStatus {
                replicas: want,
                ready_replicas: Some(ready + more),
                available_replicas: Some(ready + more),
                ..Default::default()
            });
        }
    }

    /// Plans until nothing is left to do, pods becoming available meanwhile.
    fn settle(&mut self) {
        for _ in 0..500 {
            let busy = self.step();
            self.run_pods(100);
            if !busy && is_complete(&self.view()) {
                return;
            }
        }
        panic!("does not settle: {:#?}", self.sizes());
    }

    fn sizes(&self) -> Vec<(i32, i32)> {
        self.sets.iter().map(|s| (wanted(s), available(s))).collect()
    }
}

fn bound() -> impl Strategy<Value = Value> {
    prop_oneof![(0..6_i32).prop_map(|n| json!(n)), (0..=100_i32).prop_map(|p| json!(format!("{p}%")))]
}

proptest! {
    #[test]
    fn rolling_updates_keep_their_bounds_and_end(
        replicas in 0..30_i32, surge in bound(), unavailable in bound(),
        speeds in prop::collection::vec(0..5_i32, 1..60),
    ) {
        let mut world = World::new(deployment(replicas, surge, unavailable, "v1"));
        world.settle();
        world.set_image("v2");
        let (max_surge, max_unavailable) = (world.view().max_surge(), world.view().max_unavailable());
        for speed in speeds {
            world.step();
            let view = world.view();
            prop_assert!(view.total_wanted() <= replicas + max_surge, "too many: {:?}", world.sizes());
            // Pods that exist and are available, whatever their set wants to be.
            let serving: i32 = view.all().map(|s| available(s).min(wanted(s))).sum();
            prop_assert!(serving >= replicas - max_unavailable, "too few: {:?}", world.sizes());
            world.run_pods(speed);
        }
        world.settle();
        let view = world.view();
        prop_assert_eq!(wanted(view.new.as_ref().unwrap()), replicas);
        prop_assert!(view.old.iter().all(|s| wanted(s) == 0));
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_ends_right(
        from in 1..20_i32, to in 0..20_i32, surge in bound(), unavailable in bound(), before in 0..10_usize,
    ) {
        let mut world = World::new(deployment(from, surge, unavailable, "v1"));
        world.settle();
        world.set_image("v2");
        for _ in 0..before {
            world.step();
            world.run_pods(1);
        }
        world.set_replicas(to);
        world.settle();
        prop_assert_eq!(world.view().total_wanted(), to);
    }
}

#[test]
fn percentages_round_as_upstream() {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::{Int, String};
    for (value, total, up, want) in [
        (Int(3), 10, true, 3),
        (String("25%".into()), 10, true, 3),
        (String("25%".into()), 10, false, 2),
        (String("0%".into()), 10, true, 0),
        (String("100%".into()), 7, false, 7),
        (String("nonsense".into()), 7, true, 0),
    ] {
        assert_eq!(scaled(&value, total, up), want, "{value:?} of {total}");
    }
}

#[test]
fn proportional_scaling_shares_by_size() {
    let mut world = World::new(deployment(10, json!(3), json!(2), "v1"));
    world.settle();
    world.set_image("v2");
    // The new template never becomes available: 8 old and 5 new pods, as in the documentation's example.
    for _ in 0..10 {
        world.step();
        world.run_pods(0);
    }
    assert_eq!(world.sizes(), [(8, 8), (5, 0)]);
    world.set_replicas(15);
    while world.step() {}
    assert_eq!(world.sizes().iter().map(|s| s.0).collect::<Vec<_>>(), [11, 7]);
}

#[test]
fn rollback_renews_the_old_set_and_remembers_its_revision() {
    let mut world = World::new(deployment(2, json!(1), json!(0), "v1"));
    world.settle();
    world.set_image("v2");
    world.settle();
    world.set_image("v1");
    world.settle();
    assert_eq!(world.sets.len(), 2);
    let annotations = world.sets[0].metadata.annotations.clone().unwrap();
    assert_eq!((annotations[REVISION].as_str(), annotations[REVISION_HISTORY].as_str()), ("3", "1"));
    assert_eq!(world.deployment.metadata.annotations.unwrap()[REVISION], "3");
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = World::new(deployment(1, json!(1), json!(0), "v0"));
    world.deployment.spec.as_mut().unwrap().revision_history_limit = Some(2);
    for i in 0..6 {
        world.set_image(&format!("v{i}"));
        world.settle();
        while world.step() {}
    }
    let revisions: Vec<_> = world.sets.iter().map(|s| s.metadata.annotations.as_ref().unwrap()[REVISION].clone()).collect();
    assert_eq!(revisions, ["4", "5", "6"]);
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let mut world = World::new(deployment(3, json!(0), json!(0), "v1"));
    world.deployment.spec.as_mut().unwrap().strategy = from_value(json!({"type": "Recreate"})).unwrap();
    world.settle();
    world.set_image("v2");
    assert!(world.step());
    assert_eq!(world.sets.len(), 1, "the new set must wait");
    assert!(!world.step(), "old pods still run");
    world.run_pods(0);
    world.step();
    assert_eq!(world.sets.iter().map(wanted).collect::<Vec<_>>(), [0, 3]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(deployment(3, json!(1), json!(0), "v1"));
    world.settle();
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    world.set_image("v2");
    world.set_replicas(5);
    while world.step() {}
    assert_eq!(world.sets.iter().map(wanted).collect::<Vec<_>>(), [5]);
}

#[test]
fn conditions_tell_the_story() {
    let at = |s: i64| Time(k8s_openapi::jiff::Timestamp::from_second(s).unwrap());
    let mut world = World::new(deployment(2, json!(1), json!(0), "v1"));
    let tell = |world: &mut World, news: &News, second: i64| {
        let (status, again) = status(&world.view(), news, &at(second));
        world.deployment.status = Some(status.clone());
        let find = |t: &str| {
            status.conditions.iter().flatten().find(|c| c.type_ == t).map(|c| format!("{} {}", c.status, c.reason.clone().unwrap()))
        };
        (find("Available").unwrap(), find("Progressing").unwrap(), again.is_some())
    };
    world.step();
    let created = News::Created("d-1".into());
    assert_eq!(tell(&mut world, &created, 0), ("False MinimumReplicasUnavailable".into(), "True NewReplicaSetCreated".into(), true));
    world.run_pods(0);
    assert_eq!(tell(&mut world, &News::None, 10).1, "True ReplicaSetUpdated");
    assert_eq!(tell(&mut world, &News::None, 500).1, "True ReplicaSetUpdated");
    assert_eq!(
        tell(&mut world, &News::None, 620),
        ("False MinimumReplicasUnavailable".into(), "False ProgressDeadlineExceeded".into(), false)
    );
    world.run_pods(2);
    assert_eq!(tell(&mut world, &News::None, 700), ("True MinimumReplicasAvailable".into(), "True NewReplicaSetAvailable".into(), false));
}
