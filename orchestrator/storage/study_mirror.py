"""The study of a job for its driver: in memory for reading, and written through to the database.

Optuna's cache asks the database for unfinished trials at each read, which costs more than all else that a
driver does for a trial. A driver holds the lease of its job, so no other driver writes to the study. What
other programs write, such as the web pages of optuna-dashboard, is read when it is in the way.
"""

import copy
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from orchestrator.storage.base import StudyStorage
from orchestrator.storage.study_tables import read_number, read_times, read_trials


class StudyMirror(StudyStorage):
    """A study in a database, for the driver that holds the lease of its job.

    An error while it writes leaves memory and database different; the driver ends, and the next one reads the
    database.
    """

    def __init__(self, database: RDBStorage) -> None:
        self._database = database
        # What a session commits inside of a transaction stays in it.
        database.scoped_session.session_factory.configure(join_transaction_mode="rollback_only")
        self._connection: Connection | None = None
        self._trials: dict[int, list[FrozenTrial]] = {}
        """Trials of each study that was read, by number."""

        self._locations: dict[int, tuple[int, int]] = {}
        """Study and number of each trial, by its id."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write everything at once when the block ends; blocks within it have no effect."""
        if self._connection is not None:
            yield
            return
        session = self._database.scoped_session()
        with self._database.engine.begin() as self._connection:
            session.bind = self._connection
            try:
                yield
            finally:
                session.bind = self._database.engine
                self._connection = None

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study in the database."""
        return self._database.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Delete a study in the database."""
        self._database.delete_study(study_id)
        self._trials.pop(study_id, None)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute in the database."""
        self._database.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute in the database."""
        self._database.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Ask the database."""
        return self._database.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Ask the database."""
        return self._database.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Ask the database."""
        return self._database.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Ask the database."""
        return self._database.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Ask the database."""
        return self._database.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Ask the database."""
        return self._database.get_all_studies()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial in the database and in memory."""
        trials = self._read(study_id)
        with self.transaction():
            trial_id = self._database.create_new_trial(study_id, template_trial)
            assert self._connection is not None
            number = read_number(self._connection, trial_id)
            if number != len(trials):  # others have added trials
                self._trials[study_id] = trials = read_trials(self._connection, study_id)[:number]
                self._locations |= _locations(study_id, trials)
            if template_trial is not None:
                trial = self._database.get_trial(trial_id)
            else:
                start, _ = read_times(self._connection, trial_id)
                trial = FrozenTrial(
                    trial_id=trial_id,
                    number=number,
                    state=TrialState.RUNNING,
                    value=None,
                    params={},
                    distributions={},
                    user_attrs={},
                    system_attrs={},
                    intermediate_values={},
                    datetime_start=start,
                    datetime_complete=None,
                )
        trials.append(trial)
        self._locations[trial_id] = study_id, trial.number
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter in the database and in memory."""
        trial = self.get_trial(trial_id)
        self._database.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        value = distribution.to_external_repr(param_value_internal)
        self._update(
            trial_id,
            params={**trial.params, param_name: value},
            distributions={**trial.distributions, param_name: distribution},
        )

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of a trial; raises KeyError."""
        trials = self._read(study_id)
        if trial_number >= len(trials):
            raise KeyError(f"study {study_id} has no trial {trial_number}")
        return trials[trial_number]._trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set state and values in the database and in memory."""
        with self.transaction():
            try:
                is_set = self._database.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                self.read_anew(trial_id)
                raise
            if not is_set:
                self.read_anew(trial_id)
                return False
            assert self._connection is not None
            start, end = read_times(self._connection, trial_id)
        changes: dict[str, Any] = {"state": state, "datetime_start": start, "datetime_complete": end}
        self._update(trial_id, **changes, **({} if values is None else {"values": list(values)}))
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set an intermediate value in the database and in memory."""
        self._database.set_trial_intermediate_value(trial_id, step, intermediate_value)
        steps = self.get_trial(trial_id).intermediate_values
        self._update(trial_id, intermediate_values={**steps, step: intermediate_value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute in the database and in memory."""
        self._database.set_trial_user_attr(trial_id, key, value)
        self._update(trial_id, user_attrs={**self.get_trial(trial_id).user_attrs, key: value})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute in the database and in memory."""
        self._database.set_trial_system_attr(trial_id, key, value)
        self._update(trial_id, system_attrs={**self.get_trial(trial_id).system_attrs, key: value})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial of a study that was read; raises KeyError."""
        study_id, number = self._locations[trial_id]
        return self._trials[study_id][number]

    def read_anew(self, trial_id: int) -> bool:
        """Read a trial from the database into memory."""
        study_id, number = self._locations[trial_id]
        self._trials[study_id][number] = self._database.get_trial(trial_id)
        return True

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study, by number."""
        trials = self._read(study_id)
        chosen = list(trials) if states is None else [trial for trial in trials if trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _read(self, study_id: int) -> list[FrozenTrial]:
        """Return the list of the trials of a study in memory, read from the database if it is not there."""
        if study_id not in self._trials:
            with self._database.engine.connect() as connection:
                self._trials[study_id] = trials = read_trials(connection, study_id)
            self._locations |= _locations(study_id, trials)
        return self._trials[study_id]

    def _update(self, trial_id: int, **changes: Any) -> None:
        """Replace a trial by a changed copy: lists that were returned keep the trials as they were."""
        study_id, number = self._locations[trial_id]
        trial = copy.copy(self._trials[study_id][number])
        for name, value in changes.items():
            setattr(trial, name, value)
        self._trials[study_id][number] = trial


def _locations(study_id: int, trials: Sequence[FrozenTrial]) -> dict[int, tuple[int, int]]:
    """Return study and number of trials, by their ids."""
    return {trial._trial_id: (study_id, trial.number) for trial in trials}
