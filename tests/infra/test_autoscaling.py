"""The worker groups of cluster.yaml with the autoscaler of Ray; processes of this machine are the nodes.

As a program, this module runs in separate namespaces, apart from other Ray clusters of the machine: it starts
a cluster, gives it work, and prints one line of JSON for each state of the cluster.
"""

import json
import os
import secrets
import string
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.required_tools import INFRA, need, need_root
from tests.support.paths import ROOT

pytestmark = [pytest.mark.infra_slow, pytest.mark.timeout(600)]
CLUSTER = INFRA / "aws" / "cluster.yaml"
HEAD = "ray.head.default"
"""The type of the head that the fake provider of Ray expects."""


def fake_cluster() -> dict[str, Any]:
    """Return the configuration of cluster.yaml with a fake provider of nodes and a short idle timeout."""
    text = string.Template(CLUSTER.read_text())
    cluster: dict[str, Any] = yaml.safe_load(text.substitute(dict.fromkeys(text.get_identifiers(), "x")))
    types = cluster["available_node_types"]
    types[HEAD] = types.pop(cluster["head_node_type"])
    for each in types.values():
        each["node_config"] = {}
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return cluster | {
        "provider": {"type": "external", "module": provider, "launch_multiple": True},
        "head_node_type": HEAD,
        "auth": {},
        "idle_timeout_minutes": 0.1,
        "file_mounts": {},
        "cluster_synced_files": [],
    }


@pytest.mark.parametrize(
    ("bundle", "group"), [({"CPU": 8, "GPU": 1}, {"gpu-l4", "gpu-a10g"}), ({"CPU": 16}, {"cpu"})], ids=str
)
def test_autoscaler_adds_and_removes_workers_with_demand(
    tmp_path: Path, bundle: dict[str, int], group: set[str]
) -> None:
    need_root("make namespaces")
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(fake_cluster()))
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    unshare = [need("setpriv", "util-linux"), "--pdeathsig", "KILL", need("unshare", "util-linux")]
    unshare += ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*unshare, sys.executable, "-m", __name__, tmp_path / "cluster.yaml", json.dumps(bundle)],
        cwd=ROOT,
        env=inherited | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert [each["step"] for each in seen] == ["empty", "work", "empty"]
    assert seen[0]["nodes"] == seen[2]["nodes"] == {HEAD: 1}
    assert seen[1]["nodes"].pop(HEAD) == 1
    assert set(seen[1]["nodes"]) <= group and sum(seen[1]["nodes"].values()) == 2
    assert len(set(seen[1]["ran_on"])) == 2


def main(config: str, bundle: dict[str, int]) -> None:
    """Start the cluster, run two bundles that need one node each, and wait until it is empty again."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ours, usual = (
        Path(config).with_name("ray"),
        Path("/tmp/ray"),
    )  # where Ray writes the address of the local cluster
    for each in (ours, usual):
        each.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", ours, usual], check=True)
    head = yaml.safe_load(Path(config).read_text())["available_node_types"][HEAD]
    resources = dict(head["resources"])
    os.environ |= {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_NODE_TYPE_NAME": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_enable_autoscaler_v2": "1",
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=6379"]
    start += ["--node-ip-address=127.0.0.1", "--object-store-memory=200000000"]
    start += [f"--num-cpus={resources.pop('CPU')}", f"--resources={json.dumps(resources)}"]
    subprocess.run([*start, f"--autoscaling-config={config}"], check=True, stdout=sys.stderr)

    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init("127.0.0.1:6379", log_to_driver=False)
    say("empty")
    group = placement_group([bundle] * 2)
    ray.get(group.ready(), timeout=120)

    @ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0))
    def where() -> str:
        return str(ray.get_runtime_context().get_node_id())

    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(2)]
    say("work", ran_on=ray.get([where.options(scheduling_strategy=each).remote() for each in places]))
    remove_placement_group(group)
    until = time.monotonic() + 120
    while sum(node_types().values()) > 1:
        assert time.monotonic() < until, node_types()
        time.sleep(1)
    say("empty")


def node_types() -> Counter[str]:
    """Return the number of live nodes of each type."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status("127.0.0.1:6379")
    return Counter(each.ray_node_type_name for each in [*status.active_nodes, *status.idle_nodes])


def say(step: str, **more: object) -> None:
    print(json.dumps({"step": step, "nodes": node_types(), **more}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
