"""Train one config in this process, without Ray and MLflow: ``python -m orchestrator.train FILE``."""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.console.arguments import Parser, report_error
from orchestrator.console.progress import Progress
from orchestrator.errors import ExitCode, InputError
from orchestrator.interrupt import Interrupt

if TYPE_CHECKING:
    from pydantic import BaseModel

    from orchestrator.config.document import Document, Override
    from orchestrator.execution.single_worker import TrainingFolder
    from orchestrator.trainable import Trainable

EXAMPLES = """\
examples:
  python -m orchestrator.train search_spaces/alignment.yaml --output trained
  python -m orchestrator.train search_spaces/alignment.yaml --output trained --set config.epochs=4
  python -m orchestrator.train search_spaces/claim.yaml --variant static --output trained
  python -m orchestrator.train trained/config.yaml --output trained --score

FILE is a sweep file, of which the values under config: are trained; a comparison file with --variant; a file
with the keys trainable and config; or with --trainable, a file that holds what stands under config:.

Rerun the command to resume the training. The folder gets config.yaml, curves.csv, curves.png, scores.json and
the last checkpoint.

exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted
"""


class Training(NamedTuple):
    """What to train."""

    name: str
    trainable: str
    subject: "Trainable"
    config: "BaseModel"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("python -m orchestrator.train", "Train one config in one process.", EXAMPLES)
    parser.add_argument("file", help="file of a sweep, of a comparison, or of one config (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value of the file"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to keep the training in")
    parser.add_argument("--variant", metavar="NAME", help="the variant of a comparison file")
    parser.add_argument(
        "--trainable", metavar="PACKAGE.MODULE:CLASS", help="trainable of a file that names none"
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="train nothing; score the checkpoint in --output, also on other targets than before",
    )
    parser.add_argument("--device", help="cpu or cuda:N (default: the first GPU, if there is one)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its `ExitCode`."""
    parsed = parse(arguments)
    progress, interrupt = Progress(), Interrupt()
    try:
        interrupt.install()
        with progress.logging() as handler:
            with progress.activity(f"reading {parsed.file}"):
                from orchestrator.config.document import Override

                training = read(parsed, [Override.parse(text) for text in parsed.set])
            handler.add(training.trainable.partition(":")[0].partition(".")[0])
            return _run(parsed, training, progress)
    except InputError as error:
        return report_error(error)
    except KeyboardInterrupt:
        progress.print("interrupted; rerun the command to resume the training")
        return ExitCode.INTERRUPTED


def read(parsed: argparse.Namespace, overrides: "list[Override]") -> Training:
    """Return what the command line asks for; raises InputError."""
    import os

    from orchestrator.config.document import Document
    from orchestrator.errors import FieldError

    file = Path(parsed.file)
    if parsed.score and parsed.output is None:
        raise InputError("--score: name the folder of the training with --output")
    document = Document.read(file, "training")
    is_comparison = "variants" in document.tree and "trainable" in document.tree
    if parsed.variant is not None and not is_comparison:
        raise InputError(f"--variant: {file} is not the file of a comparison, which has variants")
    if is_comparison:
        return _read_variant(file, overrides, parsed.variant)
    if "search" in document.tree and "trainable" in document.tree:
        from orchestrator.config.sweep import read_sweep

        sweep = read_sweep(file, overrides)
        return Training(sweep.name, sweep.trainable, sweep.implementation, sweep.trial_config({}))
    for override in overrides:
        document.set(override)
    try:
        document.fill(os.environ)
        return _read_config(document, file.stem, parsed.trainable)
    except FieldError as error:
        raise InputError(f"{document.location(error.fault.path)}: {error}") from error


def _read_variant(file: Path, overrides: "list[Override]", variant: str | None) -> Training:
    from orchestrator.config.comparison import read_comparison
    from orchestrator.errors import nearest

    comparison = read_comparison(file, overrides)
    cells = {cell.variant: cell for cell in comparison.first_cells}
    if variant not in cells:
        raise InputError(
            f"--variant: {file} has no variant {variant!r}{nearest(variant, cells)}"
            if variant
            else f"{file}: it is the file of a comparison; choose with --variant one of {', '.join(cells)}"
        )
    config = comparison.cell_config(cells[variant])
    return Training(f"{comparison.name} {variant}", comparison.trainable, comparison.implementation, config)


def _read_config(document: "Document", name: str, dotted: str | None) -> Training:
    """Return the training of a file that holds one config, with or without its trainable."""
    from pydantic import ValidationError

    from orchestrator import trainable
    from orchestrator.config.validation import first_fault
    from orchestrator.errors import Fault, FieldError, nearest

    tree: Mapping[str, Any] = document.tree
    prefix: tuple[str, ...] = ()
    if "trainable" in tree:
        for key in tree:
            if key not in ("name", "trainable", "config"):
                raise FieldError(Fault((key,), f"unknown key{nearest(key, ('trainable', 'config'))}"))
        dotted, prefix = str(tree["trainable"]), ("config",)
        name, tree = str(tree.get("name", name)), tree.get("config") or {}
    if dotted is None:
        raise InputError(f"{document.file}: it names no trainable; give --trainable PACKAGE.MODULE:CLASS")
    try:
        subject = trainable.load(dotted)
    except InputError as error:
        raise FieldError(Fault(("trainable",), str(error))) from error
    try:
        return Training(name, dotted, subject, subject.Config.model_validate(tree))
    except ValidationError as error:
        raise FieldError(first_fault(error, subject.Config, tree, *prefix)) from error


def _run(parsed: argparse.Namespace, training: Training, progress: Progress) -> int:
    """Train and score; return the exit code."""
    with progress.activity("loading libraries"):
        from orchestrator.execution.single_worker import TrainingFolder

    _, dotted, subject, config = training
    try:
        with ExitStack() as stack:
            if parsed.output is None:
                folder = TrainingFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
                progress.print("nothing is kept; --output DIR keeps the checkpoint and the curves")
            else:
                folder = TrainingFolder(parsed.output)
                folder.check(dotted, subject, config, may_differ=parsed.score)
            if parsed.score and folder.checkpoint() is None:
                raise InputError(f"--score: {parsed.output} holds no checkpoint")
            with progress.activity("checking the data"):
                subject.check(config, 1, [])
            stack.enter_context(folder.locked())
            with progress.activity("preparing the data"):
                subject.prepare(config)
            if not parsed.score:
                _train(parsed, training, folder, progress)
            return _score(training, folder, progress)
    except subject.InputError as error:
        raise InputError(f"{parsed.file}: config.{error}") from error
    except FloatingPointError as error:
        progress.print(f"the training diverged: {error}")
        return ExitCode.FAILED


def _train(
    parsed: argparse.Namespace, training: Training, folder: "TrainingFolder", progress: Progress
) -> None:
    """Train from the last checkpoint on, and draw the curves."""
    from orchestrator.execution.isolation import isolated
    from orchestrator.execution.single_worker import SingleWorker
    from orchestrator.report.curves import draw_training

    name, dotted, subject, config = training
    settings: Any = config  # `epochs` and `seed` were checked when the trainable was loaded
    begun = folder.epoch()
    if begun >= settings.epochs:
        progress.print(f"the training in {folder.path} is finished")
        return
    if begun:
        progress.print(f"resuming after epoch {begun}")
    folder.record(dotted, config)
    worker = SingleWorker(folder, settings.epochs, parsed.device or _device(), progress.print)
    try:
        with progress.activity(worker.status), isolated([abs(settings.seed), 0, begun]):
            subject.fit(config, worker)
    finally:
        if worker.reports and parsed.output is not None:
            draw_training(worker.reports, name, folder.path / "curves.png")


def _score(training: Training, folder: "TrainingFolder", progress: Progress) -> int:
    """Score the last checkpoint on the targets; return the exit code."""
    from orchestrator.console.tables import format_number, pairs
    from orchestrator.trainable import checked_metrics

    checkpoint = folder.checkpoint()
    if checkpoint is None:
        progress.print("the training ended without a checkpoint")
        return ExitCode.FAILED
    with progress.activity("scoring on the targets"):
        scores = checked_metrics(training.subject.evaluate(training.config, checkpoint))
    folder.write_scores(scores)
    progress.show(pairs("Scores", {name: format_number(value) for name, value in scores.items()}))
    return ExitCode.DONE


def _device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
