"""The training loop of one worker. The result does not depend on the number of workers."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from trainables.data.loading import Batches, Loader
from trainables.data.parts import Part
from trainables.evaluation import cost
from trainables.evaluation.pseudo import PSEUDO_METRICS, measure_pseudo
from trainables.evaluation.validation import OWN, mean_of_folds, validate
from trainables.methods import Batch, Method
from trainables.training.optimizer import FACTOR, OptimizerConfig

WEIGHTS, STATE = "method.safetensors", "training.pt"
"""Files of a checkpoint."""


class Context(Protocol):
    """Interface of a worker to the trial: its rank, its device, reports and checkpoints."""

    @property
    def rank(self) -> int:
        """Index of this worker, from 0."""

    @property
    def world_size(self) -> int:
        """Number of workers; if above 1, ``torch.distributed`` is already initialised."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:<index>``."""

    @property
    def metrics(self) -> Collection[str]:
        """Metrics that the job needs; others that take time to measure may be left out."""

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Report one epoch's metrics; rank 0 alone calls ``save`` to write a checkpoint to a folder."""

    def restore(self) -> Path | None:
        """Return the folder of the last checkpoint, or None if there is none."""


def prefers_bfloat16(device: torch.device) -> bool:
    """Return whether ``device`` multiplies matrices of bfloat16 in hardware: most GPUs, and CPUs with AMX.

    With AMX the joint step of ``residual`` takes 0.6 of its time in float32 (``tests/benchmarks/step.py``).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


class Training:
    """Training of a method, including its state.

    Batches, augmentation and dropout depend only on the seed and the position in the training, and the
    learning rate only on the step. Weights, optimizer, epoch and step are therefore the whole state, and an
    epoch after `restore` equals that of an uninterrupted run. The measured cost of the model is kept with it.

    ``validation`` holds query and gallery of the set that trains, ``others`` those of further sets, by name.
    ``phases`` holds the number of epochs on images alone and the number of epochs that follow.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        validation: tuple[Part, Part],
        optimizer: OptimizerConfig,
        context: Context,
        *,
        others: Mapping[str, tuple[Part, Part]] | None = None,
        phases: Sequence[int],
        seed: int,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(context.device)
        self.accelerated = self.device.type == "cuda"
        self.reduced = precision == "bfloat16" or (precision == "auto" and prefers_bfloat16(self.device))
        self.method = method.to(self.device)
        if compiled:
            self.method.embedder.encoder.layers.compile()
        self.model: torch.nn.Module = self.method
        if context.world_size > 1:
            self.model = DistributedDataParallel(self.method, forward_sync_buffers=False)
        self.config, self.optimizer = optimizer, optimizer.build(self.method)
        self.batches, self.validation, self.others = batches, validation, others or {}
        self.loader = Loader(batches, self.device, processes=4 if self.accelerated else 0)
        self.context, self.phases, self.seed = context, tuple(phases), seed
        self.epoch = self.step = 0
        self.costs: dict[str, float] = {}

    def run(self) -> None:
        """Train from the last checkpoint, or from the start, and report every epoch; see `run_folds`."""
        run_folds([self])

    def train_epoch(self) -> dict[str, float]:
        """Train for one epoch; return the means of losses and their parts, the speed, the learning rate."""
        self.epoch += 1
        # Dropout differs between workers, and is the same after a resume.
        seed = np.random.SeedSequence([self.seed, self.epoch, self.context.rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self.model.train()
        start, steps, frames = time.perf_counter(), self.batches.per_epoch, 0
        totals: dict[str, Tensor] = {}
        note_step = getattr(self.context, "note_step", None)  # where somebody watches a single training
        for step, batch in enumerate(self.loader.epoch(self.epoch), 1):
            if note_step is not None:
                note_step(step, steps)
            losses = self.train_step(batch)
            for name, loss in (losses | self.method.take_parts()).items():
                totals[name] = totals.get(name, loss.new_zeros(())) + loss.detach()
            frames += self.method.frames(batch) * self.context.world_size
        means = {f"train/{name}": float(total) / steps for name, total in totals.items()}
        return means | {
            "frames_per_second": frames / (time.perf_counter() - start),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the parameters once and return the losses of the global batch."""
        phase, step, steps = self._position()
        self.method.phase, self.method.progress = phase, step / steps
        if step == 0:  # modules idle in the previous phase had gradients of 0, which distort the averages
            self.optimizer.state.clear()
        rate = self.config.rate(step, self.batches.per_epoch, self.phases[phase])
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(FACTOR, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            losses: dict[str, Tensor] = self.model(batch)
        if "loss" not in losses:
            raise ValueError(
                f"{type(self.method).__name__}: a step has to return 'loss'; got {', '.join(losses)}"
            )
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(self.method.parameters(), self.config.clip)
        self._require_finite(losses["loss"], norm)
        self.optimizer.step()
        self.step += 1
        return losses

    def validate(self) -> dict[str, float]:
        """Return retrieval scores of the validation identities, if any, of which every worker embeds a share.

        What `measure_pseudo` measures is added if the job needs one of these metrics.
        """
        scores = validate(
            self.method.embedder,
            {OWN: self.validation, **self.others},
            self.device,
            rank=self.context.rank,
            workers=self.context.world_size,
        )
        if not {*self.context.metrics}.isdisjoint(PSEUDO_METRICS):
            query, gallery = self.validation
            tracklets = np.union1d(query.tracklets, gallery.tracklets)
            scores |= measure_pseudo(self.method, Part(query.pack, tracklets), self.device)
        return scores

    def measure_costs(self) -> dict[str, float]:
        """Return the size of the embedder and, if the job needs it and it was not measured yet, its time."""
        embedder = self.method.embedder
        costs: dict[str, float] = {cost.PARAMETERS: cost.parameters(embedder)}
        wanted = cost.MILLISECONDS in self.context.metrics and cost.MILLISECONDS not in self.costs
        if wanted and self.context.rank == 0:  # whose report counts
            costs[cost.MILLISECONDS] = cost.milliseconds(embedder, self.batches.frames)
        return costs

    def save(self, folder: Path) -> None:
        """Write the whole state to ``folder``."""
        weights = {name: value.contiguous() for name, value in self.method.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "costs": self.costs,
        }
        torch.save(state, folder / STATE)

    def restore(self, folder: Path) -> None:
        """Load the state that `save` wrote to ``folder``."""
        self.method.load_state_dict(load_file(folder / WEIGHTS, device=str(self.device)))
        state = torch.load(folder / STATE, map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.costs = state.get("costs", {})  # checkpoints of 0.1 have none

    def _position(self) -> tuple[int, int, int]:
        """Return the phase of the next step, the step's index in it, and the number of steps of the phase."""
        step = self.step
        for phase, epochs in enumerate(self.phases):
            steps = epochs * self.batches.per_epoch
            if step < steps:
                return phase, step, steps
            step -= steps
        raise ValueError(f"step {self.step} is beyond the {sum(self.phases)} epochs of the training")

    def _require_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Raise FloatingPointError on every worker if a loss or gradient on any of them is not finite."""
        finite = torch.stack([loss.detach(), norm]).isfinite().all().float()
        if self.context.world_size > 1:
            distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        if not bool(finite):
            raise FloatingPointError(
                f"epoch {self.epoch}, step {self.step}: loss {loss:.4g}, gradient norm {norm:.4g}"
            )


def run_folds(trainings: Sequence[Training]) -> None:
    """Train one model for each fold of the validation identities, all of them epoch by epoch.

    Each epoch is reported once, with the mean of each metric over the models. A checkpoint holds all of them,
    the first one as that of a single training. Each model is trained as it would be alone.

    Args:
        trainings: of the same length and in the same context, each in its initial state.

    Raises:
        FloatingPointError: a loss, a gradient or a feature is not finite; raised on every worker.
    """
    first = trainings[0]
    context = first.context
    folder = context.restore()
    if folder is not None:
        for number, training in enumerate(trainings):
            training.restore(_fold_folder(folder, number))

    def save(target: Path) -> None:
        for number, training in enumerate(trainings):
            fold = _fold_folder(target, number)
            fold.mkdir(exist_ok=True)
            training.save(fold)

    first.costs = first.measure_costs() | first.costs
    while first.epoch < sum(first.phases):
        of_folds = [training.train_epoch() | training.validate() for training in trainings]
        context.report({"epoch": first.epoch, **mean_of_folds(of_folds), **first.costs}, save)


def _fold_folder(checkpoint: Path, number: int) -> Path:
    return checkpoint / f"fold-{number}" if number else checkpoint
