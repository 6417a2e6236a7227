"""Train one config in this process, without Ray and MLflow: ``python -m orchestrator.train FILE``."""

import argparse
import logging
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.components import code_digests, describe_raised
from orchestrator.console.arguments import Parser, report_error
from orchestrator.console.command import run
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError, SweepError
from orchestrator.interrupt import Interrupt

if TYPE_CHECKING:
    from orchestrator.config.document import Override
    from orchestrator.config.training import Training
    from orchestrator.execution.single_worker import TrainingFolder
    from orchestrator.trainable import DataSetRecord

_log = logging.getLogger(__name__)

PROGRAM = "TRAIN_PROGRAM"
"""Variable with the command line by which `trainables.train` was called, for the help."""

EXAMPLES = """\
examples:
  python -m orchestrator.train search_spaces/alignment.yaml --output trained
  python -m orchestrator.train search_spaces/alignment.yaml --output trained --set config.epochs=4
  python -m orchestrator.train search_spaces/alignment.yaml --dry-run
  python -m orchestrator.train search_spaces/claim.yaml --variant static --output trained
  python -m orchestrator.train trained/config.yaml --output trained --score --export model

FILE is a sweep file, of which the values under config: are trained; a comparison file with --variant; a file
with the keys trainable and config; or a file that holds what stands under config:, for which
orchestrator.train needs --trainable.

Rerun the command to resume the training. The folder gets config.yaml, data.json, code.json, curves.csv,
curves.png, scores.json and the last checkpoint.

exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    own = "python -m orchestrator.train"
    program = os.environ.get(PROGRAM, own)
    parser = Parser(program, "Train one config in one process.", EXAMPLES.replace(own, program))
    parser.add_argument("file", help="file of a sweep, of a comparison, or of one config (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value of the file"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to keep the training in")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="new folder for the model, in the format of MLflow"
    )
    parser.add_argument("--variant", metavar="NAME", help="the variant of a comparison file")
    parser.add_argument(
        "--trainable", metavar="PACKAGE.MODULE:CLASS", help="trainable of a file that names none"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--score",
        action="store_true",
        help="train nothing; score the checkpoint in --output, also on other targets than before",
    )
    instead.add_argument("--dry-run", action="store_true", help="check everything, and train nothing")
    parser.add_argument("--device", help="device to train on: cpu or cuda:N (default: the first GPU, if any)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`. A training whose output cannot be written goes on."""
    progress = Progress(required=False)
    return progress.exit_code(_main(parse(arguments), progress))


def _main(parsed: argparse.Namespace, progress: Progress) -> int:
    interrupt = Interrupt()
    try:
        interrupt.install()
        with progress.logging() as handler:
            with progress.activity(f"reading {parsed.file}"):
                from orchestrator.config.document import Override

                training = read(parsed, [Override.parse(text) for text in parsed.set])
            handler.add(training.trainable.partition(":")[0].partition(".")[0])
            if training.note and not parsed.score:
                progress.print(training.note)
            return _run(parsed, training, progress)
    except InputError as error:
        return report_error(error)
    except SweepError as error:
        progress.print(f"{error}; finished epochs are kept")
        return ExitCode.FAILED
    except KeyboardInterrupt:
        resumes = parsed.output is not None and not parsed.score
        progress.print("interrupted" + "; rerun the command to resume the training" * resumes)
        return ExitCode.INTERRUPTED


def read(parsed: argparse.Namespace, overrides: "list[Override]") -> "Training":
    """Return what the command line asks for; raises InputError."""
    from orchestrator.config.document import Document
    from orchestrator.config.training import read_config

    file = Path(parsed.file)
    if parsed.score and parsed.output is None:
        raise InputError("--score: name the folder of the training with --output")
    document = Document.read(file, "training")
    has_trainable = "trainable" in document.tree
    if has_trainable and "variants" in document.tree:
        return _read_variant(file, overrides, parsed.variant)
    if parsed.variant is not None:
        raise InputError(f"--variant: {file} is not the file of a comparison, which has variants")
    if has_trainable and "search" in document.tree:
        return _read_sweep(file, overrides)
    return read_config(document, overrides, parsed.trainable)


def _read_sweep(file: Path, overrides: "list[Override]") -> "Training":
    """Return the training of the values under ``config:``, of which searched ones may be set, too."""
    from orchestrator.config.sweep import read_sweep
    from orchestrator.config.training import Training
    from orchestrator.errors import FieldError, dotted

    values = {
        each.path.removeprefix("config."): each for each in overrides if each.path.startswith("config.")
    }
    sweep = read_sweep(file, [each for each in overrides if each not in values.values()])
    try:
        config = sweep.trial_config({path: override.value for path, override in values.items()})
    except FieldError as error:
        given = [
            each.origin for path, each in values.items() if dotted(error.fault.path[1:]).startswith(path)
        ]
        raise InputError(f"{given[0]}: {error}" if given else sweep.located(str(error))) from error
    return Training(
        sweep.name,
        sweep.trainable,
        sweep.implementation,
        config,
        lambda text: sweep.located(f"config.{text}"),
        _searched_note([path for path in sweep.search if path not in values]),
    )


def _searched_note(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    return f"searched paths have the values under config: or their defaults: {', '.join(paths)}"


def _read_variant(file: Path, overrides: "list[Override]", variant: str | None) -> "Training":
    from orchestrator.config.comparison import read_comparison
    from orchestrator.config.training import Training
    from orchestrator.errors import nearest

    comparison = read_comparison(file, overrides)
    cells = {cell.variant: cell for cell in comparison.first_cells}
    if variant is None:
        raise InputError(
            f"{file}: it is the file of a comparison; choose with --variant one of {', '.join(cells)}"
        )
    if variant not in cells:
        raise InputError(f"--variant: {file} has no variant {variant!r}{nearest(variant, cells)}")
    return Training(
        f"{comparison.name} {variant}",
        comparison.trainable,
        comparison.implementation,
        comparison.cell_config(cells[variant]),
        lambda text: comparison.located(f"config.{text}"),
    )


def _run(parsed: argparse.Namespace, training: "Training", progress: Progress) -> int:
    """Train and score; return the exit code."""
    with progress.activity("loading libraries"):
        from orchestrator.execution.single_worker import TrainingFolder

        device = _device(parsed.device)
    with ExitStack() as stack:
        if parsed.output is None:
            folder = TrainingFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            if not parsed.dry_run:
                progress.print("nothing is kept; --output DIR keeps the checkpoint and the curves")
        else:
            folder = TrainingFolder(parsed.output.expanduser())
        _check(training, folder, parsed.score)
        _check_new(parsed.export)
        code = _code(training)
        with _explained_faults(training):
            with progress.activity("checking the data"):
                training.subject.check(training.config, 1, [])
            if parsed.dry_run:
                progress.print("dry run: file and data were checked; nothing was trained")
                return ExitCode.DONE
            with progress.activity("preparing the data"):
                data_sets = training.subject.prepare(training.config)
        stack.enter_context(folder.locked())
        _check(training, folder, parsed.score)  # another process may have trained in it meanwhile
        try:
            if not parsed.score:
                _train(training, folder, data_sets, code, device, progress)
            ended = _score(training, folder, code, progress)
            if ended == ExitCode.DONE and parsed.export is not None:
                _export(training, folder, parsed.export.expanduser(), progress)
            return ended
        except (InputError, SweepError):
            raise
        except FloatingPointError as error:
            progress.print(f"the training diverged: {error}")
        except Exception as error:  # whatever the trainable raises
            text = traceback.format_exc()
            where = "" if parsed.output is None else f"; the traceback is in {folder.write_error(text)}"
            print(f"error: {describe_raised(error)}{where or f'{os.linesep}{text}'}", file=sys.stderr)
        return ExitCode.FAILED


def _check(training: "Training", folder: "TrainingFolder", only_scored: bool) -> None:
    """Raise InputError if the folder is not for this training, or has no checkpoint to score."""
    folder.check(training.trainable, training.subject, training.config, scores=only_scored)
    if only_scored and folder.checkpoint() is None:
        raise InputError(f"--score: {folder.path} holds no checkpoint")


@contextmanager
def _explained_faults(training: "Training") -> Iterator[None]:
    """Raise errors about the user's data as InputError."""
    try:
        yield
    except training.subject.InputError as error:
        raise InputError(training.located(str(error))) from error
    except OSError as error:
        raise InputError(f"config: {error.filename}: {error.strerror}") from error


def _train(
    training: "Training",
    folder: "TrainingFolder",
    data_sets: "Sequence[DataSetRecord]",
    code: Mapping[str, str],
    device: str,
    progress: Progress,
) -> None:
    """Train from the last checkpoint on, and draw the curves."""
    from orchestrator.execution.isolation import isolated
    from orchestrator.execution.single_worker import SingleWorker

    settings: Any = training.config  # `epochs` and `seed` were checked when the trainable was loaded
    begun = folder.epoch()
    worker = SingleWorker(folder, settings.epochs, device, progress.print)
    try:
        folder.record(training.trainable, training.config)
        folder.record_data(data_sets)
        if begun >= settings.epochs:
            progress.print(f"the training in {folder.path} is finished")
            return
        if begun:
            progress.print(f"resuming after epoch {begun}")
            _warn_of_changed(folder.changed_code(code), progress)
        folder.record_code(code)
        with progress.activity(worker.status), isolated([abs(settings.seed), 0, begun]):
            training.subject.fit(training.config, worker)
    finally:
        _draw(worker.reports, training.name, folder.path / "curves.png")


def _code(training: "Training") -> dict[str, str]:
    """Return the digests of the modules of the trainable and its components, by module."""
    from orchestrator.config.document import strings

    return code_digests([training.trainable, *strings(training.config.model_dump(mode="json"))])


def _warn_of_changed(modules: Sequence[str], progress: Progress) -> None:
    for module in modules:
        progress.print(f"warning: the code of {module} has changed since the training")


def _draw(reports: Sequence[Mapping[str, float]], name: str, file: Path) -> None:
    """Draw the curves; a fault costs only the picture."""
    from orchestrator.report.curves import draw_training

    try:
        if reports:
            draw_training(reports, name, file)
    except Exception as error:  # of Matplotlib
        _log.warning("%s was not drawn: %s", file, describe_raised(error))


def _score(
    training: "Training", folder: "TrainingFolder", code: Mapping[str, str], progress: Progress
) -> int:
    """Score the last checkpoint on the targets; return the exit code."""
    from orchestrator.console.tables import format_number, pairs
    from orchestrator.trainable import checked_metrics

    checkpoint = folder.checkpoint()
    if checkpoint is None:
        progress.print("the training ended without a checkpoint")
        return ExitCode.FAILED
    changed = folder.changed_code(code)
    _warn_of_changed(changed, progress)
    with progress.activity("scoring on the targets"):
        scores = checked_metrics(training.subject.evaluate(training.config, checkpoint))
    if not scores:
        progress.print("the config names no target to score on")
        return ExitCode.DONE
    folder.write_scores(scores, training.subject, training.config, changed)
    progress.show(pairs("Scores", {name: format_number(value) for name, value in scores.items()}))
    return ExitCode.DONE


def _check_new(target: Path | None) -> None:
    """Raise InputError if a model cannot be written into a folder."""
    if target is None:
        return
    target = target.expanduser()
    if target.exists():
        raise InputError(f"--export: {target} exists; name a new folder")
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise InputError(f"--export: {parent} is not a folder that can be written")


def _export(training: "Training", folder: "TrainingFolder", target: Path, progress: Progress) -> None:
    """Write the model of the last checkpoint; raises InputError."""
    import mlflow

    from orchestrator.tracking.store import quiet_mlflow

    quiet_mlflow()
    checkpoint = folder.checkpoint()
    assert checkpoint is not None, "it was scored"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        progress.activity("exporting the model"),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial,
    ):
        files, model = Path(partial) / "files", Path(partial) / "model"
        files.mkdir()
        mlflow.pyfunc.save_model(model, **training.subject.export(training.config, checkpoint, files))
        _check_new(target)
        model.rename(target)
    progress.print(f"model: {target}")


def _device(name: str | None) -> str:
    """Return the device to train on; raises InputError if there is none of this name."""
    import torch

    present = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name is None:
        return present[1] if len(present) > 1 else "cpu"
    if name not in present:
        raise InputError(f"--device {name}: there is no such device; this machine has {', '.join(present)}")
    return name


def _exit(code: int) -> NoReturn:
    """End this process, also where the trainable has left threads that would keep it."""
    main_thread = threading.main_thread()
    left = [thread for thread in threading.enumerate() if thread is not main_thread and not thread.daemon]
    if left:
        names = ", ".join(thread.name for thread in left)
        with suppress(OSError):
            print(f"the trainable left threads that still ran: {names}", flush=True)
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run(main, _exit)
