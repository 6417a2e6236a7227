"""A stand-in for the registry of MLflow whose requests happen one by one, in an order that a test chooses."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    PERMISSION_DENIED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
)


class Killed(BaseException):
    """The process of a promoter was killed."""


class ModelStore:
    """Registered models, versions, tags and aliases, with the errors of MLflow."""

    def __init__(self) -> None:
        self.models: dict[str, SimpleNamespace] = {}
        self.versions: dict[tuple[str, str], dict[str, str]] = {}
        self.moves: list[tuple[str, str]] = []

    def create_registered_model(self, name: str, tags: dict[str, Any] | None = None) -> None:
        if name in self.models:
            raise MlflowException(f"{name} exists", RESOURCE_ALREADY_EXISTS)
        self.models[name] = SimpleNamespace(name=name, tags=dict(tags or {}), aliases={})

    def get_registered_model(self, name: str) -> SimpleNamespace:
        model = self._model(name)
        return SimpleNamespace(name=name, tags=dict(model.tags), aliases=dict(model.aliases))

    def delete_registered_model(self, name: str) -> None:
        self._model(name)
        del self.models[name]

    def search_registered_models(self, filter_string: str | None = None) -> list[SimpleNamespace]:
        prefix = str(filter_string).partition("'")[2].removesuffix("%'")
        return [model for name, model in self.models.items() if name.startswith(prefix)]

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self._model(name).tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self._model(name).tags.pop(key, None)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.get_model_version(name, version)
        self._model(name).aliases[alias] = version
        self.moves.append((alias, version))

    def get_model_version(self, name: str, version: str) -> SimpleNamespace:
        if (name, version) not in self.versions:
            raise MlflowException(f"no version {version}", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(name=name, version=version, tags=dict(self.versions[name, version]))

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.get_model_version(name, version)
        self.versions[name, version][key] = value

    def _model(self, name: str) -> SimpleNamespace:
        if name not in self.models:
            raise MlflowException(f"no model {name}", RESOURCE_DOES_NOT_EXIST)
        return self.models[name]


@dataclass
class Process:
    """A promoter in a thread of its own, which waits before each request until a test lets it go on."""

    store: ModelStore
    run: Callable[["Process"], None]
    login: str = ""
    """Others may neither read nor delete the leases that it creates."""

    time: float = 0.0
    error: BaseException | None = None
    ended: bool = False
    _turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _killed: bool = False
    _thread: threading.Thread | None = None

    def step(self) -> None:
        """Send one request, or sleep once; raises RuntimeError when it has ended."""
        if self.ended:
            raise RuntimeError("a process that has ended was asked to go on") from self.error
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, daemon=True)
            self._thread.start()
        else:
            self._turn.release()
        self._back.acquire()

    def kill(self) -> None:
        """End it before its next request."""
        self._killed = True
        if self._thread is None:
            self.ended = True
        while not self.ended:
            self.step()

    def clock(self) -> float:
        """Return its own time, which passes while it sleeps."""
        return self.time

    def sleep(self, _: float) -> None:
        """Sleep for a second."""
        self._wait()
        self.time += 1

    def __getattr__(self, name: str) -> Callable[..., Any]:
        request = getattr(self.store, name)

        def send(*arguments: Any, **options: Any) -> Any:
            self._wait()
            if name in ("get_registered_model", "delete_registered_model"):
                self._check_owner(arguments[0])
            if name == "create_registered_model":
                options["tags"]["login"] = self.login
            return request(*arguments, **options)

        return send

    def _check_owner(self, model: str) -> None:
        found = self.store.models.get(model)
        if found is not None and found.tags.get("login", self.login) != self.login:
            raise MlflowException("Permission denied", PERMISSION_DENIED)

    def _wait(self) -> None:
        if self._killed:  # also in what it would do at its end
            raise Killed
        self._back.release()
        self._turn.acquire()
        if self._killed:
            raise Killed

    def _live(self) -> None:
        try:
            self.run(self)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self._back.release()
