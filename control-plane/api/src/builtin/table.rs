//! The rows: every kind of Kubernetes v1.36's generally available groups.

use crate::resource::{Scope, Verb};

use Verb::{Create, Delete, DeleteCollection, Get, List, Patch, Update, Watch};

/// A row as it is written down; `builtin::resources` makes a [`crate::resource::Resource`] of it.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub scope: Scope,
    /// Space separated.
    pub short: &'static str,
    pub categories: &'static str,
    pub verbs: &'static [Verb],
    pub subresources: &'static [Sub],
    /// `None`: the plural. Empty: never stored.
    pub storage: Option<&'static str>,
    /// `apiVersion` of the stored form when another row's.
    pub stored_as: Option<&'static str>,
    /// Whether `metadata.generation` counts changes.
    pub generation: bool,
}

/// A subresource: name, (group, version, kind) when not the row's own, verbs.
pub(super) type Sub = (&'static str, Option<(&'static str, &'static str, &'static str)>, &'static [Verb]);

const ALL: &[Verb] = &[Create, Delete, DeleteCollection, Get, List, Patch, Update, Watch];
/// Kinds upstream serves without a collection delete.
const NO_COLLECTION: &[Verb] = &[Create, Delete, Get, List, Patch, Update, Watch];
const GPU: &[Verb] = &[Get, Patch, Update];
const STATUS: Sub = ("status", None, GPU);
const SCALE: Sub = ("scale", Some(("autoscaling", "v1", "Scale")), GPU);
/// Streams and proxies: discovery names the connect methods as verbs.
const CONNECT: &[Verb] = &[Create, Get];
const PROXY: &[Verb] = &[Create, Delete, Get, Patch, Update];

const fn row(group: &'static str, kind: &'static str, plural: &'static str, scope: Scope) -> Row {
    Row {
        group,
        version: "v1",
        kind,
        plural,
        scope,
        short: "",
        categories: "",
        verbs: ALL,
        subresources: &[],
        storage: None,
        stored_as: None,
        generation: false,
    }
}

/// A namespaced kind.
const fn ns(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    row(group, kind, plural, Scope::Namespaced)
}

/// A cluster-scoped kind.
const fn cl(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    row(group, kind, plural, Scope::Cluster)
}

/// A kind that is only ever posted.
const fn review(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    let mut r = cl(group, kind, plural);
    r.verbs = &[Create];
    r.storage = Some("");
    r
}

impl Row {
    const fn version(mut self, version: &'static str) -> Row {
        self.version = version;
        self
    }
    const fn short(mut self, short: &'static str) -> Row {
        self.short = short;
        self
    }
    const fn in_categories(mut self, categories: &'static str) -> Row {
        self.categories = categories;
        self
    }
    const fn verbs(mut self, verbs: &'static [Verb]) -> Row {
        self.verbs = verbs;
        self
    }
    const fn subs(mut self, subresources: &'static [Sub]) -> Row {
        self.subresources = subresources;
        self
    }
    const fn at(mut self, storage: &'static str) -> Row {
        self.storage = Some(storage);
        self
    }
    const fn stored_as(mut self, api_version: &'static str) -> Row {
        self.stored_as = Some(api_version);
        self
    }
    const fn counted(mut self) -> Row {
        self.generation = true;
        self
    }
}

const CORE: &str = "";
const APPS: &str = "apps";
const BATCH: &str = "batch";
const AUTOSCALING: &str = "autoscaling";
const NETWORKING: &str = "networking.k8s.io";
const POLICY: &str = "policy";
const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const DRA: &str = "resource.k8s.io";
const AUTHN: &str = "authentication.k8s.io";
const AUTHZ: &str = "authorization.k8s.io";

/// In the order kube-apiserver's discovery names the groups.
pub(super) static ROWS: &[Row] = &[
    ns(CORE, "Binding", "bindings").verbs(&[Create]).at(""),
    cl(CORE, "ComponentStatus", "componentstatuses").short("cs").verbs(&[Get, List]).at(""),
    ns(CORE, "ConfigMap", "configmaps").short("cm"),
    ns(CORE, "Endpoints", "endpoints").short("ep").at("services/endpoints"),
    ns(CORE, "Event", "events").short("ev"),
    ns(CORE, "LimitRange", "limitranges").short("limits"),
    cl(CORE, "Namespace", "namespaces").short("ns").verbs(NO_COLLECTION).subs(&[("finalize", None, &[Update]), STATUS]),
    cl(CORE, "Node", "nodes").short("no").at("minions").subs(&[("proxy", Some(("", "v1", "NodeProxyOptions")), PROXY), STATUS]),
    ns(CORE, "PersistentVolumeClaim", "persistentvolumeclaims").short("pvc").subs(&[STATUS]),
    cl(CORE, "PersistentVolume", "persistentvolumes").short("pv").subs(&[STATUS]),
    ns(CORE, "Pod", "pods").short("po").in_categories("all").counted().subs(&[
        ("attach", Some(("", "v1", "PodAttachOptions")), CONNECT),
        ("binding", Some(("", "v1", "Binding")), &[Create]),
        ("ephemeralcontainers", None, GPU),
        ("eviction", Some(("policy", "v1", "Eviction")), &[Create]),
        ("exec", Some(("", "v1", "PodExecOptions")), CONNECT),
        ("log", None, &[Get]),
        ("portforward", Some(("", "v1", "PodPortForwardOptions")), CONNECT),
        ("proxy", Some(("", "v1", "PodProxyOptions")), PROXY),
        ("resize", None, GPU),
        STATUS,
    ]),
    ns(CORE, "PodTemplate", "podtemplates").counted(),
    ns(CORE, "ReplicationController", "replicationcontrollers")
        .short("rc")
        .in_categories("all")
        .at("controllers")
        .counted()
        .subs(&[SCALE, STATUS]),
    ns(CORE, "ResourceQuota", "resourcequotas").short("quota").subs(&[STATUS]),
    ns(CORE, "Secret", "secrets"),
    ns(CORE, "ServiceAccount", "serviceaccounts").short("sa").subs(&[("token", Some((AUTHN, "v1", "TokenRequest")), &[Create])]),
    ns(CORE, "Service", "services")
        .short("svc")
        .in_categories("all")
        .at("services/specs")
        .subs(&[("proxy", Some(("", "v1", "ServiceProxyOptions")), PROXY), STATUS]),
    cl("apiregistration.k8s.io", "APIService", "apiservices")
        .in_categories("api-extensions")
        .at("apiregistration.k8s.io/apiservices")
        .subs(&[STATUS]),
    ns(APPS, "ControllerRevision", "controllerrevisions"),
    ns(APPS, "DaemonSet", "daemonsets").short("ds").in_categories("all").counted().subs(&[STATUS]),
    ns(APPS, "Deployment", "deployments").short("deploy").in_categories("all").counted().subs(&[SCALE, STATUS]),
    ns(APPS, "ReplicaSet", "replicasets").short("rs").in_categories("all").counted().subs(&[SCALE, STATUS]),
    ns(APPS, "StatefulSet", "statefulsets").short("sts").in_categories("all").counted().subs(&[SCALE, STATUS]),
    ns("events.k8s.io", "Event", "events").short("ev").stored_as("v1"),
    review(AUTHN, "SelfSubjectReview", "selfsubjectreviews"),
    review(AUTHN, "TokenReview", "tokenreviews"),
    ns(AUTHZ, "LocalSubjectAccessReview", "localsubjectaccessreviews").verbs(&[Create]).at(""),
    review(AUTHZ, "SelfSubjectAccessReview", "selfsubjectaccessreviews"),
    review(AUTHZ, "SelfSubjectRulesReview", "selfsubjectrulesreviews"),
    review(AUTHZ, "SubjectAccessReview", "subjectaccessreviews"),
    ns(AUTOSCALING, "HorizontalPodAutoscaler", "horizontalpodautoscalers").version("v2").short("hpa").in_categories("all").subs(&[STATUS]),
    ns(AUTOSCALING, "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .short("hpa")
        .in_categories("all")
        .stored_as("autoscaling/v2")
        .subs(&[STATUS]),
    ns(BATCH, "CronJob", "cronjobs").short("cj").in_categories("all").counted().subs(&[STATUS]),
    ns(BATCH, "Job", "jobs").in_categories("all").counted().subs(&[STATUS]),
    cl("certificates.k8s.io", "CertificateSigningRequest", "certificatesigningrequests")
        .short("csr")
        .subs(&[("approval", None, GPU), STATUS]),
    cl(NETWORKING, "IngressClass", "ingressclasses").counted(),
    ns(NETWORKING, "Ingress", "ingresses").short("ing").at("ingress").counted().subs(&[STATUS]),
    cl(NETWORKING, "IPAddress", "ipaddresses").short("ip"),
    ns(NETWORKING, "NetworkPolicy", "networkpolicies").short("netpol").counted(),
    cl(NETWORKING, "ServiceCIDR", "servicecidrs").subs(&[STATUS]),
    ns(POLICY, "PodDisruptionBudget", "poddisruptionbudgets").short("pdb").counted().subs(&[STATUS]),
    cl(RBAC, "ClusterRoleBinding", "clusterrolebindings"),
    cl(RBAC, "ClusterRole", "clusterroles"),
    ns(RBAC, "RoleBinding", "rolebindings"),
    ns(RBAC, "Role", "roles"),
    cl(STORAGE, "CSIDriver", "csidrivers"),
    cl(STORAGE, "CSINode", "csinodes"),
    ns(STORAGE, "CSIStorageCapacity", "csistoragecapacities"),
    cl(STORAGE, "StorageClass", "storageclasses").short("sc"),
    cl(STORAGE, "VolumeAttachment", "volumeattachments").subs(&[STATUS]),
    cl(STORAGE, "VolumeAttributesClass", "volumeattributesclasses").short("vac"),
    cl(ADMISSION, "MutatingAdmissionPolicy", "mutatingadmissionpolicies").in_categories("api-extensions").counted(),
    cl(ADMISSION, "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings").in_categories("api-extensions").counted(),
    cl(ADMISSION, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations").in_categories("api-extensions").counted(),
    cl(ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies").in_categories("api-extensions").counted().subs(&[STATUS]),
    cl(ADMISSION, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings").in_categories("api-extensions").counted(),
    cl(ADMISSION, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations").in_categories("api-extensions").counted(),
    cl("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions")
        .short("crd crds")
        .in_categories("api-extensions")
        .at("apiextensions.k8s.io/customresourcedefinitions")
        .counted()
        .subs(&[STATUS]),
    cl("scheduling.k8s.io", "PriorityClass", "priorityclasses").short("pc").counted(),
    ns("coordination.k8s.io", "Lease", "leases"),
    cl("node.k8s.io", "RuntimeClass", "runtimeclasses"),
    ns("discovery.k8s.io", "EndpointSlice", "endpointslices").counted(),
    cl(FLOW, "FlowSchema", "flowschemas").counted().subs(&[STATUS]),
    cl(FLOW, "PriorityLevelConfiguration", "prioritylevelconfigurations").counted().subs(&[STATUS]),
    cl(DRA, "DeviceClass", "deviceclasses").counted(),
    ns(DRA, "ResourceClaim", "resourceclaims").subs(&[STATUS]),
    ns(DRA, "ResourceClaimTemplate", "resourceclaimtemplates"),
    cl(DRA, "ResourceSlice", "resourceslices").counted(),
];
