"""One face for the four ways in which DeepSpeed lays parameters, masters and gradients out.

Everything that reaches into DeepSpeed's optimizers stands in this file. A `Partition` says which
elements this rank owns, and gives live fp32 views of them.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretrain.distributed import World
from pretrain.engine.exchange import Exchange
from pretrain.engine.layout import Cut


@dataclass(frozen=True)
class Home:
    """Where a parameter's fp32 master lives: [start, stop) of it, from `offset` on in the flat `holder`."""

    holder: Tensor
    offset: int
    start: int
    stop: int

    def view(self, tensor: Tensor) -> Tensor:
        """This parameter's part of `tensor`, which is laid out like the holder."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.stop - self.start)


class Partition(ABC):
    """The trained parameters of an objective as one ZeRO stage keeps them.

    Attributes:
        cuts: who owns what of each trained parameter; what a rank owns it writes to checkpoints.
        homes: what this rank keeps in memory; at least what it owns.
        holders: the tensors that the optimizer steps.
    """

    cuts: dict[str, Cut]
    homes: dict[str, Home]

    def __init__(self, module: nn.Module, engine: Any, optimizer: torch.optim.Optimizer, world: World) -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self._optimizer = optimizer
        self._world = world
        self._named = dict(module.named_parameters())
        self._name_of = {id(parameter): name for name, parameter in self._named.items()}
        self.cuts, self.homes = {}, {}
        self._lay_out()

    @abstractmethod
    def _lay_out(self) -> None:
        """Fill `cuts` and `homes`."""

    @property
    @abstractmethod
    def holders(self) -> Sequence[Tensor]:
        """The tensors that the optimizer steps."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """This rank's part of the averaged gradient; over all ranks each element once."""

    @abstractmethod
    def drop_gradients(self) -> None:
        """Forget everything accumulated since the last step."""

    @abstractmethod
    def publish(self) -> None:
        """Bring changed masters into the working weights of all ranks."""

    def forget_unused(self) -> None:  # noqa: B027 - most stages have nothing to forget
        """Called before a step's first backward pass."""

    def weight(self, name: str) -> Tensor:
        """fp32 master, 1-D, the part that this rank keeps."""
        home = self.homes[name]
        return home.view(home.holder)

    def moment(self, name: str, key: str) -> Tensor:
        """An optimizer's tensor, laid out like `weight`."""
        home = self.homes[name]
        return home.view(self._optimizer.state[home.holder][key])

    def frozen_cut(self, name: str) -> Cut:
        """Who owns what of a frozen parameter."""
        return Cut.even(tuple(self._named[name].shape), self._world.world_size)

    def frozen_kept(self, name: str) -> tuple[Tensor, int, int]:
        """The working copy of a frozen parameter on this rank, 1-D, and which [start, stop) it is."""
        parameter = self._named[name]
        return parameter.detach().view(-1), 0, parameter.numel()

    def publish_frozen(self, names: Iterable[str]) -> None:  # noqa: B027 - most stages use the copy itself
        """Make changes of frozen working copies effective in the module."""

    def average_of(self, twin: str, source: str) -> Tensor:
        """Storage for the fp32 average of `source`, laid out like its weight, holding what `twin` holds now."""
        copy, first, _ = self.frozen_kept(twin)
        home = self.homes[source]
        return copy[home.start - first : home.stop - first].to(home.holder.device, torch.float32, copy=True)

    @abstractmethod
    def publish_averages(self, averages: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
        """Bring changed averages (by twin) into the twins' working weights on all ranks."""


class Replicated(Partition):
    """ZeRO 0: every rank holds everything; for saving, each tensor is split evenly."""

    @override
    def _lay_out(self) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                name = self._name_of[id(parameter)]
                self.cuts[name] = Cut.even(tuple(parameter.shape), self._world.world_size)
                self.homes[name] = Home(parameter, 0, 0, parameter.numel())

    @property
    @override
    def holders(self) -> Sequence[Tensor]:
        return [home.holder for home in self.homes.values()]

    @override
    def gradients(self) -> list[Tensor]:
        parts = []
        for name, home in self.homes.items():
            start, stop = self.cuts[name].held_by(self._world.rank)
            if home.holder.grad is not None:
                parts.append(home.holder.grad.reshape(-1)[start:stop])
        return parts

    @override
    def drop_gradients(self) -> None:
        self._engine.zero_grad()

    @override
    def publish(self) -> None:
        """Masters and working weights are the same tensors here."""

    @override
    def average_of(self, twin: str, source: str) -> Tensor:
        return self._named[twin].detach().view(-1)  # fp32 and whole already: it is its own average

    @override
    def publish_averages(self, averages: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
        """Averages and working weights are the same tensors here."""


class Flat(Partition):
    """ZeRO 1 and 2: the parameters of a group one after the other, cut into equal pieces."""

    _exchange: Exchange | None = None

    @override
    def _lay_out(self) -> None:
        rank = self._world.rank
        for parameters, offsets, holder in self._groups():
            for parameter, offset in zip(parameters, offsets, strict=True):
                name = self._name_of[id(parameter)]
                cut = self.cuts[name] = Cut(tuple(parameter.shape), offset, holder.numel())
                start, stop = cut.held_by(rank)
                place = max(0, offset - rank * holder.numel()) if start < stop else 0
                self.homes[name] = Home(holder, place, start, stop)

    def _groups(self) -> Iterable[tuple[Sequence[nn.Parameter], Sequence[int], Tensor]]:
        """Parameters, their offsets on the group's line, and this rank's piece of it."""
        zero = self._zero
        return zip(zero.bit16_groups, zero.round_robin_bit16_offsets, zero.single_partition_of_fp32_groups, strict=True)

    @property
    @override
    def holders(self) -> Sequence[Tensor]:
        return list(self._zero.single_partition_of_fp32_groups)

    @override
    def gradients(self) -> list[Tensor]:
        zero = self._zero
        if zero.cpu_offload:
            return [holder.grad for holder in self.holders if holder.grad is not None]
        return list(itertools.chain.from_iterable(zero.averaged_gradients.values()))

    @override
    def drop_gradients(self) -> None:
        zero = self._zero
        zero.zero_grad(set_to_none=True)
        zero.micro_step_id = -1  # where a step begins; offload copies instead of adding there
        if zero.cpu_offload:
            zero.reset_cpu_buffers()
        for group in range(len(zero.bit16_groups)):
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None

    @override
    def publish(self) -> None:
        self._zero.update_lp_params()

    @override
    def publish_averages(self, averages: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
        if self._exchange is None:
            cuts = [self.cuts[sources[twin]] for twin in averages]
            self._exchange = Exchange(cuts, [self.frozen_kept(twin)[0] for twin in averages], self._world)
        self._exchange.run(list(averages.values()))


class FlatBf16(Flat):
    """ZeRO 1 in bf16, which DeepSpeed gives to an optimizer of its own; gradients are whole on each rank."""

    def _groups(self) -> Iterable[tuple[Sequence[nn.Parameter], Sequence[int], Tensor]]:
        zero = self._zero
        for parameters, holder in zip(zero.bf16_groups, zero.fp32_groups_flat_partition, strict=True):
            ends = itertools.accumulate((parameter.numel() for parameter in parameters), initial=0)
            yield parameters, list(ends)[:-1], holder

    @property
    @override
    def holders(self) -> Sequence[Tensor]:
        return list(self._zero.fp32_groups_flat_partition)

    @override
    def gradients(self) -> list[Tensor]:
        return list(self._zero.fp32_groups_gradient_flat_partition)

    @override
    def drop_gradients(self) -> None:
        self._zero.zero_grad(set_to_none=True)


class Sharded(Partition):
    """ZeRO 3: each parameter cut on its own, and absent outside forward and backward passes."""

    @override
    def _lay_out(self) -> None:
        rank = self._world.rank
        for parameters, holder in zip(self._zero.fp16_groups, self.holders, strict=True):
            place = 0
            for parameter in parameters:
                name, piece = self._name_of[id(parameter)], parameter.partition_numel()
                cut = self.cuts[name] = Cut(tuple(parameter.ds_shape), 0, piece)
                self.homes[name] = Home(holder, place, *cut.held_by(rank))
                place += piece

    @property
    @override
    def holders(self) -> Sequence[Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    @override
    def gradients(self) -> list[Tensor]:
        zero = self._zero
        if zero.offload_optimizer:
            return [holder.grad for holder in self.holders if holder.grad is not None]
        return list(itertools.chain.from_iterable(zero.averaged_gradients.values()))

    @override
    def drop_gradients(self) -> None:
        zero = self._zero
        zero._pre_step()
        zero._partition_all_parameters()
        zero.zero_grad(set_to_none=True)
        zero.averaged_gradients = {}
        if zero.offload_optimizer:
            zero.reset_cpu_buffers()
        self._gather_persistent(zero.persistent_parameters)

    @override
    def forget_unused(self) -> None:
        # DeepSpeed overwrites the buffer only where a gradient arrives: a parameter that this step
        # does not use would be stepped by its gradient of an earlier one.
        self._zero.grad_partitions_flat_buffer.zero_()

    @override
    def publish(self) -> None:
        zero = self._zero
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        self._gather_persistent(zero.persistent_parameters)

    @override
    def frozen_cut(self, name: str) -> Cut:
        parameter: Any = self._named[name]
        return Cut(tuple(parameter.ds_shape), 0, parameter.partition_numel())

    @override
    def frozen_kept(self, name: str) -> tuple[Tensor, int, int]:
        start, stop = self.frozen_cut(name).held_by(self._world.rank)
        parameter: Any = self._named[name]
        return parameter.ds_tensor.detach().view(-1).narrow(0, 0, stop - start), start, stop

    @override
    def publish_frozen(self, names: Iterable[str]) -> None:
        parameters: list[Any] = [self._named[name] for name in names]
        persistent = [parameter for parameter in parameters if parameter.ds_persist]
        if persistent:
            persistent[0].partition(persistent)  # frees the stale whole copy, keeps the pieces
            self._gather_persistent(persistent)

    @override
    def publish_averages(self, averages: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
        for twin, average in averages.items():
            self.frozen_kept(twin)[0].copy_(average)
        self.publish_frozen(averages)

    @staticmethod
    def _gather_persistent(parameters: Sequence[Any]) -> None:
        if parameters:
            parameters[0].all_gather(list(parameters))


def partition_of(module: nn.Module, engine: Any, optimizer: torch.optim.Optimizer, world: World) -> Partition:
    """The face that fits what DeepSpeed made of `module`."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        kind: type[Partition] = Replicated
    elif stage == 3:
        kind = Sharded
    else:
        kind = FlatBf16 if hasattr(engine.optimizer, "bf16_groups") else Flat
    return kind(module, engine, optimizer, world)
