"""The engine: one optimizer step of an objective, on any number of ranks, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipelines.batch import Batch
from data_pipelines.hashing import mix
from data_pipelines.views import View
from pretrain.config import EngineConfig, Optim, Train
from pretrain.distributed import World
from pretrain.ema import Averages, twins
from pretrain.engine.buffers import Remembered, persistent_buffers, storable
from pretrain.engine.layout import Cut, Entry, Slice
from pretrain.engine.root import Root
from pretrain.engine.setup import deepspeed_config, enable_checkpointing, start_deepspeed
from pretrain.engine.zero import partition_of
from pretrain.objective import Objective, Output
from pretrain.optim import MOMENTS, build_optimizer, init_state, parameter_groups

if TYPE_CHECKING:
    from pretrain.checkpoint import CheckpointReader


@dataclass(frozen=True)
class StepStats:
    """What this rank knows of a step before it is taken.

    Attributes:
        loss_sum: of the loss over this rank's rows; the mean loss is the world sum of it over that of `rows`.
        rows: this rank's rows.
        finite: loss and gradient are, on this rank.
        squared_grad_norm: this rank's share; the world sum is the squared norm of the whole gradient.
        logs: the objective's figures, means over micro steps.
        embeddings: (B, D) of each micro step, detached.
        energies: by name, (A * B,), detached.
    """

    loss_sum: float
    rows: float
    finite: bool
    squared_grad_norm: float
    logs: Mapping[str, float] = field(default_factory=dict)
    embeddings: tuple[Tensor, ...] = ()
    energies: Mapping[str, Tensor] = field(default_factory=dict)


class Engine:
    """Carries an objective's steps out.

    A step is `accumulate`, then `apply` or `skip`, each on every rank alike.

    Args:
        view: of the batches of steps, where it is not the objective's own.

    Attributes:
        module: the objective; to be called through the engine only.
        world: the ranks.
        updates: optimizer steps applied so far.
        steps: steps done so far, skipped ones included.
    """

    def __init__(
        self,
        objective: Objective,
        config: EngineConfig,
        optim: Optim,
        train: Train,
        world: World,
        *,
        seed: int = 0,
        view: View | None = None,
    ) -> None:
        self.module = objective
        self._view = view or objective.view
        self.world = world
        self.updates = self.steps = 0
        self._optim, self._train, self._seed = optim, train, seed
        drawn = _whole_weights(objective) if config.precision == "bf16" and config.zero_stage else {}
        self._pairs = {twin: source for t in objective.targets for twin, source in twins(objective, t).items()}
        if config.checkpoint_activations:
            enable_checkpointing(objective)
        prefix = objective.encoder().prefix if optim.layer_decay is not None else ""
        groups = parameter_groups(objective.named_parameters(), optim, prefix, objective.lr_factors)
        self._optimizer = build_optimizer(groups, optim, config.zero_stage, world.device)
        self._root = Root(objective, world.device, config.precision)
        settings = deepspeed_config(objective, config, optim, train, world)
        self._engine = start_deepspeed(objective, self._optimizer, settings)
        self._partition = partition_of(objective, self._engine, self._optimizer, world)
        self._averages = Averages(objective, objective.targets, self._partition)
        self._frozen = self._frozen_pieces()
        self._buffers = Remembered([buffer for _, buffer in persistent_buffers(objective)])
        self._init_optimizer_state()
        if drawn:
            self.set_weights(drawn)
        if config.compile:
            self._engine.compile()

    # One step ---------------------------------------------------------------------------------------------------

    def accumulate(self, batches: Sequence[Batch]) -> StepStats:
        """Forward and backward passes of a step's micro batches.

        The gradient becomes that of the mean loss over the rows of all ranks and micro steps,
        whatever their number on each: every micro loss, a sum over rows, is divided by the rows
        of all, and multiplied by the ranks that DeepSpeed averages over.
        """
        assert len(batches) == self._train.accumulation
        batches = [self._view.batch(batch.to(self.world.device)) for batch in batches]
        rows = torch.stack([self.module.rows(batch).to(torch.float64) for batch in batches])  # (A,)
        total = rows.sum()
        with self.world.watch_peers():
            dist.all_reduce(total, group=self.world.device_group)
            scale = (self.world.world_size / total.clamp(min=1)).float()
            self._partition.forget_unused()
            self._buffers.note()
            outputs = [self._micro_step(batch, scale, micro) for micro, batch in enumerate(batches)]
        return self._stats(outputs, rows)

    def apply(self, lr: float, progress: float) -> None:
        """Take the step: clip, update the weights at `lr`, move the EMA targets.

        Args:
            lr: learning rate; groups of a lower layer take their factor of it.
            progress: share of the training that is done, in [0, 1].
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        with self.world.watch_peers():
            self._engine.step()
        self.updates += 1
        self.steps += 1
        self._averages.update(progress)
        self.module.after_step(self.updates)

    def skip(self) -> None:
        """Drop the step: weights, moments, targets, buffers and the optimizer's step count are as before it."""
        with self.world.watch_peers():
            self._partition.drop_gradients()
        self._buffers.restore()
        self.module.after_skip()
        self.steps += 1

    def _micro_step(self, batch: Batch, scale: Tensor, micro: int) -> Output:
        # Dropout is the one thing drawn from torch's generator: keyed, so that no state need be stored.
        torch.manual_seed(int(mix(self._seed, "dropout", self.steps, micro, self.world.rank)))
        self._engine.set_gradient_accumulation_boundary(micro == self._train.accumulation - 1)
        loss = self._engine(batch)
        self._engine.backward(loss.float() * scale, scale_wrt_gas=False)
        return replace(self._root.take(), loss=loss.detach())

    def _stats(self, outputs: Sequence[Output], rows: Tensor) -> StepStats:
        """All figures leave the device in one copy."""
        names = sorted({name for output in outputs for name in output.logs})
        loss = torch.stack([output.loss.double() for output in outputs]).sum()
        logs = [torch.stack([o.logs[n].double() for o in outputs if n in o.logs]).mean() for n in names]
        squared = squared_norm(self._partition.gradients(), self.world.device)
        loss_sum, own_rows, norm, *values = torch.stack([loss, rows.sum(), squared, *logs]).tolist()
        energies = {name: [o.energies[name] for o in outputs if name in o.energies] for name in outputs[0].energies}
        return StepStats(
            loss_sum=loss_sum,
            rows=own_rows,
            finite=bool(np.isfinite([loss_sum, norm]).all()),
            squared_grad_norm=norm,
            logs=dict(zip(names, values, strict=True)),
            embeddings=tuple(o.embeddings.detach() for o in outputs if o.embeddings is not None),
            energies={name: torch.cat([part.detach() for part in parts]) for name, parts in energies.items()},
        )

    # Without a step ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Output, float]:
        """The objective's output on one batch of its own view, in eval mode, and the rows its loss sums over."""
        prepared = self._prepare(batch)
        output: Output = self._without_training(None, prepared)
        return output, float(self.module.rows(prepared))

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """(B, D) features of a batch of the plain view, for probes."""
        features: Tensor = self._without_training(self.module.embed, batch.to(self.world.device))
        return features

    @torch.no_grad()
    def sketch(self, batch: Batch) -> dict[str, np.ndarray]:
        """The objective's pictures of one batch of its own view."""
        pictures: dict[str, np.ndarray] = self._without_training(self.module.sketch, self._prepare(batch))
        return pictures

    def _prepare(self, batch: Batch) -> Batch:
        return self.module.view.batch(batch.to(self.world.device))

    def _without_training(self, task: Any, batch: Batch) -> Any:
        self.module.eval()
        try:
            with self.world.watch_peers():
                self._root.run(task, batch)
                return self._root.take()
        finally:
            self.module.train()

    # State ------------------------------------------------------------------------------------------------------

    def catalogue(self) -> dict[str, Entry]:
        """All that a checkpoint of this engine holds, by name, over all ranks."""
        moments = MOMENTS[self._optim.name]
        entries = {name: Entry(cut, ("w", *moments)) for name, cut in self._partition.cuts.items()}
        for twin, source in self._averages.source_of.items():
            entries[twin] = Entry(self._partition.cuts[source], ("ema",))
        for name in self._frozen:
            entries[name] = Entry(self._partition.frozen_cut(name), ("w",))
        for name, buffer in persistent_buffers(self.module):
            entries[name] = Entry(Cut.whole(tuple(buffer.shape)), ("buffer",), _dtype_name(storable(buffer)))
        return entries

    def slices(self) -> Iterator[Slice]:
        """What this rank owns of the state; over all ranks each element once. Live views."""
        rank = self.world.rank
        for name, cut in self._partition.cuts.items():
            home, (start, stop) = self._partition.homes[name], cut.held_by(rank)
            own = slice(start - home.start, stop - home.start)
            if start < stop:
                yield Slice(name, "w", start, stop, self._partition.weight(name)[own])
                for moment in MOMENTS[self._optim.name]:
                    yield Slice(name, moment, start, stop, self._partition.moment(name, moment)[own])
        for twin, average in self._averages.by_twin.items():
            source = self._averages.source_of[twin]
            home, (start, stop) = self._partition.homes[source], self._partition.cuts[source].held_by(rank)
            if start < stop:
                yield Slice(twin, "ema", start, stop, average[start - home.start : stop - home.start])
        for name, piece in self._frozen.items():
            start, stop = self._partition.frozen_cut(name).held_by(rank)
            if start < stop:
                yield Slice(name, "w", start, stop, piece)
        if rank == 0:  # equal on all ranks
            for name, buffer in persistent_buffers(self.module):
                yield Slice(name, "buffer", 0, buffer.numel(), storable(buffer).detach().reshape(-1))

    @torch.no_grad()
    def load(self, reader: CheckpointReader) -> None:
        """Take over the whole state of a checkpoint, written at any world size and stage.

        Args:
            reader: of a committed checkpoint.

        Raises:
            CheckpointError: it is of another model (the first difference is named), or damaged.
        """
        reader.refuse_other(self.catalogue())
        for name, home in self._partition.homes.items():
            self._partition.weight(name).copy_(reader.read(name, "w", home.start, home.stop))
            for moment in MOMENTS[self._optim.name]:
                self._partition.moment(name, moment).copy_(reader.read(name, moment, home.start, home.stop))
        for twin, average in self._averages.by_twin.items():
            home = self._partition.homes[self._averages.source_of[twin]]
            average.copy_(reader.read(twin, "ema", home.start, home.stop))
        for name in self._frozen:
            self._put_frozen(name, lambda start, stop, name=name: reader.read(name, "w", start, stop))
        for name, buffer in persistent_buffers(self.module):
            buffer.copy_(reader.read(name, "buffer").view(buffer.shape))
        self.updates, self.steps = reader.manifest.engine.updates, reader.manifest.engine.steps
        self._init_optimizer_state()
        self._publish()

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace whole parameters and buffers by name, equal on all ranks; moments stay.

        A target whose own weights are not given, but whose source's are, becomes a copy of it.
        """
        given = dict(weights)
        given |= {twin: given[src] for twin, src in self._pairs.items() if src in given and twin not in given}
        buffers = dict(persistent_buffers(self.module))
        for name, tensor in given.items():
            if name in buffers:
                buffers[name].copy_(tensor)
                continue
            flat = tensor.reshape(-1).float()
            if name in self._partition.homes:
                home = self._partition.homes[name]
                self._partition.weight(name).copy_(flat[home.start : home.stop])
            elif name in self._averages.by_twin:
                home = self._partition.homes[self._averages.source_of[name]]
                self._averages.by_twin[name].copy_(flat[home.start : home.stop])
            else:
                self._put_frozen(name, lambda start, stop, flat=flat: flat[start:stop])
        self._publish()

    def _frozen_pieces(self) -> dict[str, Tensor]:
        """fp32 of what this rank owns of each frozen parameter that is no EMA target."""
        pieces = {}
        for name, _ in self.module.named_parameters():
            if name not in self._partition.cuts and name not in self._averages.by_twin:
                copy, first, _ = self._partition.frozen_kept(name)
                start, stop = self._partition.frozen_cut(name).held_by(self.world.rank)
                pieces[name] = copy[start - first : stop - first].float().clone()
        return pieces

    def _put_frozen(self, name: str, read: Any) -> None:
        copy, first, last = self._partition.frozen_kept(name)
        values = read(first, last)
        copy.copy_(values)
        start, stop = self._partition.frozen_cut(name).held_by(self.world.rank)
        self._frozen[name].copy_(values[start - first : stop - first])

    def _publish(self) -> None:
        with self.world.watch_peers():
            self._partition.publish()
            self._partition.publish_frozen(self._frozen)
            self._averages.publish()

    def _init_optimizer_state(self) -> None:
        for holder in self._partition.holders:
            init_state(self._optimizer, self._optim.name, holder, self.updates)


def squared_norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """() float64, the sum of squares over all tensors."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm([tensor.float() for tensor in tensors])
    return torch.stack(list(norms)).to(device, torch.float64).square().sum()


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """fp32 copies of all parameters, from before DeepSpeed rounds them."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
