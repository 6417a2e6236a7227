"""An alias of a registered model that many processes change, one after the other, by MLflow's API alone.

MLflow moves an alias without a condition, but creates a registered model of a given name only once, tags
included. So:

- Changes are numbered. The process that creates the registered model ``<model>.lease.<alias>.<n>`` makes
  change n. It writes its intent, the tag ``<alias>.intent.<n>`` of the model, looks whether its change is
  still open, moves the alias, and closes its change.
- To close change n is to create ``<model>.lease.<alias>.<n>.end`` with the outcome: which version has the
  alias, and which record it gets. The first outcome counts; all others read it. Then the record is written,
  the tag ``<alias>.closed.<n>`` publishes the outcome, change n + 1 can begin, and both registered models are
  deleted. One that is created after its change was published is void, so its process looks again. The highest
  published number never falls, however late a tag is written.
- A process that is dead or suspended is recognised by one's own clock: its change stays open for too long.
  Any process may then close it: as done if the alias has moved, otherwise as not done.
- A suspended process may still move the alias once, late. The next change finds its intent and writes
  ``<alias>.late.<version>``. If the alias names such a version, the last published outcome counts, and the
  next process that changes or settles the alias puts it back. A version without this tag was chosen by hand.

Each login deletes and reads only what it owns, except the model itself: a lease that a dead process of
another login left is void, and may stay. A login that may not read an outcome assumes its own proposal.
A store with read replicas must not delay reads.
"""

import contextlib
import functools
import json
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
_LEASE, _END = ".lease.", ".end"
_DENIED = "PERMISSION_DENIED"

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
class _Outcome:
    """How a change ended."""

    holder: int | None
    """The version that has the alias from now on."""
    version: int | None = None
    """The version that the change was about; None if it was not made."""
    tags: Mapping[str, str] = field(default_factory=dict)
    own: bool = True
    """Whether the process of the change said so itself, and therefore moves nothing late."""


@dataclass(frozen=True)
class State:
    """An alias as one request shows it."""

    named: int | None
    """Version that the alias names in MLflow."""
    outcomes: Mapping[int, Mapping[str, Any]]
    """Number → outcome of the last closed changes."""
    intents: Mapping[int, Mapping[str, Any]]
    late: frozenset[int]
    """Versions that a suspended process may still move the alias to, by their tags and by left intents."""

    @property
    def closed(self) -> int:
        """Number of the last closed change."""
        return max(self.outcomes, default=0)

    @property
    def holder(self) -> int | None:
        """The version that has the alias by right."""
        if self.named not in self.late or not self.outcomes:
            return self.named
        recorded: int | None = self.outcomes[self.closed]["holder"]
        return recorded

    @property
    def is_late(self) -> bool:
        """Whether the alias has moved late, and has to be put back."""
        return self.holder is not None and self.holder != self.named

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left of a process that died or was suspended."""
        return not self.is_late and not any(number <= self.closed for number in self.intents)


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
        found: dict[str, dict[int, Any]] = {"closed": {}, "intent": {}, "late": {}}
        for key, value in model.tags.items():
            kind, number = self._kind(key)
            if kind in found:
                found[kind][number] = json.loads(value)
        named = model.aliases.get(self.name)
        state = State(
            named=None if named is None else int(named),
            outcomes=found["closed"],
            intents=found["intent"],
            late=frozenset(found["late"]),
        )
        return replace(state, late=state.late.union(self._left_moves(state).values()))

    def _left_moves(self, state: State) -> dict[int, int]:
        """Return the intents of closed changes whose process may still move the alias: number → version."""
        return {
            number: intent["moves"][self.name]
            for number, intent in state.intents.items()
            if number <= state.closed
            and self.name in intent["moves"]
            and not state.outcomes.get(number, {}).get("own", False)
        }

    def change(
        self,
        propose: Callable[[int | None], Callable[[int], Change]],
        is_done: Callable[[Mapping[str, str]], bool],
        version: int,
    ) -> None:
        """Change the alias once, as if no other process did meanwhile.

        Args:
            propose: gets the version that has the alias, and returns what makes the change of a given number.
                It is called again whenever another version has the alias by then, and may take long: no
                other process waits for it.
            is_done: whether tags of the version complete the change, made by this or an earlier process.
            version: the version that the change is about.

        Raises:
            MlflowException: the store did not accept something, or the version was deleted.
        """
        while True:
            holder = self.read().holder
            proposal = propose(holder)
            number = self._begin()
            with self._closed_on_error(number):
                state = self._settle(number)
                if state is None:
                    continue
                if state.is_late:
                    self._restore(number, state)
                    continue
                done = is_done(self._tags(version))
                if done or state.holder != holder:  # decide again, while no other process waits for it
                    self._close(number, _Outcome(state.holder))
                else:
                    done = self._make(number, proposal(number), state)
                if done:
                    if version in state.late:
                        self._untag(f"late.{version}")
                    return

    def settle(self) -> State:
        """Complete or undo what dead and suspended processes left, and return the state.

        Raises:
            MlflowException: the store did not accept something; this login may not be allowed to write.
        """
        while not (state := self.read()).is_settled:
            number = self._begin()
            with self._closed_on_error(number):
                after = self._settle(number)
                if after is None:
                    continue
                if after.is_late:
                    self._restore(number, after)
                else:
                    self._close(number, _Outcome(after.holder))
        return state

    def _begin(self) -> int:
        """Wait for the turn of this process; return the number of its change, which may be closed already."""
        seen, since, pause = -1, self.clock(), 0.05
        while True:
            number = self.read().closed + 1
            lease = self._lease(number)
            if self._create(lease):
                return number
            if seen < 0 and self._is_mine(lease):
                self._take_over(number)
                continue
            if number != seen:
                seen, since, pause = number, self.clock(), 0.05
            elif self.clock() - since > self.patience:
                _log.warning("%s does not go on; taking over", lease)
                self._take_over(number)
                continue
            self.sleep(random.uniform(0.5, 1) * pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _settle(self, number: int) -> State | None:
        """Look after the intents of closed changes; return None if this change is closed, too."""
        state = self.read()
        left = self._left_moves(state)
        for earlier in state.intents:
            if earlier <= state.closed:
                if earlier in left:
                    self._tag(f"late.{left[earlier]}", earlier)
                self._untag(f"intent.{earlier}")
        state = self.read() if state.intents else state
        if state.closed < number:
            return state
        self._delete(self._lease(number))
        return None

    def _restore(self, number: int, state: State) -> None:
        """Put the alias back after a late move."""
        if state.holder is not None and self._exists(state.holder):
            self._make(number, Change(state.holder, {self.name: state.holder}, {}), state)
        else:  # what had the alias by right was deleted
            self._close(number, _Outcome(None))

    def _make(self, number: int, change: Change, state: State) -> bool:
        """Make a change; return False if another process closed it meanwhile, so that it may not count."""
        intent = {"version": change.version, "moves": dict(change.moves), "tags": dict(change.tags)}
        self._tag(f"intent.{number}", intent)
        if self.read().closed >= number:
            return False
        for alias, version in change.moves.items():
            self._move(alias, version)
        holder = change.moves.get(self.name, state.holder)
        agreed = self._close(number, _Outcome(holder, change.version, dict(change.tags)))
        if agreed is None or agreed.version is None:
            return False
        self._untag(f"intent.{number}")
        return True

    def _take_over(self, number: int) -> None:
        """Close the change of a process that does not go on."""
        state = self.read()
        if state.closed >= number:
            return
        outcome = _Outcome(state.holder, own=False)
        if intent := state.intents.get(number):
            moves = intent["moves"]
            if moves.get(self.name, state.named) == state.named:
                for alias in moves.keys() - {self.name}:
                    self._move(alias, moves[alias])
                holder = moves.get(self.name, state.holder)
                outcome = _Outcome(holder, int(intent["version"]), intent["tags"], own=False)
        self._close(number, outcome, or_assume=True)

    def _close(self, number: int, outcome: _Outcome, *, or_assume: bool = False) -> _Outcome | None:
        """Agree on the outcome of a change with all other processes, and publish it.

        Returns:
            The outcome that counts; None if it was published before, or if this login may not read it and
            ``or_assume`` is not set.
        """
        agreed = self._agree(number, outcome) or (outcome if or_assume else None)
        if agreed is None:
            return None
        state = self.read()
        if state.closed >= number:  # so what this process created, if it did, is void
            self._delete(self._lease(number))
            self._delete(self._end(number))
            return None
        if agreed.version is not None:
            self._complete(agreed.version, agreed.tags)
        self._tag(f"closed.{number}", {"holder": agreed.holder, "own": agreed.own})
        for earlier in state.outcomes.keys() - state.intents.keys():
            self._untag(f"closed.{earlier}")
        self._delete_closed(number)
        return agreed

    def _agree(self, number: int, outcome: _Outcome) -> _Outcome | None:
        """Return the first outcome that a process proposes; None if this login may not read it."""
        end = self._end(number)
        if self._create(end, outcome=json.dumps(asdict(outcome))):
            return outcome
        try:
            found = self._ask(functools.partial(self.client.get_registered_model, end))
        except MlflowException as error:
            if error.error_code not in (*_GONE, _DENIED):
                raise
            return None
        return _Outcome(**json.loads(found.tags["outcome"]))

    def _complete(self, version: int, tags: Mapping[str, str]) -> None:
        """Set the tags of a version; one that was deleted needs none."""
        for key, value in tags.items():
            with _unless_gone():
                self._ask(
                    functools.partial(self.client.set_model_version_tag, self.model, str(version), key, value)
                )

    @contextlib.contextmanager
    def _closed_on_error(self, number: int) -> Iterator[None]:
        """Close the change of a process that cannot go on, so that no other one has to wait for it."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._take_over(number)
            raise

    def _tags(self, version: int) -> Mapping[str, str]:
        found = self._ask(functools.partial(self.client.get_model_version, self.model, str(version)))
        return dict(found.tags)

    def _exists(self, version: int) -> bool:
        with _unless_gone():
            self._tags(version)
            return True
        return False

    def _create(self, name: str, **tags: str) -> bool:
        """Return whether this process created a registered model."""
        tried = False

        def create() -> bool:
            nonlocal tried
            repeated, tried = tried, True
            try:
                self.client.create_registered_model(name, tags={"owner": self.owner, **tags})
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

    def _delete_closed(self, closed: int) -> None:
        """Delete the leases and outcomes of changes that are closed, as far as this login may."""
        prefix = self._lease("")
        found = self._ask(functools.partial(self.client.search_registered_models, f"name LIKE '{prefix}%'"))
        for name in [model.name for model in found]:
            number = name.removeprefix(prefix).removesuffix(_END)
            if number.isdecimal() and int(number) <= closed:
                self._delete(name)

    def _delete(self, name: str) -> None:
        try:
            with _unless_gone():
                self._ask(functools.partial(self.client.delete_registered_model, name))
        except MlflowException as error:
            if error.error_code != _DENIED:  # of another login; it is void
                raise

    def _lease(self, number: int | str) -> str:
        return f"{self.model}{_LEASE}{self.name}.{number}"

    def _end(self, number: int) -> str:
        return f"{self._lease(number)}{_END}"

    def _move(self, alias: str, version: int) -> None:
        self._ask(functools.partial(self.client.set_registered_model_alias, self.model, alias, str(version)))

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
