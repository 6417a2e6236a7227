"""Prometheus, its rules, Alertmanager and the dashboard: checked by their tools and with a real Ray cluster.

As a program, this module is that cluster: a Ray head with a token, and a driver with the metrics of a sweep.
"""

import ast
import contextlib
import copy
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
import yaml

from tests.infra.required_tools import INFRA, need, need_module
from tests.support.paths import ROOT

pytestmark = pytest.mark.infra

T = TypeVar("T")

MONITORING = INFRA / "monitoring"
RULES = MONITORING / "rules/sweeps.yml"
DASHBOARD = MONITORING / "grafana/dashboards/reid-sweep.json"
SWEEP = "alpha"
TOKEN = "monitoring-" + "0123456789abcdef" * 3
STAND_IN = "ray_node_gpus_utilization"
"""A GPU metric of Ray. The test cluster has no GPU, so its driver reports the metric."""


# Content of the files.


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Return all queries of the dashboard with their legends, for one sweep."""
    targets = [target for panel in panels() for target in panel["targets"]]
    return [(target["expr"].replace("$sweep", SWEEP), target["legendFormat"]) for target in targets]


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """Return the metrics of a query, each with the labels of its selector."""
    import promql_parser

    found: list[tuple[str, set[str]]] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def all_selectors() -> list[tuple[str, set[str]]]:
    expressions = [rule["expr"] for rule in rules()] + [query for query, _ in queries()]
    return [selector for expression in expressions for selector in selectors(expression)]


def sweep_gauges() -> dict[str, tuple[str, ...]]:
    """Return the orchestrator's gauges and their labels, read from its source."""
    gauges: dict[str, tuple[str, ...]] = {}
    for file in sorted((ROOT / "orchestrator").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Gauge":
                name, _, labels = node.args
                # One name ends in the throughput metric of the trainable.
                text = name.value if isinstance(name, ast.Constant) else "sweep_frames_per_second"
                gauges[str(text)] = ast.literal_eval(labels)
    return gauges


def tool(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Checks without servers.


def test_prometheus_files_pass_promtool() -> None:
    tool(need("promtool", "prometheus"), "check", "config", MONITORING / "prometheus.yml")
    assert f"{len(rules())} rules found" in tool(need("promtool", "prometheus"), "check", "rules", RULES)


def test_rules_pass_their_own_tests() -> None:
    assert "SUCCESS" in tool(need("promtool", "prometheus"), "test", "rules", MONITORING / "rules_test.yml")


def test_alerts_have_firing_and_silent_cases() -> None:
    cases = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    fires: set[str] = set()
    quiet: set[str] = set()
    for case in cases:
        for check in case.get("alert_rule_test", []):
            (fires if check.get("exp_alerts") else quiet).add(check["alertname"])
    assert fires == quiet == alerts().keys()


@pytest.mark.parametrize("name", alerts())
def test_alert_has_severity_summary_and_action(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(alert["annotations"]) == {"summary", "action"}
    summary = alert["annotations"]["summary"]
    assert summary.endswith(".") and ". " not in summary, "one sentence"
    assert alert["annotations"]["action"].endswith(".")


@pytest.mark.parametrize("file", ["prometheus.yml", "alertmanager.yml"])
def test_monitoring_secrets_are_read_from_files(file: str) -> None:
    def look(node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            yield from node.items()
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from look(child)

    found = dict(look(yaml.safe_load((MONITORING / file).read_text())))
    files = {key: value for key, value in found.items() if key.endswith("_file")}
    assert files and all(value.startswith("/run/secrets/") for value in files.values())
    assert not found.keys() & {"password", "credentials", "bearer_token", "api_url", "url_secret"}


def test_alertmanager_sends_all_alerts_only_when_enabled(tmp_path: Path) -> None:
    amtool = need("amtool", "prometheus-alertmanager")
    disabled = MONITORING / "alertmanager.yml"
    enabled = tmp_path / "alertmanager.yml"
    enabled.write_text(replaced(disabled.read_text(), {"receiver: nobody": "receiver: chat"}))
    severities = {alert["labels"]["severity"] for alert in alerts().values()}
    for file, receiver in ((disabled, "nobody"), (enabled, "chat")):
        tool(amtool, "check-config", file)
        for severity in severities:
            labels = (f"severity={severity}", f"sweep={SWEEP}")
            receivers = tool(amtool, "config", "routes", "test", f"--config.file={file}", *labels)
            assert receivers.strip() == receiver


def test_alertmanager_groups_by_sweep_routes_by_severity() -> None:
    route = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())["route"]
    assert "sweep" in route["group_by"]
    severities = {alert["labels"]["severity"] for alert in alerts().values()}
    assert {matcher for each in route["routes"] for matcher in each["matchers"]} == {
        f"severity = {severity}" for severity in severities
    }


def test_alertmanager_inhibitions_name_existing_alerts() -> None:
    text = (MONITORING / "alertmanager.yml").read_text()
    named = set(re.findall(r"alertname = (\w+)", text))
    assert named and named <= alerts().keys()


def test_dashboard_is_complete() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "reid-sweep"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    (variable,) = dashboard["templating"]["list"]
    assert variable["name"] == "sweep"
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
    assert label in sweep_gauges()[metric.removeprefix("ray_")]
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    uids = {each["uid"] for each in source["datasources"]}
    assert {variable["datasource"]["uid"], *(panel["datasource"]["uid"] for panel in panels())} == uids
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert all(legends) and len(legends) == len(set(legends)), panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]


def test_dashboard_panels_do_not_overlap() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return {(at["x"] + column, at["y"] + row) for column in range(at["w"]) for row in range(at["h"])}

    for one, other in combinations(json.loads(DASHBOARD.read_text())["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


def test_dashboard_queries_use_the_selected_sweep() -> None:
    need_module("promql_parser", "promql-parser")
    for query, legend in queries():
        for name, labels in selectors(query):
            if "sweep" in name:
                assert "sweep" in labels, query
        assert ("{{sweep}}" in legend) == ("ray_sweep" in query or "sweep_trial" in query), query


def test_expressions_parse() -> None:
    need_module("promql_parser", "promql-parser")
    assert len(all_selectors()) > len(rules()) + len(queries())


def test_expressions_use_metrics_of_the_orchestrator() -> None:
    need_module("promql_parser", "promql-parser")
    gauges = sweep_gauges()
    for name, labels in all_selectors():
        if name.startswith("ray_sweep_"):
            assert labels <= set(gauges[name.removeprefix("ray_")]), name


def test_expressions_use_existing_recording_rules() -> None:
    need_module("promql_parser", "promql-parser")
    used = {name for name, _ in all_selectors() if ":" in name}
    assert used == {rule["record"] for rule in rules() if "record" in rule}


def test_compose_mounts_secrets_and_dashboards() -> None:
    services = yaml.safe_load((INFRA / "compose/compose.yaml").read_text())["services"]
    secrets = set(re.findall(r"/run/secrets/([\w-]+)", (MONITORING / "prometheus.yml").read_text()))
    assert secrets == set(services["prometheus"]["secrets"])
    folders = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/dashboards.yaml").read_text())
    (provider,) = folders["providers"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounted["../monitoring/grafana/dashboards"] == provider["options"]["path"]
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


# Checks with servers.


def replaced(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def until(look: Callable[[], T], seconds: float, what: str, log: Path | None = None) -> T:
    """Wait until ``look`` returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if found := look():
                return found
        time.sleep(0.5)
    tail = log.read_text(errors="replace")[-3000:] if log else ""
    raise AssertionError(f"{what}: not within {seconds:g} s\n{tail}")


@contextlib.contextmanager
def running(command: Sequence[str | Path], log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process in a new session, and end the whole session afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stderr=output, text=True, start_new_session=True, **options
        )
    try:
        yield process
    finally:
        if process.stdin:
            process.stdin.close()  # ends the cluster
        else:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        _end_session(process.pid)
        process.wait()


def _end_session(session: int) -> None:
    import psutil

    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(each.pid) == session:
                each.kill()


@dataclass(frozen=True)
class Prometheus:
    """Client of a running Prometheus."""

    address: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.ask("query", query=expression)["result"])

    def series(self, metric: str) -> list[dict[str, str]]:
        return list(self.ask("series", **{"match[]": metric}))

    def pools(self) -> dict[str, list[str]]:
        """Return the health of the targets of each job in the configuration."""
        pools: dict[str, list[str]] = {}
        for target in self.ask("targets", state="active")["activeTargets"]:
            pools.setdefault(target["scrapePool"], []).append(target["health"])
        return pools

    def ask(self, what: str, **parameters: str) -> Any:
        answer = requests.get(f"{self.address}/api/v1/{what}", params=parameters, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]


@contextlib.contextmanager
def prometheus(folder: Path, configuration: dict[str, Any], port: int) -> Iterator[Prometheus]:
    """Run a Prometheus with the rules of this repository and a configuration."""
    folder.mkdir()
    shutil.copytree(RULES.parent, folder / "rules")
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    log = folder / "log"
    command = [need("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with running([*command, f"--web.listen-address=127.0.0.1:{port}"], log, stdout=subprocess.DEVNULL):
        address = f"http://127.0.0.1:{port}"
        until(lambda: requests.get(f"{address}/-/ready", timeout=5).ok, 60, "Prometheus", log)
        yield Prometheus(address)


class Webhook:
    """The incoming webhook of a chat: keeps its messages."""

    def __init__(self) -> None:
        received: list[dict[str, Any]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *arguments: Any) -> None:
                pass

        self.received = received
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/secret"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()


@dataclass(frozen=True)
class Monitored:
    """A Ray cluster with a sweep, and its monitoring."""

    head: str
    prometheus: Prometheus
    alertmanager: str
    webhook: Webhook


def sweep_values() -> list[tuple[str, dict[str, str], float]]:
    """Return a value for every gauge of the orchestrator, and for the GPU metric of Ray."""
    usual = {
        "sweep": SWEEP,
        "trial": "trial-1",
        "GpuIndex": "0",
        "reason": "its workers",
        "metric": "val/mAP",
    }
    several = {
        "state": {"running": 1.0, "complete": 5.0, "pruned": 2.0, "failed": 0.0},
        "budget": {"trials": 0.95, "wall": 0.2},
        "outcome": {"finished": 0.0, "failed": 1.0, "stopped": 0.0},
    }
    values: list[tuple[str, dict[str, str], float]] = []
    for name, keys in sweep_gauges().items():
        labels = {key: usual[key] for key in keys if key in usual}
        for key in several.keys() & set(keys):
            values += [(name, {**labels, key: label}, value) for label, value in several[key].items()]
        if not several.keys() & set(keys):
            values.append((name, labels, time.time() if name.endswith("_seconds") else 1.0))
    values.append((STAND_IN.removeprefix("ray_"), {"GpuIndex": "0"}, 40.0))
    return values


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    need("prometheus")
    alertmanager = need("prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("monitoring")
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    webhook = Webhook()
    for name, secret in (
        ("ray-auth-token", TOKEN),
        ("alert-webhook", webhook.url),
        ("mlflow-prometheus", "none"),
    ):
        (secrets / name).write_text(secret)
    dashboard, autoscaler, head, prometheus_port, alertmanager_port = free_ports(5)
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because sockets have short paths
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(secrets / "ray-auth-token"),
        # Their defaults are fixed ports, which another cluster on this machine may use.
        "AUTOSCALER_METRIC_PORT": str(autoscaler),
        "DASHBOARD_METRIC_PORT": str(dashboard),
    }
    cluster = [sys.executable, "-m", __name__, str(head), str(ray_folder), json.dumps(sweep_values())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "env": environment, "cwd": folder}
    with contextlib.ExitStack() as stack:
        stack.callback(webhook.close)
        stack.callback(shutil.rmtree, ray_folder, ignore_errors=True)
        stack.enter_context(running(cluster, folder / "ray.log", **pipes))
        file = folder / "alertmanager.yml"
        told = {
            "receiver: nobody": "receiver: chat",
            "/run/secrets": str(secrets),
            "group_wait: 30s": "group_wait: 1s",
        }
        file.write_text(replaced((MONITORING / "alertmanager.yml").read_text(), told))
        command = [alertmanager, f"--config.file={file}", f"--storage.path={folder / 'alerts'}"]
        command += ["--cluster.listen-address=", f"--web.listen-address=127.0.0.1:{alertmanager_port}"]
        stack.enter_context(running(command, folder / "alertmanager.log", stdout=subprocess.DEVNULL))
        text = (MONITORING / "prometheus.yml").read_text()
        hosts = {
            "ray-head:8265": f"127.0.0.1:{head}",
            "alertmanager:9093": f"127.0.0.1:{alertmanager_port}",
            "localhost:9090": f"127.0.0.1:{prometheus_port}",
            "/run/secrets": str(secrets),
            "15s": "5s",
        }
        configuration = yaml.safe_load(replaced(text, hosts))
        without = copy.deepcopy(configuration["scrape_configs"][0])
        without["job_name"] = "without-token"
        del without["http_sd_configs"][0]["authorization"]
        configuration["scrape_configs"].append(without)
        server = prometheus(folder / "prometheus", configuration, prometheus_port)
        watched = Monitored(
            f"http://127.0.0.1:{head}",
            stack.enter_context(server),
            f"http://127.0.0.1:{alertmanager_port}",
            webhook,
        )
        until(
            lambda: watched.prometheus.query(f'ray_sweep_trials{{sweep="{SWEEP}"}}'),
            240,
            "the sweep",
            folder / "ray.log",
        )
        yield watched


@pytest.mark.infra_slow
@pytest.mark.timeout(600)
def test_ray_targets_are_listed_only_with_the_token(monitored: Monitored) -> None:
    expected = {"ray": ["up"] * 3, "prometheus": ["up"], "alertmanager": ["up"]}
    until(
        lambda: expected.items() <= monitored.prometheus.pools().items(),
        120,
        f"targets {monitored.prometheus.pools()}",
    )
    assert "without-token" not in monitored.prometheus.pools()
    assert monitored.prometheus.query("prometheus_sd_http_failures_total > 0")
    listed = f"{monitored.head}/api/prometheus/sd"
    assert requests.get(listed, timeout=10).status_code == 401
    (group,) = requests.get(listed, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10).json()
    assert group["labels"] == {"job": "ray"}
    for target in group["targets"]:
        # Prometheus 3 requires the content type of metrics.
        shown = requests.get(f"http://{target}/metrics", timeout=10).headers["Content-Type"]
        assert shown.startswith(("text/plain; version=", "application/openmetrics-text; version=")), target


@pytest.mark.infra_slow
@pytest.mark.timeout(600)
def test_expressions_select_metrics_of_a_running_cluster(monitored: Monitored) -> None:
    need_module("promql_parser", "promql-parser")
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    stood_in_for = METRICS_GAUGES[STAND_IN.removeprefix("ray_")].view
    assert {"ip", "GpuIndex"} <= {str(label) for label in stood_in_for.columns}
    for name, chosen in all_selectors():
        if name.startswith("mlflow_"):
            continue  # see test_prometheus_logs_in_to_mlflow
        series = until(lambda name=name: monitored.prometheus.series(name), 60, f"series of {name}")
        assert chosen <= set().union(*series), name


@pytest.mark.infra_slow
@pytest.mark.timeout(600)
def test_dashboard_panels_show_data_of_a_running_cluster(monitored: Monitored) -> None:
    until(lambda: monitored.prometheus.query("ALERTS"), 60, "an alert")
    for query, legend in queries():
        found = until(lambda query=query: monitored.prometheus.query(query), 60, query)
        for label in re.findall(r"{{(\w+)}}", legend):
            assert all(each["metric"].get(label) for each in found), (query, label)


@pytest.mark.infra_slow
@pytest.mark.timeout(600)
def test_spilled_objects_fire_the_alert(monitored: Monitored) -> None:
    spills = alerts()["ObjectStoreSpills"]["expr"]
    found = until(lambda: monitored.prometheus.query(spills), 120, "spilled objects")
    assert all(float(each["value"][1]) > 0 for each in found), found


@pytest.mark.infra_slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "labels", "summary"),
    [
        (
            "BudgetNearlySpent",
            {"severity": "info", "budget": "trials"},
            f"Sweep {SWEEP} has used 95% of its trials budget.",
        ),
        ("SweepFailed", {"severity": "critical"}, f"Sweep {SWEEP} ended before it was finished."),
    ],
)
def test_alert_reaches_alertmanager_and_the_chat(
    name: str, labels: dict[str, str], summary: str, monitored: Monitored
) -> None:
    def fired() -> list[dict[str, Any]]:
        found = requests.get(f"{monitored.alertmanager}/api/v2/alerts", timeout=10).json()
        return [each for each in found if each["labels"]["alertname"] == name]

    (alert,) = until(fired, 120, "the alert at Alertmanager")
    assert alert["labels"] == {"alertname": name, "sweep": SWEEP, **labels}

    def told() -> list[str]:
        texts = [json.dumps(each, ensure_ascii=False) for each in monitored.webhook.received]
        return [text for text in texts if name in text]

    (message, *_) = until(told, 120, "the message in the chat")
    assert summary in message
    assert f"firing {labels['severity']}: {name} {SWEEP}" in message


@pytest.mark.infra_slow
@pytest.mark.timeout(900)
def test_prometheus_logs_in_to_mlflow(tmp_path: Path) -> None:
    need_module("flask_wtf", "mlflow[auth]")
    need_module("prometheus_flask_exporter", "prometheus-flask-exporter")
    need_module("promql_parser", "promql-parser")
    mlflow, port = free_ports(2)
    login = tmp_path / "auth.ini"
    login.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{tmp_path / 'auth.db'}\n"
        "admin_username = prometheus\nadmin_password = a-long-password-of-a-test\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    (tmp_path / "mlflow-prometheus").write_text("a-long-password-of-a-test\n")
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--port", str(mlflow)]
    command += ["--expose-prometheus", str(tmp_path / "metrics")]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(login),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs",
    }
    text = (MONITORING / "prometheus.yml").read_text()
    hosts = {"mlflow:5000": f"127.0.0.1:{mlflow}", "/run/secrets": str(tmp_path)}
    configuration = yaml.safe_load(replaced(text, hosts))
    (job,) = [each for each in configuration["scrape_configs"] if each["job_name"] == "mlflow"]
    without = {key: value for key, value in job.items() if key != "basic_auth"}
    configuration["scrape_configs"] = [job, {**without, "job_name": "without-login"}]
    log = tmp_path / "mlflow.log"
    with (
        running(command, log, stdout=subprocess.DEVNULL, env=environment, cwd=tmp_path),
        prometheus(tmp_path / "prometheus", configuration, port) as watched,
    ):
        until(lambda: requests.get(f"http://127.0.0.1:{mlflow}/health", timeout=5).ok, 600, "MLflow", log)
        # A new server answers slowly at first.
        until(lambda: watched.pools() == {"mlflow": ["up"], "without-login": ["down"]}, 240, "the targets")
        for name, chosen in all_selectors():
            if name.startswith("mlflow_"):
                series = until(lambda name=name: watched.series(name), 60, name)
                assert {*chosen, "instance"} <= set().union(*series), name


def serve(dashboard: int, folder: str, values: list[tuple[str, dict[str, str], float]]) -> None:
    """Run the cluster until the input ends."""
    import numpy
    import ray
    from ray.util.metrics import Gauge

    context = ray.init(
        address="local",
        include_dashboard=True,
        dashboard_port=dashboard,
        num_cpus=1,
        num_gpus=1,
        object_store_memory=80 << 20,
        _temp_dir=folder,
    )
    spilled = [ray.put(numpy.zeros(20 << 20, numpy.uint8)) for _ in range(8)]
    gauges = []
    for name, labels, value in values:
        if "GpuIndex" in labels:
            labels["ip"] = context.address_info["node_ip_address"]
        gauges.append((Gauge(name, name, tuple(labels)), labels, value))
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.wait(3):
        for gauge, labels, value in gauges:
            gauge.set(value, labels)
    del spilled
    ray.shutdown()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
