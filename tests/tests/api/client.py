"""What programs do with the official client: typed objects, lists in pages, watches, patches, errors, the dynamic client."""

import sys
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException

kubeconfig, namespace = sys.argv[1:]
config.load_kube_config(kubeconfig)
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()


def refused(code, reason, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ApiException as error:
        assert error.status == code and reason in error.body, (error.status, error.body)
        return
    raise AssertionError(f"{call.__name__} was not refused")


def config_map(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"app": "py"}), data=data)


# Objects, typed.
made = core.create_namespaced_config_map(namespace, config_map("one", a="1"))
assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo
refused(409, "AlreadyExists", core.create_namespaced_config_map, namespace, config_map("one"))
refused(404, "NotFound", core.read_namespaced_config_map, "none", namespace)
made.data["a"] = "2"
newer = core.replace_namespaced_config_map("one", namespace, made)
refused(409, "Conflict", core.replace_namespaced_config_map, "one", namespace, made)
patched = core.patch_namespaced_config_map("one", namespace, {"data": {"b": "3"}})
assert patched.data == {"a": "2", "b": "3"}, patched.data
patched = core.patch_namespaced_config_map("one", namespace, [{"op": "remove", "path": "/data/b"}])
assert patched.data == {"a": "2"}
dry = core.create_namespaced_config_map(namespace, config_map("dry"), dry_run="All")
assert dry.metadata.name == "dry"
refused(404, "NotFound", core.read_namespaced_config_map, "dry", namespace)

# Pages.
for i in range(9):
    core.create_namespaced_config_map(namespace, config_map(f"page-{i}"))
names, token = [], None
while True:
    page = core.list_namespaced_config_map(namespace, label_selector="app=py", limit=4, _continue=token)
    names += [item.metadata.name for item in page.items]
    token = page.metadata._continue
    if not token:
        break
assert names == ["one"] + [f"page-{i}" for i in range(9)], names

# A watch from where the list was.
listed = core.list_namespaced_config_map(namespace, label_selector="app=py")
seen = []


def change():
    core.create_namespaced_config_map(namespace, config_map("later"))
    core.patch_namespaced_config_map("later", namespace, {"data": {"x": "y"}})
    core.delete_namespaced_config_map("later", namespace)


thread = threading.Thread(target=change)
thread.start()
stream = watch.Watch()
for event in stream.stream(core.list_namespaced_config_map, namespace, label_selector="app=py",
                           resource_version=listed.metadata.resource_version, timeout_seconds=50):
    seen.append((event["type"], event["object"].metadata.name))
    if event["type"] == "DELETED":
        stream.stop()
thread.join()
assert seen == [("ADDED", "later"), ("MODIFIED", "later"), ("DELETED", "later")], seen

# A workload: scale, status, selectors by field.
container = client.V1Container(name="main", image="demo", resources=client.V1ResourceRequirements(requests={"cpu": "100m"}))
template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels={"app": "web"}), spec=client.V1PodSpec(containers=[container]))
spec = client.V1DeploymentSpec(replicas=0, selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template)
apps.create_namespaced_deployment(namespace, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec))
scale = apps.read_namespaced_deployment_scale("web", namespace)
assert scale.spec.replicas in (0, None)
apps.patch_namespaced_deployment_scale("web", namespace, {"spec": {"replicas": 1}})
assert apps.read_namespaced_deployment("web", namespace).spec.replicas == 1
pods = core.list_namespaced_pod(namespace, field_selector="status.phase=Running")
assert pods.items == []
service = core.create_namespaced_service(namespace, client.V1Service(
    metadata=client.V1ObjectMeta(name="web"),
    spec=client.V1ServiceSpec(selector={"app": "web"}, ports=[client.V1ServicePort(port=80, target_port="http")])))
assert service.spec.cluster_ip and service.spec.ports[0].protocol == "TCP"
job = batch.create_namespaced_job(namespace, client.V1Job(metadata=client.V1ObjectMeta(name="job"), spec=client.V1JobSpec(
    template=client.V1PodTemplateSpec(spec=client.V1PodSpec(restart_policy="Never", containers=[container])))))
assert job.spec.backoff_limit == 6
secret = core.create_namespaced_secret(namespace, client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"k": "v"}))
assert secret.data == {"k": "dg=="} and secret.type == "Opaque"

# Bad objects.
refused(422, "Invalid", core.create_namespaced_config_map, namespace, config_map("Bad_Name"))
refused(400, "BadRequest", core.list_namespaced_pod, namespace, label_selector="a=(")

# Reviews and tokens.
review = client.AuthorizationV1Api().create_self_subject_access_review(client.V1SelfSubjectAccessReview(
    spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=client.V1ResourceAttributes(verb="delete", resource="nodes"))))
assert review.status.allowed
token = core.create_namespaced_service_account_token("default", namespace, client.AuthenticationV1TokenRequest(
    spec=client.V1TokenRequestSpec(audiences=[])))
assert token.status.token.count(".") == 2

# The dynamic client reads discovery.
anything = dynamic.DynamicClient(client.ApiClient())
leases = anything.resources.get(api_version="coordination.k8s.io/v1", kind="Lease")
lease = leases.create(namespace=namespace, body={"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}})
assert lease.spec.holderIdentity == "me"

# Collections.
core.delete_collection_namespaced_config_map(namespace, label_selector="app=py")
assert core.list_namespaced_config_map(namespace, label_selector="app=py").items == []
