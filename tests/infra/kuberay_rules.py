"""Resources that the API server accepts but the KubeRay operator 1.7 refuses: it ignores them.

The rules follow ``ray-operator/controllers/ray/utils/validation.go`` of ray-project/kuberay, with the
feature gates of ``infra/k8s/kuberay-values.yaml``.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

Manifest = dict[str, Any]

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED_NAME = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_NAME_LENGTH = {"RayCluster": 53, "RayJob": 47}
_RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
_AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"


class Ray:
    """The parts of a RayCluster or RayJob that the rules check."""

    def __init__(self, manifest: Manifest) -> None:
        self.kind: str = manifest["kind"]
        self.name: str = manifest["metadata"]["name"]
        self.job: Manifest = manifest["spec"] if self.kind == "RayJob" else {}
        self.cluster: Manifest | None = (
            self.job.get("rayClusterSpec") if self.kind == "RayJob" else manifest["spec"]
        )
        cluster = self.cluster or {}
        self.head: Manifest = cluster.get("headGroupSpec", {})
        self.workers: list[Manifest] = cluster.get("workerGroupSpecs", [])
        self.groups: list[Manifest] = [self.head, *self.workers] if cluster else []
        self.scales: bool = cluster.get("enableInTreeAutoscaling", False)
        self.autoscaler: Manifest = cluster.get("autoscalerOptions", {})
        self.authentication: Manifest = cluster.get("authOptions", {})
        self.deletion: Manifest = self.job.get("deletionStrategy", {})

    def mode(self) -> str:
        """The submission mode of the job."""
        return str(self.job.get("submissionMode", "K8sJobMode"))

    def version(self) -> tuple[int, ...]:
        """The version of Ray as numbers; empty without one."""
        text = str((self.cluster or {}).get("rayVersion", ""))
        return tuple(int(part) for part in text.split(".")) if re.fullmatch(r"\d+(\.\d+)*", text) else ()

    def head_variables(self) -> set[str]:
        """Environment variables that the head sets itself."""
        containers = self.head.get("template", {}).get("spec", {}).get("containers", [])
        return {variable["name"] for variable in (containers[0].get("env", []) if containers else [])}


def _restarts(group: Manifest) -> bool:
    return group["template"]["spec"].get("restartPolicy", "Never") != "Never"


def _starts_with(group: Manifest) -> Manifest:
    parameters: Manifest = group.get("rayStartParams", {})
    return parameters


def _labels(ray: Ray) -> Iterator[tuple[str, str]]:
    for group in ray.groups:
        yield from group.get("labels", {}).items()


RULES: dict[str, Callable[[Ray], bool]] = {
    "the name is short enough for the names made of it": lambda ray: len(ray.name) <= _NAME_LENGTH[ray.kind],
    "the name is a DNS-1035 label": lambda ray: bool(_DNS_1035.fullmatch(ray.name)),
    "every group has a container": lambda ray: all(
        group["template"]["spec"].get("containers") for group in ray.groups
    ),
    "a group without an autoscaler says both of its bounds": lambda ray: (
        ray.scales or all({"minReplicas", "maxReplicas"} <= group.keys() for group in ray.workers)
    ),
    "the bounds of a group are not negative": lambda ray: all(
        group.get(bound, 0) >= 0 for group in ray.workers for bound in ("minReplicas", "maxReplicas")
    ),
    "a group's minReplicas is at most its maxReplicas": lambda ray: all(
        group.get("minReplicas", 0) <= group.get("maxReplicas", 2**31 - 1) for group in ray.workers
    ),
    "a group's resources stand in one place": lambda ray: (
        not any(
            group.get("resources") and any(_starts_with(group).get(name) for name in _RESOURCE_PARAMETERS)
            for group in ray.groups
        )
    ),
    "labels of Ray do not stand in rayStartParams": lambda ray: (
        not any("labels" in _starts_with(group) for group in ray.groups)
    ),
    "labels of Ray are labels": lambda ray: all(
        _QUALIFIED_NAME.fullmatch(key) and _LABEL_VALUE.fullmatch(value) for key, value in _labels(ray)
    ),
    "no Redis without gcsFaultToleranceOptions": lambda ray: (
        "gcsFaultToleranceOptions" in (ray.cluster or {}) or "RAY_REDIS_ADDRESS" not in ray.head_variables()
    ),
    "no worker group is suspended (gate RayJobDeletionPolicy is off)": lambda ray: (
        not any(group.get("suspend") for group in ray.workers)
    ),
    "autoscaler v2 is not asked for where nothing scales": lambda ray: (
        ray.scales or _AUTOSCALER_V2 not in ray.head_variables()
    ),
    "the autoscaler's version stands in one place": lambda ray: (
        not ("version" in ray.autoscaler and _AUTOSCALER_V2 in ray.head_variables())
    ),
    "with autoscaler v2 no pod restarts": lambda ray: (
        not (ray.scales and ray.autoscaler.get("version") == "v2" and any(map(_restarts, ray.groups)))
    ),
    "the autoscaler's idle timeout is not negative": lambda ray: (
        ray.autoscaler.get("idleTimeoutSeconds", 0) >= 0
    ),
    "a group's idle timeout is not negative, and needs autoscaler v2": lambda ray: all(
        group.get("idleTimeoutSeconds", 0) >= 0
        and ("idleTimeoutSeconds" not in group or (ray.scales and ray.autoscaler.get("version") == "v2"))
        for group in ray.workers
    ),
    "token authentication needs Ray 2.52": lambda ray: (
        ray.authentication.get("mode") != "token" or ray.version() >= (2, 52, 0)
    ),
    "a token is not both a Secret's and Kubernetes' own": lambda ray: (
        not (ray.authentication.get("enableK8sTokenAuth") and ray.authentication.get("secretName"))
    ),
    "options behind gates that are off are not used": lambda ray: (
        not (
            {"networkPolicy", "tlsOptions", "historyServerOptions"} & (ray.cluster or {}).keys()
            or (ray.cluster or {}).get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb"
            or "deletionRules" in ray.deletion
        )
    ),
    "a job's cluster has no upgradeStrategy": lambda ray: (
        ray.kind != "RayJob" or "upgradeStrategy" not in (ray.cluster or {})
    ),
    "a job has a cluster, its own or a chosen one": lambda ray: (
        ray.kind != "RayJob" or bool(ray.job.get("rayClusterSpec") or ray.job.get("clusterSelector"))
    ),
    "only a cluster that ends with its job can be suspended": lambda ray: (
        not ray.job.get("suspend") or ray.job.get("shutdownAfterJobFinishes", False)
    ),
    "a chosen cluster is neither retried nor suspended": lambda ray: (
        not ray.job.get("clusterSelector")
        or not (ray.job.get("backoffLimit") or ray.job.get("suspend") or ray.mode() == "SidecarMode")
    ),
    "an interactive job is not retried": lambda ray: (
        ray.mode() != "InteractiveMode" or not ray.job.get("backoffLimit")
    ),
    "a sidecar has no pod template": lambda ray: (
        ray.mode() != "SidecarMode" or not {"submitterPodTemplate", "submitterConfig"} & ray.job.keys()
    ),
    "a sidecar's head does not restart": lambda ray: (
        ray.mode() != "SidecarMode" or not ray.head or not _restarts(ray.head)
    ),
    "a cluster ends in one way: shutdownAfterJobFinishes or deletionRules": lambda ray: (
        not (ray.job.get("shutdownAfterJobFinishes") and "deletionRules" in ray.deletion)
    ),
    "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": lambda ray: (
        not ray.job.get("ttlSecondsAfterFinished") or ray.job.get("shutdownAfterJobFinishes", False)
    ),
    "ttlSecondsAfterFinished is not negative": lambda ray: ray.job.get("ttlSecondsAfterFinished", 0) >= 0,
    "deadlines are positive": lambda ray: all(
        ray.job.get(deadline, 1) > 0 for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")
    ),
    "backoffLimit is not negative": lambda ray: ray.job.get("backoffLimit", 0) >= 0,
}


def broken(manifest: Manifest) -> list[str]:
    """Return the names of the rules that a RayCluster or RayJob breaks."""
    return [rule for rule, holds in RULES.items() if not holds(Ray(manifest))]
