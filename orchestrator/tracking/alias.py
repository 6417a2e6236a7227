"""An alias of a registered model that many processes change, one after the other, by MLflow's API alone.

MLflow moves an alias without a condition, but creates a registered model of a given name only once. So:

- Changes are numbered. Who creates the registered model ``<model>.lease.<alias>.<n>`` makes change n. The tag
  ``<alias>.closed.<n>`` of the model closes it; change n + 1 can then begin, and only then is the lease of
  change n deleted. A lease that is created after its change was closed is void, so its holder looks again
  before it does anything. The highest closed number never falls, whoever writes late.
- A holder that is dead or suspended is recognised by one's own clock: its change stays open for too long. To
  take over is to close its change, which anyone may do, and to begin the next one, which one process can.
- Before a holder moves an alias, it writes its intent, ``<alias>.intent.<n>``, and looks whether its change
  is still open; after the move it looks again. The next holder settles intents that remain: if the alias has
  moved, the change is completed in the name of its holder, otherwise it is void, and the tag
  ``<alias>.void.<version>`` says so.
- A suspended holder may still move the alias once, late. It then sees that its change was closed, and begins
  again. If it dies before, the alias names a void version. Everyone who reads the alias through this module
  then gets the version that ``<alias>.closed.<n>`` names, and puts the alias back.

Nobody deletes or reads what another login owns, except the model itself: a lease that a dead process of
another login left is void, and may stay. A store with read replicas must not delay reads.
"""

import contextlib
import functools
import json
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

PATIENCE_SECONDS = 60.0
"""Time without progress after which the holder of a change counts as dead."""

_LONGEST_PAUSE = 2.0
_ATTEMPTS = 6
_GONE = frozenset({"RESOURCE_DOES_NOT_EXIST"})
_TAKEN = frozenset({"RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"})
"""Codes of a creation that came too late. MLflow gives the second one if the other was deleted meanwhile."""

_COLLISIONS = (
    "database is locked",
    "UNIQUE constraint failed",
    "duplicate key value",
    "deadlock detected",
    "were matched",
)
"""Parts of the messages of databases about requests that met; they may be sent again."""
_LEASE = ".lease."

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Client(Protocol):
    """The part of `mlflow.MlflowClient` that is used."""

    def get_registered_model(self, name: str) -> Any:
        """Return a model with tags and aliases."""

    def create_registered_model(self, name: str, tags: dict[str, Any] | None = None) -> Any:
        """Create a model; RESOURCE_ALREADY_EXISTS if it is there."""

    def delete_registered_model(self, name: str) -> None:
        """Delete a model."""

    def search_registered_models(self, filter_string: str | None = None) -> Any:
        """Return the models that match."""

    def set_registered_model_tag(self, name: str, key: str, value: Any) -> None:
        """Set a tag of a model."""

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Delete a tag of a model."""

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Move an alias."""

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        """Return a version with its tags."""

    def set_model_version_tag(self, name: str, version: str, key: str, value: Any) -> None:
        """Set a tag of a version."""


@dataclass(frozen=True)
class Change:
    """A change of an alias, or the decision not to make it; it is recorded on its version either way."""

    version: int
    moves: Mapping[str, int]
    """Alias → version; the alias of the record itself among them if it moves."""
    tags: Mapping[str, str]
    """Tags of the version that complete the change."""


@dataclass(frozen=True)
class State:
    """An alias as one request shows it."""

    closed: int
    """Number of the last closed change."""
    named: int | None
    """Version that the alias names in MLflow."""
    recorded: int | None
    """Version that had the alias when the last change with a known outcome was closed."""
    outcomes: Mapping[int, int | None]
    intents: Mapping[int, Mapping[str, Any]]
    void: frozenset[int]
    """Versions whose move was not completed."""

    @property
    def holder(self) -> int | None:
        """The version that has the alias by right: a late move of a void version does not count."""
        late = self.named in self.void and self.recorded is not None
        return self.recorded if late else self.named

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left of a process that died or was suspended."""
        return self.holder == self.named and not any(number <= self.closed for number in self.intents)


def is_lease(name: str) -> bool:
    """Return whether a registered model is a lease."""
    return _LEASE in name


def record_tag(alias: str, number: int) -> str:
    """Return the tag of a version with the record of a change of an alias."""
    return f"{alias}.change.{number}"


@dataclass
class Alias:
    """An alias of a registered model."""

    client: Client
    model: str
    name: str
    patience: float = PATIENCE_SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Who changes the alias. A lease of an earlier process of the same owner is taken over at once."""

    def read(self) -> State:
        """Return the state of the alias; raises MlflowException."""
        model = self._ask(functools.partial(self.client.get_registered_model, self.model))
        outcomes: dict[int, int | None] = {}
        intents: dict[int, Mapping[str, Any]] = {}
        void: set[int] = set()
        for key, value in model.tags.items():
            kind, number = self._kind(key)
            if kind == "closed":
                outcomes[number] = json.loads(value).get("holder")
            elif kind == "intent":
                intents[number] = json.loads(value)
            elif kind == "void":
                void.add(number)
        known = [number for number, holder in outcomes.items() if holder is not None]
        named = model.aliases.get(self.name)
        return State(
            closed=max(outcomes, default=0),
            named=None if named is None else int(named),
            recorded=outcomes[max(known)] if known else None,
            outcomes=outcomes,
            intents=intents,
            void=frozenset(void),
        )

    def change(
        self,
        propose: Callable[[int | None], Callable[[int], Change]],
        is_done: Callable[[Mapping[str, str]], bool],
        version: int,
    ) -> None:
        """Change the alias once, as if nobody else did meanwhile.

        Args:
            propose: gets the version that has the alias, and returns what makes the change of a given number.
                It is called again whenever another version has the alias by then, and may take long: nobody
                waits for it.
            is_done: whether tags of the version complete the change, made by this or an earlier process.
            version: the version that the change is about.

        Raises:
            MlflowException: the store did not accept something, or the version was deleted.
        """
        while True:
            holder = self.read().holder
            proposal = propose(holder)
            number = self._begin()
            with self._abandoned_on_error(number):
                state = self._settle(number)
                if state is None or state.holder != state.named:
                    self._restore(number, state)
                elif is_done(self._tags(version)):
                    self._close(number, state.named, state)
                    return
                elif state.named != holder:  # decide again, without anyone waiting for it
                    self._close(number, state.named, state)
                elif self._apply(number, proposal(number)):
                    return

    def settle(self) -> State:
        """Complete or undo what dead and suspended processes left, and return the state.

        Raises:
            MlflowException: the store did not accept something; this login may not be allowed to write.
        """
        while not (state := self.read()).is_settled:
            number = self._begin()
            with self._abandoned_on_error(number):
                after = self._settle(number)
                if after is None or after.holder != after.named:
                    self._restore(number, after)
                else:
                    self._close(number, after.named, after)
        return state

    def _begin(self) -> int:
        """Wait for the turn of this process; return the number of its change, which may be closed already."""
        seen, since, pause = -1, self.clock(), 0.05
        while True:
            number = self.read().closed + 1
            if self._create_lease(number):
                return number
            if seen < 0 and self._is_mine(self._lease_name(number)):
                self._tag(f"closed.{number}", {"taken over": True})
                continue
            if number != seen:
                seen, since, pause = number, self.clock(), 0.05
            elif self.clock() - since > self.patience:
                _log.warning("%s does not go on; taking over", self._lease_name(number))
                self._tag(f"closed.{number}", {"taken over": True})
                continue
            self.sleep(random.uniform(0.5, 1) * pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _settle(self, number: int) -> State | None:
        """Complete or void the intents of changes that are closed; None if this change is closed, too."""
        state = self.read()
        for earlier, intent in state.intents.items():
            if earlier >= number:
                continue
            version, moves = int(intent["version"]), intent["moves"]
            moved = self.name not in moves or state.named == moves[self.name]
            if moved or state.outcomes.get(earlier) == moves[self.name]:
                self._complete(version, intent["tags"])
            else:
                self._tag(f"void.{moves[self.name]}", earlier)
            self._untag(f"intent.{earlier}")
        state = self.read() if state.intents else state
        return state if state.closed < number else None

    def _restore(self, number: int, state: State | None) -> None:
        """Put the alias back after a late move, or give up a change that is closed."""
        if state is None:
            self._delete_lease(number)
        elif state.recorded is not None and self._exists(state.recorded):
            self._apply(number, Change(state.recorded, {self.name: state.recorded}, {}))
        else:  # what had the alias by right was deleted
            self._close(number, state.named, state)

    def _apply(self, number: int, change: Change) -> bool:
        """Make a change; return False if somebody closed it meanwhile, so that it may be void."""
        intent = {"version": change.version, "moves": dict(change.moves), "tags": dict(change.tags)}
        self._tag(f"intent.{number}", intent)
        if self.read().closed >= number:
            return False
        for alias, version in change.moves.items():
            self._ask(
                functools.partial(self.client.set_registered_model_alias, self.model, alias, str(version))
            )
        state = self.read()
        if state.closed >= number:
            return False
        self._complete(change.version, change.tags)
        self._close(number, change.moves.get(self.name, state.named), state)
        self._untag(f"intent.{number}")
        return True

    def _complete(self, version: int, tags: Mapping[str, str]) -> None:
        """Set the tags of a version; one that was deleted needs none."""
        for key, value in tags.items():
            with _unless_gone():
                self._ask(
                    functools.partial(self.client.set_model_version_tag, self.model, str(version), key, value)
                )

    def _close(self, number: int, holder: int | None, state: State) -> None:
        """Record the outcome of a change, and remove what is not needed any more.

        ``state`` was read while the change was open, after its moves. If it was closed since, its outcome is
        the same: whoever closed it has found the moves.
        """
        self._tag(f"closed.{number}", {"holder": holder})
        for earlier in state.outcomes:
            if holder is not None:
                self._untag(f"closed.{earlier}")
        if holder in state.void:
            self._untag(f"void.{holder}")
        self._delete_leases(number)

    @contextlib.contextmanager
    def _abandoned_on_error(self, number: int) -> Iterator[None]:
        """Close the change of a process that cannot go on, so that nobody has to wait for it."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._tag(f"closed.{number}", {"abandoned": True})
                self._delete_lease(number)
            raise

    def _tags(self, version: int) -> Mapping[str, str]:
        found = self._ask(functools.partial(self.client.get_model_version, self.model, str(version)))
        return dict(found.tags)

    def _exists(self, version: int) -> bool:
        with _unless_gone():
            self._tags(version)
            return True
        return False

    def _create_lease(self, number: int) -> bool:
        """Return whether this process created the lease of a change."""
        name, tried = self._lease_name(number), False

        def create() -> bool:
            nonlocal tried
            repeated, tried = tried, True
            try:
                self.client.create_registered_model(name, tags={"owner": self.owner})
            except MlflowException as error:
                if error.error_code not in _TAKEN:
                    raise
                return repeated and self._is_mine(name)
            return True

        return self._ask(create)

    def _is_mine(self, name: str) -> bool:
        """Return whether a lease is of this owner: an earlier process, or a request that seemed lost."""
        with contextlib.suppress(MlflowException):  # of another login, or deleted
            return bool(self.client.get_registered_model(name).tags.get("owner") == self.owner)
        return False

    def _delete_leases(self, closed: int) -> None:
        """Delete the leases of changes that are closed, as far as this login may."""
        prefix = f"{self.model}{_LEASE}{self.name}."
        found = self._ask(functools.partial(self.client.search_registered_models, f"name LIKE '{prefix}%'"))
        for name in [model.name for model in found]:
            number = name.removeprefix(prefix)
            if number.isdecimal() and int(number) <= closed:
                self._delete_lease(int(number))

    def _delete_lease(self, number: int) -> None:
        name = self._lease_name(number)
        try:
            with _unless_gone():
                self._ask(functools.partial(self.client.delete_registered_model, name))
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":  # of another login; it is void
                raise

    def _lease_name(self, number: int) -> str:
        return f"{self.model}{_LEASE}{self.name}.{number}"

    def _tag(self, key: str, value: Any) -> None:
        text = json.dumps(value, separators=(",", ":"))
        self._ask(
            functools.partial(self.client.set_registered_model_tag, self.model, f"{self.name}.{key}", text)
        )

    def _untag(self, key: str) -> None:
        with _unless_gone():
            self._ask(
                functools.partial(self.client.delete_registered_model_tag, self.model, f"{self.name}.{key}")
            )

    def _kind(self, key: str) -> tuple[str, int]:
        """Return kind and number of a tag of the model; an empty kind for tags of other kinds."""
        alias, _, rest = key.rpartition(".")[0].rpartition(".")
        number = key.rpartition(".")[2]
        return (rest, int(number)) if alias == self.name and number.isdecimal() else ("", 0)

    def _ask(self, request: Callable[[], _Result]) -> _Result:
        """Send a request, again if the store could not answer; all requests may be repeated."""
        retrying = Retrying(
            retry=retry_if_exception(_is_passing),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(0.1, max=3),
            sleep=self.sleep,
            reraise=True,
        )
        return retrying(request)


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """Ignore that something was deleted before."""
    try:
        yield
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise


def _is_passing(error: BaseException) -> bool:
    """Return whether a store may answer a little later: it is busy, or its SQLite file is locked."""
    if not isinstance(error, MlflowException):
        return False
    busy = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
    return error.error_code in busy or any(text in str(error) for text in _COLLISIONS)
