"""The objects of a namespace, their pods, and the connections between the pods."""

import copy
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.infra.required_tools import INFRA

K8S = INFRA / "k8s"
Manifest = dict[str, Any]
Build = Callable[[str], list[Manifest]]
"""Returns the objects of a folder of `K8S`."""


def one(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """Return the object of a kind and a name."""
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


@dataclass
class Pod:
    """A pod of the namespace, or any other peer of a connection."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    spec: Manifest = field(default_factory=dict)
    namespace: str = "reid"
    address: str = "10.9.8.7"
    replicas: int = 1
    owner: str = ""

    @property
    def containers(self) -> list[Manifest]:
        """All containers, including the init containers."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(objects: list[Manifest]) -> Iterator[Pod]:
    """Yield the pods that the controllers of Kubernetes and the KubeRay operator create for the objects."""
    for each in objects:
        spec, owner = each.get("spec", {}), f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            name = each["metadata"]["name"]
            yield Pod(name, spec["template"]["metadata"]["labels"], spec["template"]["spec"], owner=owner)
        elif each["kind"] == "RayCluster":
            yield from _ray_pods(each["metadata"]["name"], spec, owner)
        elif each["kind"] == "RayJob":
            template = spec["submitterPodTemplate"]
            yield Pod("submitter", template["metadata"]["labels"], template["spec"], owner=owner)
            yield from _ray_pods(each["metadata"]["name"] + "-abcde", spec["rayClusterSpec"], owner)


def _ray_pods(cluster: str, spec: Manifest, owner: str) -> Iterator[Pod]:
    """Yield the pods of a cluster with the additions of the operator (controllers/ray/common/pod.go)."""
    for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
        kind = "worker" if "groupName" in group else "head"
        template = copy.deepcopy(group["template"])
        pod = template["spec"]
        ray = pod["containers"][0]
        if kind == "head" and spec.get("enableInTreeAutoscaling"):
            options = spec["autoscalerOptions"]
            given = {key: options[key] for key in ("resources", "securityContext", "volumeMounts")}
            pod["containers"].append({"name": "autoscaler", "image": ray["image"], **given})
        if kind == "worker":
            small = {"cpu": "200m", "memory": "256Mi"}
            waits = {key: ray[key] for key in ("image", "securityContext", "env", "volumeMounts")}
            waits |= {"name": "wait-gcs-ready", "resources": {"requests": small, "limits": small}}
            pod["initContainers"] = [waits]
        token = {"name": spec["authOptions"]["secretName"], "key": "auth_token"}
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            container["env"] = [
                *container.get("env", []),
                {"name": "RAY_AUTH_MODE", "value": spec["authOptions"]["mode"]},
                {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": token}},
            ]
        labels = {
            **template["metadata"]["labels"],
            "ray.io/cluster": cluster,
            "ray.io/node-type": kind,
            "app.kubernetes.io/name": "kuberay",
        }
        count = group.get("replicas", group.get("minReplicas", 0)) if kind == "worker" else 1
        name = f"{cluster}-{group.get('groupName', 'head')}"
        yield Pod(name, labels, pod, replicas=count, owner=owner)


def quantity(text: str | int) -> float:
    """Return a quantity of Kubernetes, such as 500m, 16Gi or 4, as a number."""
    factors = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    match = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi)?", str(text))
    assert match, text
    return float(match[1]) * factors.get(match[2], 1)


# Network policies: a pod that is selected by policies for a direction has the connections that any of them
# allows; other pods have all connections.
# https://kubernetes.io/docs/concepts/services-networking/network-policies/


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Return whether a label selector matches."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions", []):
        holds = {
            "In": labels.get(each["key"]) in each.get("values", []),
            "NotIn": labels.get(each["key"]) not in each.get("values", []),
            "Exists": each["key"] in labels,
            "DoesNotExist": each["key"] not in labels,
        }
        if not holds[each["operator"]]:
            return False
    return True


def reaches(objects: list[Manifest], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Return whether the policies let a pod, or a peer elsewhere, open a connection to another."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    return _allowed(policies, "Egress", source, target, port, protocol) and _allowed(
        policies, "Ingress", target, source, port, protocol
    )


def _allowed(policies: list[Manifest], direction: str, pod: Pod, peer: Pod, port: int, protocol: str) -> bool:
    ours = [
        each["spec"]
        for each in policies
        if each["metadata"]["namespace"] == pod.namespace
        and selects(each["spec"]["podSelector"], pod.labels)
        and direction in each["spec"]["policyTypes"]
    ]
    key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    rules = [rule for spec in ours for rule in spec.get(key, [])]
    return not ours or any(
        any(_is_peer(each, peer, pod.namespace) for each in rule[peers])
        and (
            "ports" not in rule
            or any(each["port"] == port and each["protocol"] == protocol for each in rule["ports"])
        )
        for rule in rules
    )


def _is_peer(rule: Manifest, peer: Pod, namespace: str) -> bool:
    if "ipBlock" in rule:
        # Only for peers outside of the cluster: network plug-ins need not apply ipBlock to pods.
        block = rule["ipBlock"]
        address = ipaddress.ip_address(peer.address)
        return (
            not peer.namespace
            and address in ipaddress.ip_network(block["cidr"])
            and not any(address in ipaddress.ip_network(each) for each in block.get("except", []))
        )
    if "namespaceSelector" in rule:
        if not peer.namespace or not selects(
            rule["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}
        ):
            return False
    elif peer.namespace != namespace:
        return False
    return selects(rule.get("podSelector", {}), peer.labels)
