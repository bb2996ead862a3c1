//! A Deployment and its ReplicaSets, with the numbers that decisions are made from.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use xebec_loops::meta::annotation;

use super::hash::same_template;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// A Deployment with its ReplicaSets, oldest first, the current one apart.
#[derive(Clone, Debug)]
pub struct View {
    pub deployment: Arc<Deployment>,
    pub spec: DeploymentSpec,
    /// The set whose template is the Deployment's.
    pub new: Option<Arc<ReplicaSet>>,
    pub old: Vec<Arc<ReplicaSet>>,
}

/// `spec.replicas` of a set.
pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// `status.availableReplicas` of a set.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The number in a revision annotation; 0 when there is none.
pub fn revision(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

impl View {
    /// Sorts the sets out. `None` if the Deployment has no spec.
    pub fn new(deployment: Arc<Deployment>, mut sets: Vec<Arc<ReplicaSet>>) -> Option<Self> {
        let spec = deployment.spec.clone()?;
        sets.sort_by(|a, b| {
            let at = |s: &ReplicaSet| (s.metadata.creation_timestamp.clone(), s.metadata.name.clone());
            at(a).cmp(&at(b))
        });
        let is_new =
            |s: &Arc<ReplicaSet>| s.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| same_template(t, &spec.template));
        // Of several with the same template the oldest is the one.
        let new = sets.iter().position(is_new).map(|i| sets.remove(i));
        Some(View { deployment, spec, new, old: sets })
    }

    /// `spec.replicas`.
    pub fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    /// Whether the strategy is RollingUpdate (the default).
    pub fn is_rolling(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("Recreate")
    }

    /// Every set.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.as_ref())
    }

    /// Pods that all sets want together.
    pub fn total_wanted(&self) -> i32 {
        self.all().map(|s| wanted(s)).sum()
    }

    /// Pods that all sets have available together.
    pub fn total_available(&self) -> i32 {
        self.all().map(|s| available(s)).sum()
    }

    /// `maxSurge` and `maxUnavailable` in pods. Surge rounds up, unavailable rounds down; both cannot be zero, or
    /// nothing could ever move.
    pub fn bounds(&self) -> (i32, i32) {
        let rolling = self.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let of = |v: Option<&IntOrString>, up| scaled(v.unwrap_or(&quarter), self.replicas(), up);
        let surge = of(rolling.and_then(|r| r.max_surge.as_ref()), true);
        let unavailable = of(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    /// Pods that may be missing.
    pub fn max_unavailable(&self) -> i32 {
        if !self.is_rolling() || self.replicas() == 0 { 0 } else { self.bounds().1.min(self.replicas()) }
    }

    /// Pods there may be too many.
    pub fn max_surge(&self) -> i32 {
        if self.is_rolling() { self.bounds().0 } else { 0 }
    }

    /// `progressDeadlineSeconds`, unless it means forever.
    pub fn deadline(&self) -> Option<i32> {
        Some(self.spec.progress_deadline_seconds.unwrap_or(600)).filter(|d| *d != i32::MAX)
    }
}

/// A number, or a share of `total`. What is neither counts as zero.
pub fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(s) => {
            let Some(percent) = s.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()) else { return 0 };
            let product = percent * i64::from(total);
            let n = if round_up { product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0) } else { product.div_euclid(100) };
            i32::try_from(n).unwrap_or(i32::MAX)
        }
    }
}
