"""The engine's step against DistributedDataParallel with AdamW: same network, same batches, on 2 CPU ranks.

    python benchmarks/engine.py [--pairs 7] [--steps 8] [--out benchmarks/results/engine.json]

Blocks of steps take turns (A B A B ...), so that whatever else the machine does falls on both alike; what counts is
the median of the pairs' ratios. Both sides run on the same ranks, in the same processes. The ratio of processor
time stands beside that of time: on a busy machine it wobbles less, and it leaves out waiting for the other rank.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch
from pretrain.objective import DataFacts, Objective
from pretrain.objectives import build

RANKS, ROWS, NUM_TOKENS, SIDE = 2, 64, 64, 32
LR = 1e-3
FACTS = {
    "vit": DataFacts(channels=3, image_size=(SIDE, SIDE)),
    "bert": DataFacts(
        vocabulary_size=4096, row_tokens=NUM_TOKENS, special_tokens={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    ),
}
BODY = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "vit": {
        "name": "mae",
        "encoder": {"architecture": "vit", "patch_size": 4, **BODY},
        "decoder": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384},
    },
    "bert": {
        "name": "masked_lm",
        "encoder": {
            "architecture": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **BODY
        },
    },
}  # fmt: skip


class LossOnly(nn.Module):
    """An objective as DistributedDataParallel wants it: a tensor in hand."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        """() sum over rows."""
        loss: Tensor = self.objective(batch).loss
        return loss


def batch_of(name: str, seed: int, rows: int = ROWS) -> Batch:
    """What a loader would give one rank."""
    draw = torch.Generator().manual_seed(seed)
    if name == "vit":
        num_patches = (SIDE // 4) ** 2
        order = torch.rand(rows, num_patches, generator=draw).argsort(dim=1)
        fields = {
            "image": torch.randint(0, 256, (rows, SIDE, SIDE, 3), generator=draw, dtype=torch.uint8),
            "mask": order < num_patches * 3 // 4,
        }
    else:
        tokens = torch.randint(5, 4096, (rows, NUM_TOKENS), generator=draw)
        asked = torch.rand(rows, NUM_TOKENS, generator=draw) < 0.15
        fields = {
            "tokens": tokens.masked_fill(asked, 4),
            "targets": torch.where(asked, tokens, -100),
            "attention": torch.ones_like(tokens),
            "positions": torch.arange(NUM_TOKENS).expand(rows, -1),
        }
    slots = torch.arange(rows)
    return Batch(fields, tuple(map(str, slots.tolist())), slots, torch.ones(rows), slots)


def our_step(name: str, world: Any, stage: int) -> Callable[[Batch], None]:
    """A step of the engine, as the loop takes it."""
    from pretrain.config import EngineConfig, Optim, Train
    from pretrain.engine import Engine

    train = Train(global_batch=ROWS * RANKS)
    objective = build(OBJECTIVES[name], FACTS[name], seed=0)
    engine = Engine(objective, EngineConfig.model_validate({"zero_stage": stage}), Optim(), train, world)

    def step(batch: Batch) -> None:
        engine.accumulate([batch])
        engine.apply(LR, 0.0)

    return step


def plain_step(name: str) -> Callable[[Batch], None]:
    """A step of the loop that one would write by hand; it too reads its loss, as any logging loop does."""
    objective = build(OBJECTIVES[name], FACTS[name], seed=0)
    model = nn.parallel.DistributedDataParallel(LossOnly(objective))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.05)

    def step(batch: Batch) -> None:
        prepared = objective.view.batch(batch)
        optimizer.zero_grad()
        loss = model(prepared) / objective.rows(prepared)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def compare(ours: Callable[[Batch], None], plain: Callable[[Batch], None], name: str, rank: int, options: Any) -> Any:
    """Medians over blocks and pairs of blocks."""
    batches = [batch_of(name, seed * RANKS + rank) for seed in range(options.steps)]

    def block(step: Callable[[Batch], None]) -> tuple[float, float]:
        torch.distributed.barrier()
        began, burnt = time.perf_counter(), time.process_time()
        for batch in batches:
            step(batch)
        return time.perf_counter() - began, time.process_time() - burnt

    for step in (ours, plain):
        block(step)
    pairs = [(block(ours), block(plain)) for _ in range(options.pairs)]
    ratios = sorted(a[0] / b[0] for a, b in pairs)
    return {
        "ours_ms": 1e3 * statistics.median(a[0] for a, _ in pairs) / options.steps,
        "ddp_ms": 1e3 * statistics.median(b[0] for _, b in pairs) / options.steps,
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "processor_ratio": statistics.median(a[1] / b[1] for a, b in pairs),
    }


def run_rank(options: argparse.Namespace) -> None:
    """One of the ranks; rank 0 writes the results."""
    from pretrain.distributed import World

    world = World.start(timeout_s=300)
    found = []
    for name in OBJECTIVES:
        for stage in (0, 1, 2):
            torch.manual_seed(0)
            figures = compare(our_step(name, world, stage), plain_step(name), name, world.rank, options)
            found.append({"network": name, "zero_stage": stage, **figures})
    if world.rank == 0:
        report(found, options)
    world.barrier()
    world.stop()


def report(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """A table, and the same as JSON."""
    from pretrain.session import environment

    print(f"{'network':8} {'ZeRO':>4} {'ours ms':>9} {'DDP ms':>9} {'ratio':>7} {'range':>16} {'processor':>10}")
    for line in found:
        low, high = line["ratio_range"]
        print(
            f"{line['network']:8} {line['zero_stage']:>4} {line['ours_ms']:9.1f} {line['ddp_ms']:9.1f} "
            f"{line['ratio']:7.3f} {low:7.3f} to {high:.3f} {line['processor_ratio']:10.3f}"
        )
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    about = {"versions": environment(), "machine": machine, "ranks": RANKS, "rows_a_rank": ROWS, "pairs": options.pairs}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "aim": 1.03, "results": found}, indent=1) + "\n")
    print(f"written to {options.out}")


def main() -> int:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="a block")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engine.json"))
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options)
        return 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)} for rank in range(RANKS)]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [subprocess.Popen([sys.executable, *sys.argv], env={**common, **place}) for place in places]
    return max(rank.wait() for rank in ranks)


if __name__ == "__main__":
    sys.exit(main())
