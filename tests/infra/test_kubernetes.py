"""The Kubernetes files, built with kustomize and checked without a cluster.

The checks are the schemas of Kubernetes, the CRDs and the rules of the KubeRay operator, the autoscaler of
Ray on a RayCluster, the command line of the sweep, and an evaluator of network policies.
"""

import configparser
import fnmatch
import importlib.metadata
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from orchestrator import sweep
from orchestrator.config.document import Override
from orchestrator.config.sweep import read_sweep
from orchestrator.execution.cluster import TRIAL_SLOT, Cluster
from tests.infra import guide
from tests.infra.checkov import objections
from tests.infra.crd import CustomResource
from tests.infra.kuberay_rules import RULES, broken
from tests.infra.pods import K8S, Build, Manifest, Pod, one, pods, quantity, reaches, selects
from tests.infra.required_tools import INFRA, need_file, need_module
from tests.support.paths import ROOT

pytestmark = pytest.mark.infra

KUBERNETES = "1.37"
CRDS = Path(os.environ.get("REID_CRDS", ROOT.parent / "shared" / "kuberay-crds" / "1.7.0"))
BUILDS = sorted(
    str(path.parent.relative_to(K8S))
    for path in K8S.glob("*/*/kustomization.yaml")
    if "\nkind: Kustomization" in path.read_text()
)
WORLDS = {
    "dev": ("overlays/dev", "jobs/dev"),
    "eks": ("overlays/eks", "jobs/eks"),
    "eks-queued": ("overlays/eks", "jobs/eks-queued"),
}
"""The objects in the namespace while a sweep runs."""

RAY = "(reid|sweep-abcde)-(head|cpu|gpu)"
ACCEPTED = {
    "CKV_K8S_8": (
        f"{RAY}|submitter|postgres|seaweedfs",
        "Ray's come from the operator; a database may recover",
    ),
    "CKV_K8S_9": (f"{RAY}|submitter", "the operator adds those of Ray; a submitter serves no requests"),
    "CKV_K8S_15": (
        ".*",
        "images loaded into kind are in no registry; tags name a version, which does not change",
    ),
    "CKV_K8S_35": (RAY, "the operator hands the token over as an environment variable"),
    "CKV_K8S_40": ("postgres", "the user of its image is 999"),
    "CKV_K8S_43": (
        ".*",
        "ours have no digest before they are built; those of others have a version, as in Compose",
    ),
}
"""Checks of Checkov that may fail, and the reasons."""


@pytest.fixture(scope="session")
def resources() -> dict[str, CustomResource]:
    """RayCluster and RayJob as defined in an API server with KubeRay 1.7."""
    need_module("cel", "common-expression-language")
    files = [CRDS / f"ray.io_{plural}.yaml" for plural in ("rayclusters", "rayjobs")]
    for file in files:
        need_file(file, "KubeRay's CRDs, of its release 1.7.0; name their folder in REID_CRDS")
    return {each.kind: each for each in map(CustomResource, files)}


def of(objects: list[Manifest], kind: str) -> list[Manifest]:
    return [each for each in objects if each["kind"] == kind]


def clusters(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for each in objects:
        if each["kind"] in ("RayCluster", "RayJob"):
            spec = each["spec"]
            yield each["kind"], spec["rayClusterSpec"] if each["kind"] == "RayJob" else spec


def documented_secrets() -> dict[str, set[str]]:
    """Return the Secrets that the README creates, each with its keys."""
    shell = "\n".join(guide.commands(guide.KUBERNETES, mark) for mark in ("secrets", "bucket"))
    lines = shell.replace("\\\n", " ").splitlines()
    made = [shlex.split(line) for line in lines if "create secret generic" in line]
    files = {
        words[words.index("generic") + 1]: [each for each in words if "--from-file" in each] for words in made
    }
    return {name: {each.split("=")[1] for each in options} for name, options in files.items()}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, build: Build) -> list[Manifest]:
    return [each for directory in WORLDS[request.param] for each in build(directory)]


# Schemas


@pytest.mark.parametrize("directory", BUILDS)
def test_core_objects_are_valid(build: Build, directory: str) -> None:
    need_module("kubernetes_validate", "kubernetes-validate")
    import kubernetes_validate

    objects = build(directory)
    ours = {"ray.io", "kueue.x-k8s.io", "monitoring.coreos.com"}
    core = [each for each in objects if each["apiVersion"].partition("/")[0] not in ours]
    # CRDs hardly describe templates inside of custom resources, so they are checked as pods.
    for pod in pods(objects):
        core.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": pod.labels}, "spec": pod.spec})
    assert core
    for each in core:
        assert kubernetes_validate.validate(each, KUBERNETES, strict=True) == KUBERNETES


def test_manifests_pass_checkov(build: Build, tmp_path: Path) -> None:
    for number, directory in enumerate(BUILDS):
        objects = build(directory)
        for pod in pods([each for each in objects if each["kind"].startswith("Ray")]):
            # Checkov ignores custom resources.
            metadata = {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels}
            objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec})
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump_all(objects))
    assert objections("kubernetes", ACCEPTED, *sorted(tmp_path.glob("*.yaml"))) == []


def test_core_object_with_misspelt_field_is_reported(build: Build) -> None:
    need_module("kubernetes_validate", "kubernetes-validate")
    import kubernetes_validate

    deployment = one(build("overlays/dev"), "Deployment", "mlflow")
    deployment["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


@pytest.mark.parametrize("directory", BUILDS)
def test_object_names_are_unique(build: Build, directory: str) -> None:
    objects = build(directory)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    everywhere = {"Namespace", "ClusterQueue", "ResourceFlavor"}
    for each in objects:
        place = None if each["kind"] in everywhere else "reid"
        assert each["metadata"].get("namespace") == place, each["metadata"]


def test_every_file_is_part_of_a_build() -> None:
    """Every file belongs to an overlay or a job."""
    reached: set[Path] = set()

    def reach(directory: Path) -> None:
        file = directory / "kustomization.yaml"
        reached.add(file)
        said = yaml.safe_load(file.read_text())
        settings = [path for each in said.get("configMapGenerator", []) for path in each["envs"]]
        patches = [each["path"] for each in said.get("patches", []) if "path" in each]
        for name in (*said.get("resources", []), *said.get("components", []), *settings, *patches):
            path = (directory / name).resolve()
            if path.is_dir():
                reach(path)
            else:
                reached.add(path)

    for directory in (*BUILDS, "components/data"):
        reach(K8S / directory)
    assert reached | {K8S / "README.md", K8S / "kuberay-values.yaml"} == {
        path for path in K8S.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("directory", BUILDS)
def test_custom_resources_are_accepted_by_api_server(
    build: Build, resources: dict[str, CustomResource], directory: str
) -> None:
    found = [each for each in build(directory) if each["kind"] in resources]
    assert found
    for each in found:
        assert each["apiVersion"] == resources[each["kind"]].api_version
        stored = resources[each["kind"]].admit(each)
        cluster = stored["spec"].get("rayClusterSpec", stored["spec"])
        # The default of the CRD allows two billion nodes.
        assert all(group["maxReplicas"] <= 4 for group in cluster["workerGroupSpecs"])


def _set(path: str, value: Any) -> Callable[[Manifest], None]:
    """Set the value at a path such as ``spec/workerGroupSpecs/0/replicas``; ``~1`` is a slash in a key."""
    *steps, last = (step.replace("~1", "/") for step in path.split("/"))

    def damage(manifest: Manifest) -> None:
        place: Any = manifest
        for step in steps:
            place = place[int(step)] if step.isdecimal() else place.setdefault(step, {})
        place[last] = value

    return damage


REFUSED_BY_THE_API_SERVER = {
    "an unknown field": (_set("spec/backoffLimits", 3), "unknown field .spec.backoffLimits"),
    "an unknown field deep inside": (
        _set("spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/envs", []),
        "unknown field .spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].envs",
    ),
    "a wrong type": (_set("spec/backoffLimit", "3"), "is not of type 'integer'"),
    "a number out of range": (_set("spec/backoffLimit", 2**31), "is not a 'int32'"),
    "below the minimum": (_set("spec/preRunningDeadlineSeconds", 0), "less than the minimum"),
    "a value that is none of the possible": (
        _set("spec/rayClusterSpec/authOptions/mode", "tokens"),
        "is not one of",
    ),
    "a part that has to be there": (_set("spec/rayClusterSpec", {}), "'headGroupSpec' is a required"),
    "a doubled variable": (
        _set(
            "spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/ports",
            [{"containerPort": 1, "protocol": "TCP"}] * 2,
        ),
        "duplicate in .spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].ports",
    ),
    "a CEL rule": (_set("spec/deletionStrategy", {}), "deletionStrategy requires either BOTH"),
    "another CEL rule": (_set("spec/managedBy", "somebody"), "the managedBy field value must be"),
}


@pytest.mark.parametrize("what", REFUSED_BY_THE_API_SERVER)
def test_invalid_custom_resource_is_refused_by_api_server(
    build: Build, resources: dict[str, CustomResource], what: str
) -> None:
    damage, reason = REFUSED_BY_THE_API_SERVER[what]
    (job,) = build("jobs/dev")
    damage(job)
    with pytest.raises(ValueError, match=re.escape(reason)):
        resources["RayJob"].admit(job)


def test_api_server_drops_nulls_and_sets_defaults(build: Build, resources: dict[str, CustomResource]) -> None:
    (job,) = build("jobs/dev")
    job["spec"] |= {"submissionMode": None, "metadata": None}
    stored = resources["RayJob"].admit(job)["spec"]
    assert stored["submissionMode"] == "K8sJobMode"
    assert "metadata" not in stored
    assert stored["rayClusterSpec"]["workerGroupSpecs"][0]["numOfHosts"] == 1


# The KubeRay operator


@pytest.mark.parametrize("directory", BUILDS)
def test_custom_resources_are_accepted_by_operator(build: Build, directory: str) -> None:
    found = [each for each in build(directory) if each["kind"] in ("RayCluster", "RayJob")]
    assert found
    assert [broken(each) for each in found] == [[]] * len(found)


_HEAD = "spec/rayClusterSpec/headGroupSpec"
_WORKER = "spec/rayClusterSpec/workerGroupSpecs/0"


def _all(*damages: Callable[[Manifest], None]) -> Callable[[Manifest], None]:
    def damage(manifest: Manifest) -> None:
        for each in damages:
            each(manifest)

    return damage


def _without(path: str) -> Callable[[Manifest], None]:
    *steps, last = path.split("/")

    def damage(manifest: Manifest) -> None:
        place: Any = manifest
        for step in steps:
            place = place[int(step)] if step.isdecimal() else place[step]
        del place[last]

    return damage


def _variable(name: str) -> Callable[[Manifest], None]:
    return _set(f"{_HEAD}/template/spec/containers/0/env", [{"name": name, "value": "1"}])


_BREAKS: dict[str, Callable[[Manifest], None]] = {
    "the name is short enough for the names made of it": _set("metadata/name", "s" * 48),
    "the name is a DNS-1035 label": _set("metadata/name", "2nd-sweep"),
    "every group has a container": _set(f"{_WORKER}/template/spec/containers", []),
    "a group without an autoscaler says both of its bounds": _all(
        _set("spec/rayClusterSpec/enableInTreeAutoscaling", False), _without(f"{_WORKER}/minReplicas")
    ),
    "the bounds of a group are not negative": _set(f"{_WORKER}/minReplicas", -1),
    "a group's minReplicas is at most its maxReplicas": _set(f"{_WORKER}/minReplicas", 5),
    "a group's resources stand in one place": _set(f"{_HEAD}/rayStartParams/num-cpus", "0"),
    "labels of Ray do not stand in rayStartParams": _set(f"{_WORKER}/rayStartParams/labels", "a=b"),
    "labels of Ray are labels": _set(f"{_WORKER}/labels", {"pool": "no label!"}),
    "no Redis without gcsFaultToleranceOptions": _variable("RAY_REDIS_ADDRESS"),
    "no worker group is suspended (gate RayJobDeletionPolicy is off)": _set(f"{_WORKER}/suspend", True),
    "autoscaler v2 is not asked for where nothing scales": _all(
        _set("spec/rayClusterSpec/enableInTreeAutoscaling", False), _variable("RAY_enable_autoscaler_v2")
    ),
    "the autoscaler's version stands in one place": _variable("RAY_enable_autoscaler_v2"),
    "with autoscaler v2 no pod restarts": _set(f"{_WORKER}/template/spec/restartPolicy", "Always"),
    "the autoscaler's idle timeout is not negative": _set(
        "spec/rayClusterSpec/autoscalerOptions/idleTimeoutSeconds", -1
    ),
    "a group's idle timeout is not negative, and needs autoscaler v2": _all(
        _set(f"{_WORKER}/idleTimeoutSeconds", 60), _set("spec/rayClusterSpec/autoscalerOptions/version", "v1")
    ),
    "token authentication needs Ray 2.52": _set("spec/rayClusterSpec/rayVersion", "2.51.1"),
    "a token is not both a Secret's and Kubernetes' own": _set(
        "spec/rayClusterSpec/authOptions/enableK8sTokenAuth", True
    ),
    "options behind gates that are off are not used": _set("spec/rayClusterSpec/networkPolicy", {}),
    "a job's cluster has no upgradeStrategy": _set("spec/rayClusterSpec/upgradeStrategy", {"type": "None"}),
    "a job has a cluster, its own or a chosen one": _without("spec/rayClusterSpec"),
    "only a cluster that ends with its job can be suspended": _all(
        _set("spec/suspend", True), _set("spec/shutdownAfterJobFinishes", False)
    ),
    "a chosen cluster is neither retried nor suspended": _set(
        "spec/clusterSelector", {"ray.io/cluster": "reid"}
    ),
    "an interactive job is not retried": _set("spec/submissionMode", "InteractiveMode"),
    "a sidecar has no pod template": _set("spec/submissionMode", "SidecarMode"),
    "a sidecar's head does not restart": _all(
        _set("spec/submissionMode", "SidecarMode"), _set(f"{_HEAD}/template/spec/restartPolicy", "Always")
    ),
    "a cluster ends in one way: shutdownAfterJobFinishes or deletionRules": _set(
        "spec/deletionStrategy/deletionRules", []
    ),
    "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": _set("spec/shutdownAfterJobFinishes", False),
    "ttlSecondsAfterFinished is not negative": _set("spec/ttlSecondsAfterFinished", -1),
    "deadlines are positive": _set("spec/activeDeadlineSeconds", 0),
    "backoffLimit is not negative": _set("spec/backoffLimit", -1),
}


@pytest.mark.parametrize("rule", RULES)
def test_invalid_custom_resource_is_refused_by_operator(build: Build, rule: str) -> None:
    (job,) = build("jobs/dev")
    assert broken(job) == []
    _BREAKS[rule](job)
    assert rule in broken(job)


def test_sweep_job_is_retried_ends_and_cleans_up(world: list[Manifest]) -> None:
    job = one(world, "RayJob", "sweep")["spec"]
    assert job["backoffLimit"] > 0
    assert 0 < job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]
    assert job["shutdownAfterJobFinishes"]
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["submissionMode"] == "K8sJobMode"  # the pod of the submitter shows the log


def test_sweep_job_has_the_spec_of_the_permanent_cluster(world: list[Manifest]) -> None:
    (standing,) = (spec for kind, spec in clusters(world) if kind == "RayCluster")
    (own,) = (spec for kind, spec in clusters(world) if kind == "RayJob")
    assert own["headGroupSpec"] == standing["headGroupSpec"]
    assert own["authOptions"] == standing["authOptions"]
    groups = {group["groupName"]: group for group in standing["workerGroupSpecs"]}
    assert own["workerGroupSpecs"]
    for group in own["workerGroupSpecs"]:
        assert group["template"] == groups[group["groupName"]]["template"]
    assert not own.get("suspend")


# Ray and the sweep


def _node_types(spec: Manifest) -> dict[str, Any]:
    """Return the node types that the autoscaler of Ray reads from a RayCluster."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    resource = {"metadata": {"name": "reid", "namespace": "reid"}, "spec": spec}
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
    types: dict[str, Any] = derived["available_node_types"]
    return types


def test_worker_groups_are_read_by_ray_as_intended(world: list[Manifest]) -> None:
    for kind, spec in clusters(world):
        types = _node_types(spec)
        head = types.pop("headgroup")["resources"]
        assert head["CPU"] == 0  # no worker of a trial runs beside the driver of the sweep
        assert head[TRIAL_SLOT] == 64
        assert types
        for name, group in types.items():
            assert group["resources"]["CPU"] >= 2
            assert group["resources"].get("GPU", 0) == (name == "gpu")
            assert group["max_workers"] >= 1
            if name == "gpu":
                assert group["min_workers"] == 0
            elif kind == "RayCluster":
                assert group["min_workers"] == 1  # a sweep plans for the existing nodes
        assert set(types) <= {"cpu", "gpu"}


@pytest.mark.parametrize(("name", "at_once"), [("dev", 2), ("eks", 4), ("eks-queued", 4)])
def test_sweep_job_command_is_valid_and_fits(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str, at_once: int
) -> None:
    monkeypatch.chdir(ROOT)  # the working directory of the image has search_spaces/, too
    (job,) = of(build(WORLDS[name][1]), "RayJob")
    python, flag, module, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert [python, flag, module] == ["python", "-m", "orchestrator.sweep"]
    parsed = sweep.parse(arguments)
    assert parsed.storage.startswith("s3://")
    assert parsed.storage.endswith("/sweeps")
    read = read_sweep(parsed.file, [Override.parse(text) for text in parsed.set])
    # The nodes at submission: the operator waits for `replicas` of each group.
    spec = job["spec"]["rayClusterSpec"]
    types = _node_types(spec)
    nodes = [types["headgroup"]["resources"]]
    for group in spec["workerGroupSpecs"]:
        nodes += [types[group["groupName"]]["resources"]] * group.get("replicas", group["minReplicas"])
    cluster = Cluster("", None, None, tuple(nodes))
    assert cluster.has_slots
    assert cluster.concurrency(read.resources) == at_once


# Checks of a namespace: each returns faults, and is tested with damaged namespaces.

CHECKS: dict[str, Callable[[list[Manifest]], Iterator[str]]] = {}
DAMAGES: dict[str, list[Callable[[list[Manifest]], None]]] = {}
Check = Callable[[list[Manifest]], Iterator[str]]


def check(*damages: Callable[[list[Manifest]], None]) -> Callable[[Check], Check]:
    """Register a check with damages to a namespace that it has to report."""

    def register(function: Check) -> Check:
        CHECKS[function.__name__] = function
        DAMAGES[function.__name__] = list(damages)
        return function

    return register


def to(kind: str, name: str, *damages: Callable[[Manifest], None]) -> Callable[[list[Manifest]], None]:
    """Damage one object of a namespace."""
    return lambda objects: [each(one(objects, kind, name)) for each in damages] and None


_MLFLOW = "spec/template/spec"
_STANDING_HEAD = "spec/headGroupSpec/template/spec"


@check(to("Namespace", "reid", _set("metadata/labels/pod-security.kubernetes.io~1enforce", "baseline")))
def the_namespace_enforces_restricted(objects: list[Manifest]) -> Iterator[str]:
    labels = one(objects, "Namespace", "reid")["metadata"]["labels"]
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "not enforced"
    if not re.fullmatch(r"v1\.\d+", labels.get("pod-security.kubernetes.io/enforce-version", "")):
        yield "no fixed version"


@check(
    to("Deployment", "mlflow", _set(f"{_MLFLOW}/securityContext/runAsUser", 0)),
    to("Deployment", "mlflow", _set(f"{_MLFLOW}/automountServiceAccountToken", True)),
    to("Deployment", "mlflow", _set(f"{_MLFLOW}/enableServiceLinks", True)),
    to("Job", "mlflow-users", _without(f"{_MLFLOW}/securityContext/seccompProfile")),
    to("RayCluster", "reid", _without("spec/autoscalerOptions/securityContext/capabilities")),
    to("RayCluster", "reid", _set(f"{_STANDING_HEAD}/containers/0/securityContext/privileged", True)),
    to("RayCluster", "reid", _set(f"{_STANDING_HEAD}/hostNetwork", True)),
    to("RayJob", "sweep", _set(f"{_WORKER}/template/spec/containers/0/securityContext", {})),
    to("RayJob", "sweep", _set("spec/submitterPodTemplate/spec/volumes", [{"name": "a", "hostPath": {}}])),
)
def pods_are_restricted(objects: list[Manifest]) -> Iterator[str]:
    """Stricter than https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    for pod in pods(objects):
        security = pod.spec["securityContext"]
        ours = not pod.containers[-1]["image"].startswith("docker.io/")
        if not security["runAsNonRoot"] or security["runAsUser"] != (
            10001 if ours else security["runAsUser"]
        ):
            yield f"{pod.name} runs as {security['runAsUser']}"
        if not security["runAsUser"] or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.name} is not confined"
        if pod.spec["automountServiceAccountToken"]:
            yield f"{pod.name} is given a token of Kubernetes"
        if pod.spec["enableServiceLinks"]:
            yield f"{pod.name} finds variables such as MLFLOW_PORT, which mean something else"
        if any(pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.name} is in a namespace of the host"
        kinds = {"emptyDir", "secret", "configMap", "projected", "persistentVolumeClaim"}
        for volume in pod.spec.get("volumes", []):
            if not volume.keys() - {"name"} <= kinds:
                yield f"{pod.name} mounts {volume}"
        for container in pod.containers:
            own = container.get("securityContext")
            wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            if own != {**wanted, "capabilities": {"drop": ["ALL"]}}:
                yield f"{pod.name}/{container['name']}: {own}"


@check(
    to("RayCluster", "reid", _set("spec/authOptions/mode", "disabled")),
    to("RayJob", "sweep", _without("spec/rayClusterSpec/authOptions/secretName")),
    to("RayJob", "sweep", _variable("RAY_AUTH_MODE")),
)
def ray_asks_for_the_token(objects: list[Manifest]) -> Iterator[str]:
    for kind, spec in clusters(objects):
        if spec.get("authOptions") != {"mode": "token", "secretName": "ray-auth"}:
            yield f"{kind}: {spec.get('authOptions')}"
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            # A variable of the pod would override that of the operator.
            for variable in group["template"]["spec"]["containers"][0].get("env", []):
                if variable["name"].startswith("RAY_AUTH"):
                    yield f"{kind}: {variable['name']}"


@check(
    to("RayCluster", "reid", _set("spec/headGroupSpec/serviceType", "LoadBalancer")),
    to("RayJob", "sweep", _set(f"{_HEAD}/enableIngress", True)),
    to("Service", "mlflow", _set("spec/type", "NodePort")),
    lambda objects: objects.append({"kind": "Ingress", "metadata": {"name": "mlflow"}}),
)
def nothing_is_exposed(objects: list[Manifest]) -> Iterator[str]:
    for each in objects:
        if each["kind"] in ("Ingress", "HTTPRoute", "Gateway"):
            yield each["kind"]
        if each["kind"] == "Service" and each["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield each["metadata"]["name"]
    for kind, spec in clusters(objects):
        head = spec["headGroupSpec"]
        if head["serviceType"] != "ClusterIP" or head.get("enableIngress") or "headService" in head:
            yield kind


@check(
    to("Deployment", "mlflow", _set(f"{_MLFLOW}/containers/0/image", "multi-shot-reid-mlflow:latest")),
    to("RayJob", "sweep", _set(f"{_WORKER}/template/spec/containers/0/image", "rayproject/ray:2.60.0")),
    to("RayJob", "sweep", _set("spec/submitterPodTemplate/spec/containers/0/image", "multi-shot-reid:0.2.0")),
)
def images_are_ours_and_fixed(objects: list[Manifest]) -> Iterator[str]:
    version = re.escape(importlib.metadata.version("multi-shot-reid"))
    ours = rf"multi-shot-reid(:{version}|:{version}-cuda|-mlflow:{version})"
    known = rf"{ours}|docker\.io/(library/postgres|chrislusf/seaweedfs):\d+\.\d+(-bookworm)?"
    used = set()
    for pod in pods(objects):
        for container in pod.containers:
            if not re.fullmatch(known, container["image"]):
                yield f"{pod.name}: {container['image']}"
            if not re.match("docker.io/|multi-shot-reid-mlflow:", container["image"]):
                used.add(
                    container["image"]
                )  # Ray requires the same version on all nodes and at its submitter
    if len(used) != 1:
        yield f"several: {used}"


@check(
    lambda objects: objects.append({"kind": "Secret", "metadata": {"name": "mlflow"}}),
    to(
        "RayCluster",
        "reid",
        _set(f"{_STANDING_HEAD}/containers/0/env", [{"name": "MLFLOW_TRACKING_PASSWORD", "value": "sweep"}]),
    ),
    to("ConfigMap", "settings", _set("data/MLFLOW_DATABASE", "postgresql://mlflow:mlflow@postgres/mlflow")),
    to("ConfigMap", "settings", _set("data/AWS_SECRET_ACCESS_KEY", "x")),
)
def no_secret_is_written_down(objects: list[Manifest]) -> Iterator[str]:
    secret = re.compile(r"PASSWORD|TOKEN|SECRET|KEY|CREDENTIAL")
    yield from (each["metadata"]["name"] for each in of(objects, "Secret"))
    for each in of(objects, "ConfigMap"):
        for key, value in each["data"].items():
            if secret.search(key) or re.search(r"://[^/@]*:[^/@]*@", value):
                yield f"ConfigMap {each['metadata']['name']}: {key}"
    for pod in pods(objects):
        for container in pod.containers:
            for variable in container.get("env", []):
                value = variable.get("value", "")
                if secret.search(variable["name"]) and value and not value.startswith("/run/secrets/"):
                    yield f"{pod.name}: {variable['name']}"


@check(
    to("RayCluster", "reid", _without(f"{_STANDING_HEAD}/containers/0/resources/limits/memory")),
    to("RayJob", "sweep", _set(f"{_WORKER}/template/spec/containers/0/resources/requests/cpu", "1")),
    to("Deployment", "mlflow", _set(f"{_MLFLOW}/containers/0/resources", {})),
    to("Deployment", "mlflow", _without(f"{_MLFLOW}/volumes/0/emptyDir/sizeLimit")),
    to("RayCluster", "reid", _set("spec/headGroupSpec/rayStartParams/object-store-memory", "3000000000")),
    to("RayJob", "sweep", _without(f"{_WORKER}/template/spec/volumes/3/emptyDir/medium")),
)
def resources_are_bounded(objects: list[Manifest]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers:
            given = container.get("resources", {})
            if (
                given.get("requests") != given.get("limits")
                or not {"cpu", "memory"} <= given.get("limits", {}).keys()
            ):
                yield f"{pod.name}/{container['name']}: {given}"
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.name}: {volume}"
    for kind, spec in clusters(objects):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (shared,) = (each["emptyDir"] for each in pod["volumes"] if each["name"] == "shm")
            mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
            store = quantity(group["rayStartParams"]["object-store-memory"])
            memory = quantity(pod["containers"][0]["resources"]["limits"].get("memory", 0))
            if shared.get("medium") != "Memory" or mounts["shm"] != "/dev/shm":
                yield f"{kind}: /dev/shm is on a disk"
            if not store < quantity(shared["sizeLimit"]) < memory / 1.5:
                yield f"{kind}: the object store does not fit into /dev/shm, or that into memory"


@check(
    to("RayCluster", "reid", _set(f"{_STANDING_HEAD}/serviceAccountName", "ray")),
    to("Deployment", "mlflow", _without(f"{_MLFLOW}/serviceAccountName")),
    to("RayJob", "sweep", _set(f"{_WORKER}/template/spec/containers/0/volumeMounts/0/name", "temporary")),
    to("RayCluster", "reid", _set("spec/autoscalerOptions/volumeMounts/1/name", "token")),
    to("ConfigMap", "settings", _without("data/AWS_REGION")),
    to("Deployment", "mlflow", _set(f"{_MLFLOW}/volumes/1/secret/secretName", "mlflow-secrets")),
    to("Job", "mlflow-users", _set(f"{_MLFLOW}/volumes/1/secret/items/0/key", "admin")),
    to("RayJob", "sweep", _set("spec/rayClusterSpec/authOptions/secretName", "ray")),
)
def what_is_referred_to_exists(objects: list[Manifest]) -> Iterator[str]:
    maps = {each["metadata"]["name"]: set(each["data"]) for each in of(objects, "ConfigMap")}
    maps["kube-root-ca.crt"] = {"ca.crt"}  # created by Kubernetes in every namespace
    secrets = documented_secrets()
    accounts = {each["metadata"]["name"] for each in of(objects, "ServiceAccount")} | {"default"}

    def missing(known: dict[str, set[str]], name: str, keys: set[str], optional: bool = False) -> bool:
        return not optional and not (name in known and keys <= known[name])

    worn = {pod.spec.get("serviceAccountName", "default") for pod in pods(objects)}
    yield from (f"no pod runs as {name}" for name in accounts - worn - {"default"})
    for pod in pods(objects):
        if pod.spec.get("serviceAccountName", "default") not in accounts:
            yield f"{pod.name}: service account {pod.spec['serviceAccountName']}"
        volumes = {each["name"]: each for each in pod.spec.get("volumes", [])}
        volumes |= {"data": {"name": "data"}} if pod.owner.startswith("StatefulSet/") else {}
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.name}/{container['name']}: volume {mount['name']}"
            for variable in container.get("env", []):
                for kind, known in (("configMapKeyRef", maps), ("secretKeyRef", secrets)):
                    source = variable.get("valueFrom", {}).get(kind)
                    if source and missing(
                        known, source["name"], {source["key"]}, source.get("optional", False)
                    ):
                        yield f"{pod.name}: {variable['name']}"
        for volume in volumes.values():
            sources = [volume, *volume.get("projected", {}).get("sources", [])]
            for source in sources:
                for kind, known in (("configMap", maps), ("secret", secrets)):
                    if named := source.get(kind):
                        name = named.get("name", named.get("secretName"))
                        keys = {item["key"] for item in named.get("items", [])}
                        # Optional Secrets are documented, too.
                        if missing(known, name, keys):
                            yield f"{pod.name}: volume {volume['name']}"


@check(
    to("Service", "mlflow", _set("spec/selector", {"app.kubernetes.io/component": "tracking"})),
    to("Service", "mlflow", _set("spec/ports/0/targetPort", "web")),
    to("Service", "mlflow", _set("spec/ports/0/port", 80)),
    to("Deployment", "mlflow", _set(f"{_MLFLOW}/containers/0/ports/0/containerPort", 5001)),
    to(
        "RayCluster",
        "reid",
        _set(
            f"{_STANDING_HEAD}/containers/0/env",
            [{"name": "MLFLOW_TRACKING_URI", "value": "http://tracking:5000"}],
        ),
    ),
)
def services_lead_to_pods(objects: list[Manifest]) -> Iterator[str]:
    ports: dict[str, set[int]] = {}
    for service in of(objects, "Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        behind = [pod for pod in pods(objects) if selects({"matchLabels": spec["selector"]}, pod.labels)]
        if len(behind) != 1:
            yield f"{name} leads to {len(behind)} pods"
        ports[name] = {each["port"] for each in spec["ports"]}
        for pod in behind:
            open_ports = [each for container in pod.containers for each in container.get("ports", [])]
            named = {each["name"]: each["containerPort"] for each in open_ports}
            # Not checked: these services use the same port on both sides.
            yield from (
                f"{name}: {each}" for each in spec["ports"] if named.get(each["targetPort"]) != each["port"]
            )
    # Services that are addressed by name have the port in the address.
    texts = [json.dumps([pod.spec for pod in pods(objects)])]
    texts += [value for each in of(objects, "ConfigMap") for value in each["data"].values()]
    for text in texts:
        for host, port in re.findall(r"(?:://|@)([a-z0-9]+):(\d+)", text):
            if int(port) not in ports.get(host, set()):
                yield f"no service listens at {host}:{port}"


@check(
    to("PodDisruptionBudget", "ray-head", _set("spec/minAvailable", "100%")),
    to("PodDisruptionBudget", "ray-head", _set("spec/selector/matchLabels", {"app": "head"})),
)
def the_head_has_a_budget_of_disruptions(objects: list[Manifest]) -> Iterator[str]:
    spec = one(objects, "PodDisruptionBudget", "ray-head")["spec"]
    chosen = {pod.name for pod in pods(objects) if selects(spec["selector"], pod.labels)}
    if chosen != {"reid-head", "sweep-abcde-head"}:
        yield f"it covers {chosen}"
    # Kubernetes supports no other form for pods whose controller has no scale.
    if not isinstance(spec.get("minAvailable"), int) or "maxUnavailable" in spec:
        yield "it is none that such pods can have"


@pytest.mark.parametrize("name", CHECKS)
def test_namespace_passes_all_checks(world: list[Manifest], name: str) -> None:
    assert list(CHECKS[name](world)) == []


@pytest.mark.parametrize("name", CHECKS)
def test_namespace_check_reports_its_damages(build: Build, name: str) -> None:
    assert DAMAGES[name]
    for number, damage in enumerate(DAMAGES[name]):
        objects = [*build("overlays/dev"), *build("jobs/dev")]
        damage(objects)
        assert list(CHECKS[name](objects)), f"damage {number}"


# Connections

RAY, MLFLOW = {"app.kubernetes.io/component": "ray"}, {"app.kubernetes.io/component": "mlflow"}
DNS = Pod("dns", {"k8s-app": "kube-dns"}, namespace="kube-system")
OPERATOR = Pod("operator", {"app.kubernetes.io/name": "kuberay-operator"}, namespace="kuberay-system")
NEIGHBOUR = Pod("neighbour", namespace="kuberay-system")
PROMETHEUS = Pod("prometheus", {"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
STRANGER = Pod("stranger", {"app.kubernetes.io/component": "shell"})
ELSEWHERE = Pod("elsewhere", {**RAY, **MLFLOW}, namespace="default")
INTERNET = Pod("internet", namespace="", address="203.0.113.9")
METADATA = Pod("metadata", namespace="", address="169.254.169.254")
DATABASE = Pod("database", namespace="", address="10.0.7.9")
PEERS = {
    each.name: each
    for each in (DNS, OPERATOR, NEIGHBOUR, PROMETHEUS, STRANGER, ELSEWHERE, INTERNET, METADATA, DATABASE)
}

ALLOWED = """
    sweep-abcde-head   sweep-abcde-group  31000
    sweep-abcde-group  sweep-abcde-head   6379
    sweep-abcde-group  sweep-abcde-group  31000
    reid-cpu           reid-head          6379
    submitter          sweep-abcde-head   8265
    operator           sweep-abcde-head   8265
    operator           reid-head          8265
    prometheus         sweep-abcde-head   8080
    prometheus         sweep-abcde-group  8080
    prometheus         sweep-abcde-head   44217
    prometheus         sweep-abcde-head   44227
    prometheus         mlflow             5000
    sweep-abcde-head   mlflow             5000
    mlflow-users       mlflow             5000
    sweep-abcde-head   internet           443
    sweep-abcde-head   internet           6443
"""
DENIED = """
    stranger           sweep-abcde-head   8265
    stranger           sweep-abcde-head   6379
    stranger           sweep-abcde-head   8080
    stranger           mlflow             5000
    stranger           internet           443
    elsewhere          stranger           8000
    elsewhere          sweep-abcde-head   8265
    elsewhere          sweep-abcde-head   10001
    elsewhere          mlflow             5000
    prometheus         sweep-abcde-head   8265
    prometheus         sweep-abcde-head   6379
    neighbour          sweep-abcde-head   8265
    operator           sweep-abcde-head   6379
    operator           mlflow             5000
    submitter          sweep-abcde-head   6379
    submitter          sweep-abcde-group  8265
    submitter          mlflow             5000
    submitter          internet           443
    mlflow             sweep-abcde-head   8265
    mlflow-users       sweep-abcde-head   8265
    mlflow-users       internet           443
    sweep-abcde-group  internet           6443
    sweep-abcde-group  internet           80
    sweep-abcde-head   metadata           80
    sweep-abcde-head   metadata           443
    mlflow             metadata           443
    sweep-abcde-head   database           5432
"""
ALSO = {
    "dev": (
        """
        mlflow             postgres           5432
        mlflow             seaweedfs          8333
        bucket             seaweedfs          8333
        sweep-abcde-head   seaweedfs          8333
        sweep-abcde-group  seaweedfs          8333
        """,
        """
        sweep-abcde-head   postgres           5432
        stranger           postgres           5432
        stranger           seaweedfs          8333
        sweep-abcde-head   seaweedfs          9333
        bucket             mlflow             5000
        seaweedfs          postgres           5432
        sweep-abcde-group  internet           443
        mlflow             internet           443
        mlflow             database           5432
        """,
    ),
    "eks": (
        """
        mlflow             database           5432
        mlflow             internet           443
        sweep-abcde-group  internet           443
        """,
        """
        mlflow             internet           5432
        sweep-abcde-group  database           5432
        """,
    ),
}


def connections(objects: list[Manifest], place: str, allowed: bool) -> Iterator[tuple[Pod, Pod, int, str]]:
    """Return the connections that must be possible, or must not be; all pods may use DNS."""
    group = "gpu" if place == "eks" else "cpu"
    ours = {pod.name: pod for pod in pods(objects)}
    all_pods = {**PEERS, **ours}
    text = (ALLOWED if allowed else DENIED) + ALSO[place][not allowed]
    for line in filter(str.strip, text.splitlines()):
        source, target, port = line.replace("-group", f"-{group}").split()
        yield all_pods[source], all_pods[target], int(port), "TCP"
    if allowed:
        for pod in ours.values():
            yield pod, DNS, 53, "UDP"
            yield pod, DNS, 53, "TCP"


def wrong(objects: list[Manifest], place: str) -> list[str]:
    """Return the connections that are possible but must not be, and the reverse."""
    return [
        f"{source.name} {'does not reach' if allowed else 'reaches'} {target.name}:{port}/{protocol}"
        for allowed in (True, False)
        for source, target, port, protocol in connections(objects, place, allowed)
        if reaches(objects, source, target, port, protocol) != allowed
    ]


@pytest.mark.parametrize("place", ALSO)
def test_network_policies_allow_listed_connections_only(build: Build, place: str) -> None:
    objects = [*build(f"overlays/{place}"), *build(f"jobs/{place}")]
    assert wrong(objects, place) == []


@pytest.mark.parametrize("place", ALSO)
def test_network_policies_are_all_needed(build: Build, place: str) -> None:
    objects = [*build(f"overlays/{place}"), *build(f"jobs/{place}")]
    for policy in of(objects, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        assert any(selects(selector, pod.labels) for pod in pods(objects)), policy["metadata"]["name"]
        others = [each for each in objects if each is not policy]
        assert wrong(others, place), f"{policy['metadata']['name']} changes nothing"


# Spot nodes, roles, the queue, monitoring


def _lands_on(pod: Manifest, labels: dict[str, str]) -> bool:
    affinity = pod.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [{}])
    return any(selects(term, labels) for term in terms)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_spot_nodes_get_gpu_workers_and_no_heads(build: Build, kind: str) -> None:
    (spec,) = (spec for each, spec in clusters([*build("overlays/eks"), *build("jobs/eks")]) if each == kind)
    head = spec["headGroupSpec"]["template"]["spec"]
    (gpu,) = (each["template"]["spec"] for each in spec["workerGroupSpecs"] if each["groupName"] == "gpu")
    spot = [{"karpenter.sh/capacity-type": "spot"}, {"eks.amazonaws.com/capacityType": "SPOT"}]
    lasting = [
        {},
        {"karpenter.sh/capacity-type": "on-demand"},
        {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
    ]
    assert [_lands_on(head, labels) for labels in (*spot, *lasting)] == [False, False, True, True, True]
    assert [_lands_on(gpu, labels) for labels in (*spot, *lasting)] == [True, True, False, False, False]
    assert gpu["containers"][0]["image"].endswith("-cuda")
    assert {each["key"] for each in gpu["tolerations"]} == {"nvidia.com/gpu", "spot"}
    assert "tolerations" not in head
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_data_component_mounts_data_in_all_ray_pods(build: Build, tmp_path: Path) -> None:
    said = {"resources": ["overlays/eks"], "components": ["components/data"]}
    said = {key: [os.path.relpath(K8S / each, tmp_path) for each in paths] for key, paths in said.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(said))
    found = 0
    for pod in pods(of(build(str(tmp_path)), "RayCluster")):
        container = pod.spec["containers"][0]
        assert {"name": "REID_DATA", "value": "/data"} in container["env"]
        assert {"name": "data", "mountPath": "/data", "readOnly": True} in container["volumeMounts"]
        claim = {"claimName": "reid-data", "readOnly": True}
        assert {"name": "data", "persistentVolumeClaim": claim} in pod.spec["volumes"]
        found += 1
    assert found == 3


def test_roles_are_assumed_by_their_service_accounts(build: Build) -> None:
    objects = build("overlays/eks")
    settings = one(objects, "ConfigMap", "settings")["data"]
    worn = {
        each["metadata"]["name"]: each["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn")
        for each in of(objects, "ServiceAccount")
    }
    ray, mlflow = settings["RAY_ROLE_ARN"], settings["MLFLOW_ROLE_ARN"]
    assert worn == {
        "ray-head": ray,
        "ray-worker": ray,
        "mlflow": mlflow,
        "mlflow-users": None,
        "sweep-submitter": None,
    }
    database = one(objects, "NetworkPolicy", "database")["spec"]["egress"][0]["to"]
    assert database == [{"ipBlock": {"cidr": settings["DATABASE_CIDR"]}}]
    assert settings["MLFLOW_DATABASE"].endswith("?sslmode=require")


def test_eks_commands_create_roles_of_service_accounts(build: Build) -> None:
    with guide.aws_account():
        role = "arn:aws:iam::123456789012:role/cluster"
        boto3.client("eks").create_cluster(name="CLUSTER", roleArn=role, resourcesVpcConfig={})
        guide.run(guide.commands(guide.KUBERNETES, "roles"))
        objects = build("overlays/eks")
        settings = one(objects, "ConfigMap", "settings")["data"]
        issuer = boto3.client("eks").describe_cluster(name="CLUSTER")["cluster"]["identity"]["oidc"]["issuer"]
        provider = issuer.removeprefix("https://")
        iam = boto3.client("iam")
        sweeps = settings["SWEEP"].rpartition(" ")[2]
        for role, accounts, place in (
            (settings["RAY_ROLE_ARN"], ["ray-head", "ray-worker"], sweeps),
            (settings["MLFLOW_ROLE_ARN"], ["mlflow"], settings["MLFLOW_ARTIFACTS"]),
        ):
            name = role.rpartition("/")[2]
            (trust,) = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]["Statement"]
            assert trust["Principal"]["Federated"].endswith(f":oidc-provider/{provider}")
            assert trust["Condition"]["StringEquals"] == {f"{provider}:aud": "sts.amazonaws.com"}
            (subject,) = trust["Condition"]["StringLike"].values()
            known = [each["metadata"]["name"] for each in of(objects, "ServiceAccount")]
            users = {each: f"system:serviceaccount:reid:{each}" for each in known}
            assert [each for each in known if fnmatch.fnmatchcase(users[each], subject)] == accounts
            policy = iam.get_role_policy(RoleName=name, PolicyName="bucket")["PolicyDocument"]
            bucket, _, prefix = place.removeprefix("s3://").partition("/")
            assert {each["Resource"] for each in policy["Statement"]} == {
                f"arn:aws:s3:::{bucket}",
                f"arn:aws:s3:::{bucket}/{prefix}/*",
            }


def test_bucket_is_as_restricted_as_in_compose(build: Build) -> None:
    """The bucket of Compose is tested in the native stack, including access to its keys."""
    service = yaml.safe_load((INFRA / "compose/compose.yaml").read_text())["services"]["seaweedfs"]
    pod = one(build("overlays/dev"), "StatefulSet", "seaweedfs")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    size = r"-(volume\.max|master\.volumeSizeLimitMB|metrics\w+)="
    here, there = (
        {re.sub("/run/secrets/(seaweedfs/)?", "", flag) for flag in given if not re.match(size, flag)}
        for given in (container["args"], service["command"])
    )
    assert here == there
    places = {name: Path(value).name for name, value in service["environment"].items()}
    assert places == {each["name"]: Path(each["value"]).name for each in container["env"]}


def test_queue_quota_covers_a_sweep(build: Build) -> None:
    """The quota by the rules of https://kueue.sigs.k8s.io/docs/tasks/run/rayjobs/."""
    objects = build("jobs/eks-queued")
    job = one(objects, "RayJob", "sweep")
    queue = one(objects, "LocalQueue", job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
    assert queue["metadata"]["namespace"] == job["metadata"]["namespace"]
    shared = one(objects, "ClusterQueue", queue["spec"]["clusterQueue"])["spec"]
    assert shared["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "reid"}}
    (group,) = shared["resourceGroups"]
    (flavor,) = group["flavors"]
    assert one(objects, "ResourceFlavor", flavor["name"])
    quota = {each["name"]: quantity(each["nominalQuota"]) for each in flavor["resources"]}
    assert set(quota) == set(group["coveredResources"])

    needed: dict[str, float] = {}
    for pod in pods(objects):
        for container in pod.spec["containers"]:
            for name, amount in container["resources"]["requests"].items():
                needed[name] = needed.get(name, 0) + pod.replicas * quantity(amount)
    assert set(needed) == set(quota)  # a resource that is not listed would keep the job waiting forever
    assert all(needed[name] <= quota[name] < 2 * needed[name] for name in quota)

    spec = job["spec"]
    assert not spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert "autoscalerOptions" not in spec["rayClusterSpec"]
    assert "clusterSelector" not in spec
    groups = [each["groupName"] for each in spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert len(groups) <= 7
    assert "head" not in groups


def test_prometheus_monitors_match_existing_pods(build: Build) -> None:
    objects = [*build("overlays/eks"), *build("jobs/eks")]
    monitor = one(objects, "PodMonitor", "ray")["spec"]
    found: dict[str, set[int]] = {}
    for pod in pods(objects):
        if selects(monitor["selector"], pod.labels):
            assert pod.labels[monitor["jobLabel"]] == "ray"
            assert pod.labels.keys() >= set(monitor["podTargetLabels"])
            named = {each["name"]: each["containerPort"] for each in pod.containers[0].get("ports", [])}
            named |= {each["name"]: each["containerPort"] for each in pod.spec["containers"][0]["ports"]}
            wanted = {each["port"] for each in monitor["podMetricsEndpoints"]}
            found[pod.name] = {number for name, number in named.items() if name in wanted}
            assert all(reaches(objects, PROMETHEUS, pod, number) for number in found[pod.name])
    assert found == {
        "reid-head": {8080, 44217, 44227},
        "reid-cpu": {8080},
        "reid-gpu": {8080},
        "sweep-abcde-head": {8080, 44217, 44227},
        "sweep-abcde-gpu": {8080},
    }

    monitor = one(objects, "ServiceMonitor", "mlflow")["spec"]
    service = one(objects, "Service", "mlflow")
    assert selects(monitor["selector"], service["metadata"]["labels"])
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "mlflow"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {each["name"] for each in service["spec"]["ports"]}
    for source in endpoint["basicAuth"].values():
        assert source["key"] in documented_secrets()[source["name"]]
    # MLflow answers only at known host names.
    (relabeling,) = endpoint["relabelings"]
    (container,) = one(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (hosts,) = (each["value"] for each in container["env"] if each["name"] == "MLFLOW_ALLOWED_HOSTS")
    assert relabeling["replacement"] in hosts.split(",")
    assert relabeling["targetLabel"] == "__address__"


def test_operator_namespace_matches_policies() -> None:
    values = yaml.safe_load((K8S / "kuberay-values.yaml").read_text())
    assert values["image"]["tag"] == "v1.7.0"
    assert values["watchNamespace"] == ["reid"]
    assert values["singleNamespaceInstall"]
    gates = {each["name"]: each["enabled"] for each in values["featureGates"]}
    assert not gates["RayJobDeletionPolicy"]
    assert not gates["RayClusterNetworkPolicy"]
    assert not gates["RayClusterMTLS"]
    assert "--namespace kuberay-system" in (K8S / "kuberay-values.yaml").read_text()
    assert "nameOverride" not in values  # it would change the label of the pod
    for where in ("podSecurityContext", "securityContext"):
        assert values[where]["runAsNonRoot"]
        assert values[where]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert values["resources"]["requests"] == values["resources"]["limits"]


# The README's commands


def test_readme_commands_create_secrets(kubectl: str, tmp_path: Path) -> None:
    text = (INFRA / "k8s/README.md").read_text()
    steps = (
        "kubectl apply -f infra/k8s/base/namespace.yaml",
        "helm upgrade",
        "create secret",
        "kubectl apply -k",
    )
    assert [text.index(step) for step in steps] == sorted(text.index(step) for step in steps)
    made = guide.secrets("secrets", kubectl, tmp_path)
    bucket = guide.secrets("bucket", kubectl, tmp_path)
    assert {name: set(data) for name, data in (made | bucket).items()} == documented_secrets()

    assert made["mlflow-scrape"]["username"] == "prometheus"
    assert made["mlflow-scrape"]["password"] == made["mlflow-users"]["prometheus"]
    login = configparser.ConfigParser()
    login.read_string(made["mlflow-login"]["credentials"])
    assert login["mlflow"]["mlflow_tracking_username"] == "sweep"
    assert login["mlflow"]["mlflow_tracking_password"] == made["mlflow-users"]["sweep"]
    random = made.keys() - {"mlflow-scrape", "mlflow-login"}
    values = [value for name in random for value in made[name].values()]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values)
    assert len(values) == len(set(values)) == 7

    certificate = bucket["seaweedfs"]["s3-grpc.pem"]
    assert [f"-----BEGIN {part}-----" in certificate for part in ("PRIVATE KEY", "CERTIFICATE")] == [True] * 2
    (owner,) = json.loads(bucket["seaweedfs"]["s3.json"])["identities"]
    (key,) = owner["credentials"]
    assert len(set(key.values())) == 2
    assert f"aws_access_key_id = {key['accessKey']}\n" in bucket["s3"]["credentials"]
    assert f"aws_secret_access_key = {key['secretKey']}\n" in bucket["s3"]["credentials"]


def test_readme_commands_keep_given_database_password(kubectl: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("of RDS\n")
    made = guide.secrets("secrets", kubectl, tmp_path, DATABASE_PASSWORD_FILE=str(file))
    assert made["mlflow"]["database-password"] == "of RDS"


def test_mlflow_entrypoint_reads_the_given_settings(build: Build) -> None:
    script = INFRA / "docker" / "mlflow-entrypoint.sh"
    need_file(script, "the entrypoint of MLflow's image")
    text = script.read_text()
    before, _, server = text.partition("\nserver)\n")
    server, _, users = server.partition("\nusers)\n")
    needed = {
        command: set(re.findall(r"^\s*(?:given|secret) (MLFLOW_\w+)$", before + part, re.M))
        for command, part in (("server", server), ("users", users))
    }
    for pod in pods(build("overlays/dev")):
        for container in pod.containers:
            if container["image"].startswith("multi-shot-reid-mlflow:"):
                (command,) = container["args"]
                given = {each["name"] for each in container["env"] if each["name"].startswith("MLFLOW_")}
                assert given >= needed.pop(command)
                assert all(name in text for name in given)
    assert not needed


def test_readme_commands_create_prometheus_rule(kubectl: str, tmp_path: Path) -> None:
    rules = INFRA / "monitoring" / "rules" / "sweeps.yml"
    need_file(rules, "the alerts")
    ((made,), _) = guide.objects(guide.commands(guide.KUBERNETES, "alerts"), kubectl, tmp_path)
    assert made["kind"] == "PrometheusRule"
    assert made["spec"] == yaml.safe_load(rules.read_text())


def test_readme_names_existing_objects() -> None:
    text = (K8S / "README.md").read_text()
    named = re.findall(r"`(\w[\w.-]*/[\w./-]*)`", text) + re.findall(r" (infra/[\w./-]+)", text)
    assert len(named) > 10
    assert [each for each in named if not (K8S / each).exists() and not (ROOT / each).exists()] == []
    for component in (K8S / "components").iterdir():
        assert f"`{component.name}`" in text or f"`components/{component.name}`" in text
