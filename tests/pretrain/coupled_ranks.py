"""One rank of a coupled micro step: what `test_gather` and `test_norms` compare over world sizes.

Run as `python -m tests.pretrain.coupled_ranks RANK WORLD_SIZE RENDEZVOUS OUT`; every rank computes all cases in one
start and rank 0 saves their results, summed or put together over ranks, in safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from data_pipelines.batch import Batch
from pretrain.collectives.gather import gather, gather_constant, world_size
from pretrain.collectives.norms import couple_batch_norms
from pretrain.objective import DataFacts
from pretrain.objectives import build
from tests.networks import HEAD, RESNET

NUM_ROWS = 16
SIMCLR = {"name": "info_nce", "encoder": RESNET, "projector": HEAD}
MOCO = {**SIMCLR, "predictor": HEAD, "target_momentum": 0.99, "queue_size": 24}


def share(rows: Tensor, rank: int) -> Tensor:
    """Rows of a rank, as the loader deals them out."""
    return rows[rank :: world_size()]


def whole(rows: Tensor) -> Tensor:
    """The rows of all ranks in their global order."""
    return gather_constant(rows).unflatten(0, (world_size(), -1)).transpose(0, 1).flatten(0, 1)


def summed(value: Tensor) -> Tensor:
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather_case(rank: int) -> dict[str, Tensor]:
    """A loss in which every rank weighs the rows of all ranks, each rank by another number."""
    rows = share(torch.randn(NUM_ROWS, 3, generator=torch.Generator().manual_seed(1)), rank).requires_grad_()
    slots = share(torch.arange(1.0, NUM_ROWS + 1), rank)
    loss = slots.sum() * (gather(rows).square() * gather_constant(slots)[:, None]).sum()
    loss.backward()
    assert rows.grad is not None
    return {"gather.loss": summed(loss), "gather.grad": whole(rows.grad)}


def norm_case(rank: int) -> dict[str, Tensor]:
    """Two training steps of a convolution and its batch norm, with a loss that weighs rows unevenly."""
    torch.manual_seed(2)
    network = couple_batch_norms(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(16))
    )
    images = 3 + 2 * torch.randn(NUM_ROWS, 2, 4, 4)
    weights = torch.randn(NUM_ROWS, 16)
    own = share(images, rank).clone().requires_grad_()
    for _ in range(2):
        output = network(own)
        (output * share(weights, rank)).sum().backward()
    assert own.grad is not None
    found = {f"norm.grad.{name}": summed(p.grad) for name, p in network.named_parameters() if p.grad is not None}
    buffers = {f"norm.buffer.{name}": b.clone() for name, b in network.named_buffers()}
    for name, buffer in buffers.items():
        assert torch.equal(summed(buffer), buffer * world_size()), f"{name} differs between ranks"
    return {**found, **buffers, "norm.output": whole(output.detach()), "norm.input_grad": whole(own.grad)}


def objective_case(name: str, tree: Mapping[str, Any], rank: int) -> dict[str, Tensor]:
    """Loss, gradients and queue of two micro steps; one image stands twice in a batch."""
    objective = build(tree, DataFacts(channels=1, image_size=(12, 12)), seed=3)
    losses = []
    for micro in range(2):
        output = objective(own_batch(micro, rank))
        output.loss.backward()
        losses.append(summed(output.loss))
    objective.after_step(1)
    found = {f"{name}.grad.{n}": summed(p.grad) for n, p in objective.named_parameters() if p.grad is not None}
    buffers = {f"{name}.buffer.{n}": b.clone() for n, b in objective.named_buffers()}
    energies = {f"{name}.energy.{n}": whole(energy) for n, energy in output.energies.items()}
    return {**found, **buffers, **energies, f"{name}.loss": torch.stack(losses)}


def own_batch(micro: int, rank: int) -> Batch:
    draw = torch.Generator().manual_seed(4 + micro)
    views = torch.randn(2, NUM_ROWS, 1, 12, 12, generator=draw)
    views[:, 7] = views[:, 2]
    slots = torch.arange(NUM_ROWS) + micro * NUM_ROWS
    key_hash = slots.clone()
    key_hash[7] = key_hash[2]
    rows = share(slots, rank)
    return Batch(
        fields={"view0": share(views[0], rank), "view1": share(views[1], rank)},
        keys=tuple(map(str, rows.tolist())),
        positions=rows,
        weight=torch.ones(len(rows)),
        key_hash=share(key_hash, rank),
    )


def all_cases(rank: int) -> dict[str, Tensor]:
    """Results by name, equal at every world size."""
    torch.set_num_threads(1)
    cases: list[Callable[[int], dict[str, Tensor]]] = [gather_case, norm_case]
    found = {name: value for case in cases for name, value in case(rank).items()}
    return {**found, **objective_case("simclr", SIMCLR, rank), **objective_case("moco", MOCO, rank)}


def main(rank: int, ranks: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    found = all_cases(rank)
    if rank == 0:
        save_file({name: value.contiguous() for name, value in found.items()}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
