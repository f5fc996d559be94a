"""Real ranks for the engine's tests: `launch` starts them, `main` is what each of them runs.

A start costs seconds, so one launch does all the checks of its world size.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import ROOT

STEPS, BAD_STEP, SAVED_AT = 20, 3, 8
STAGES = (0, 1, 2, 3)
LR = 1e-2


def launch(scenario: str, ranks: int, folder: Path, timeout_s: float = 600, module: str = __name__) -> None:
    """Run a scenario of `module` on `ranks` processes, and fail with their words if one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, scenario, str(folder)]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))
    }
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)
    assert not any(outputs), "ranks are to be silent:\n" + "\n".join(outputs)


def recipe(stage: int, precision: str = "fp32") -> tuple[Any, Any, Any]:
    """Two micro steps, two decay groups, layers of their own learning rate, clipping that bites."""
    from pretrain.config import EngineConfig, Optim, Train

    optim = Optim(weight_decay=0.1, clip_norm=0.4, layer_decay=0.9)
    train = Train(global_batch=16, accumulation=2)
    return EngineConfig.model_validate({"zero_stage": stage, "precision": precision}), optim, train


def build(world: Any, stage: int, precision: str = "fp32", objective: Any = None) -> Any:
    from pretrain.engine import Engine
    from tests.pretrain.toys import AutoEncoder

    return Engine(objective or AutoEncoder(ema=True, dropout=0.0), *recipe(stage, precision), world)


def step(engine: Any, number: int, bad: bool = False) -> tuple[float, float]:
    """One step as the loop takes it: mean loss and gradient norm over all ranks decide."""
    from tests.pretrain.toys import micro_batches, poison

    world = engine.world
    batches = micro_batches(number, recipe(0)[2], world.rank, world.world_size)
    if bad and world.rank == world.world_size - 1:
        batches[-1] = poison(batches[-1])
    stats = engine.accumulate(batches)
    loss_sum, rows, squared = world.sum(np.array([stats.loss_sum, stats.rows, stats.squared_grad_norm]))
    if np.isfinite([loss_sum, squared]).all():
        engine.apply(LR, number / STEPS)
    else:
        engine.skip()
    return loss_sum / rows, squared**0.5


def state_of(engine: Any) -> dict[str, torch.Tensor]:
    """A copy of all that this rank owns."""
    return {f"{s.name}|{s.kind}|{s.start}": s.tensor.clone() for s in engine.slices()}


def save(engine: Any, folder: Path, number: int) -> Path:
    from pretrain import checkpoint

    return checkpoint.save(folder, engine, engine.world, {"progress": {"step": number}}, attempt=1)


def train(world: Any, folder: Path) -> None:
    """20 steps at each stage, one of them bad; a checkpoint after 8 and at the end."""
    for precision, stage in [("fp32", stage) for stage in STAGES] + [("bf16", stage) for stage in STAGES]:
        engine = build(world, stage, precision)
        curve = []
        for number in range(STEPS):
            before = state_of(engine) if number == BAD_STEP else {}
            curve.append(step(engine, number, bad=number == BAD_STEP))
            if number == BAD_STEP:
                after = state_of(engine)
                assert before.keys() == after.keys()
                assert all(torch.equal(before[key], after[key]) for key in before), (
                    f"stage {stage}: skip changed the state"
                )
            if number + 1 in (SAVED_AT, STEPS):
                save(engine, folder / f"{precision}-{stage}", number + 1)
        if world.rank == 0:
            (folder / f"{precision}-{stage}" / "curve.json").write_text(json.dumps(curve))
        # Probes between steps must neither hang nor change anything.
        before = state_of(engine)
        look(engine, folder / f"{precision}-{stage}")
        assert all(torch.equal(before[key], value) for key, value in state_of(engine).items())
    if world.world_size == 2:
        disk_full(world, folder)
        shared_digests(world, folder)
        resume(world, folder)
    coupled(world, folder)


def look(engine: Any, folder: Path) -> None:
    from tests.pretrain.toys import make_batch

    output, rows = engine.evaluate(make_batch(range(1, 5)))
    features = engine.embed(make_batch(range(1, 5)))
    if engine.world.rank == 0:
        (folder / "look.json").write_text(json.dumps([float(output.loss) / rows, features.float().sum().item()]))


def resume(world: Any, folder: Path) -> None:
    """At the same world size and stage a resumed run has the same bits as one that was never stopped."""
    from pretrain.checkpoint import CheckpointReader, path_of

    for name in ("fp32-0", "fp32-1", "fp32-2", "fp32-3", "bf16-1", "bf16-2", "bf16-3"):
        precision, stage = name.split("-")
        engine = build(world, int(stage), precision)
        engine.load(CheckpointReader(path_of(folder / name, SAVED_AT)))
        for number in range(SAVED_AT, STEPS):
            step(engine, number)
        reader = CheckpointReader(path_of(folder / name, STEPS))
        for piece in engine.slices():
            saved = reader.read(piece.name, piece.kind, piece.start, piece.stop)
            assert torch.equal(piece.tensor, saved), f"{name}: {piece.name} {piece.kind} differs after a resume"


def elastic(world: Any, folder: Path) -> None:
    """Go on from the checkpoint of 2 ranks at ZeRO 2, here, at every stage."""
    from pretrain.checkpoint import CheckpointReader, path_of

    source = path_of(folder / "fp32-2", SAVED_AT)
    for stage in STAGES:
        engine = build(world, stage)
        engine.load(CheckpointReader(source))
        for number in range(SAVED_AT, STEPS):
            step(engine, number)
        save(engine, folder / f"elastic-{world.world_size}-{stage}", STEPS)
    engine = build(world, 1, "bf16")
    engine.load(CheckpointReader(source))
    loaded = CheckpointReader(source)
    assert all(torch.equal(s.tensor, loaded.read(s.name, s.kind, s.start, s.stop)) for s in engine.slices())


def coupled(world: Any, folder: Path) -> None:
    """An objective whose rows are coupled over ranks."""
    from tests.pretrain.toys import Coupled

    for stage in (0, 3):
        engine = build(world, stage, objective=Coupled())
        curve = [step(engine, number) for number in range(4)]
        if world.rank == 0:
            (folder / f"coupled-{world.world_size}-{stage}.json").write_text(json.dumps(curve))


def disk_full(world: Any, folder: Path) -> None:
    """One rank cannot write: all say so, nothing is left behind, and the next try works."""
    from pretrain.checkpoint import committed

    engine = build(world, 2)
    target = folder / "full"
    save(engine, target, 1)
    try:
        with file_size_limit(2000) if world.rank == 1 else contextlib.nullcontext():
            save(engine, target, 2)
    except OSError as error:
        assert "rank 1" in str(error.strerror), error
    else:
        raise AssertionError("a save that cannot be written went through")
    world.barrier()
    assert committed(target) == [1]
    assert [path.name for path in target.iterdir()] == ["step-00000001"]
    world.barrier()
    save(engine, target, 2)
    assert committed(target) == [1, 2]


def shared_digests(world: Any, folder: Path) -> None:
    """Each rank reads its share; damage that one of them finds is known to all."""
    from pretrain.checkpoint import newest_whole, path_of

    source, target = folder / "full", folder / "damaged"
    if world.rank == 0:
        shutil.copytree(source, target)
    world.barrier()
    reader, damaged = newest_whole(target, world)
    assert reader is not None and (reader.manifest.step, damaged) == (2, [])
    world.barrier()
    for name in ("rank-00000.safetensors", "rank-00001.safetensors", "state.json"):
        file = path_of(target, 2) / name
        whole = file.read_bytes()
        world.barrier()
        if world.rank == 0:
            file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        world.barrier()
        reader, damaged = newest_whole(target, world)
        assert reader is not None and reader.manifest.step == 1
        assert len(damaged) == 1 and str(file) in damaged[0]
        world.barrier()
        if world.rank == 0:
            file.write_bytes(whole)
        world.barrier()


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


SCENARIOS: dict[str, Callable[[Any, Path], None]] = {"train": train, "elastic": elastic}


def main(scenarios: dict[str, Callable[[Any, Path], None]]) -> None:
    from pretrain.distributed import World

    torch.set_num_threads(1)
    world = World.start(timeout_s=120)
    scenarios[sys.argv[1]](world, Path(sys.argv[2]))
    world.barrier()
    world.stop()


if __name__ == "__main__":
    main(SCENARIOS)
