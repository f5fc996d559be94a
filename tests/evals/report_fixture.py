"""Run directories as a real run writes them, with made-up but plausible figures: for tests, and for looking at it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.pack.arrays import write_image_arrays
from data_pipelines.pack.writer import PackConfig, no_progress
from evals.protocol import Result
from pretrain.config import Recipe
from pretrain.run.directory import RunDirectory
from pretrain.run.records import LineWriter

BEGAN = 1_780_000_000.0
STEPS = 600
BATCH = 256
SAMPLES = 4000
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_run(
    folder: Path,
    name: str = "mae_mnist",
    objective: str = "mae",
    *,
    seed: int = 0,
    finished: bool = True,
    evals: bool = True,
    summary: str = "A small masked autoencoder on digits",
    info: Mapping[str, Any] | None = None,
    data: str = "data/mnist",
) -> Path:
    """A run of 600 steps, killed at step 260 and resumed from its checkpoint at 200.

    Args:
        data: folder of the packed sets; see `write_data` for one that is there.
    """
    rng = np.random.default_rng(seed)
    run = RunDirectory(folder / name)
    run.create(_recipe(name, objective, summary, folder, data), {**_info(), **(info or {})})
    _attempts(run, finished)
    until = STEPS if finished else 430
    with LineWriter(run.root / "metrics.jsonl", attempt=1) as first:
        _metrics(first, range(10, 261, 10), objective, rng)
    with LineWriter(run.root / "metrics.jsonl", attempt=2) as second:
        _metrics(second, range(210, until + 1, 10), objective, rng)
    _ledger(run, until)
    _events(run, until, finished)
    with LineWriter(run.quarantine / "rank-0.jsonl", attempt=1) as quarantine:
        bad = {"g": 31_232, "key": "0004711", "shard": "train-000002.tar", "reason": "cannot identify image file"}
        quarantine.write({**bad, "served": [0, 2, 12]})
    if evals:
        _evals(run, objective, data, until)
        _sketches(run, objective, rng, until)
    return run.root


def write_young_run(folder: Path, name: str = "young") -> Path:
    """A run that was set up and has not done a step."""
    run = RunDirectory(folder / name)
    run.create(_recipe(name, "masked_lm", "", folder), _info())
    return run.root


def write_data(folder: Path, count: int = 120) -> str:
    """Packed digits, half of them for validation; what `write_run` takes as `data`."""
    rows = [(f"{row:04d}", image, int(label)) for row, (image, label) in enumerate(zip(*digits(count), strict=True))]
    write_image_arrays(
        folder,
        {"train": rows[: count // 2], "val": rows[count // 2 :]},
        PackConfig(samples_per_shard=16),
        name="digits",
        source="scikit-learn",
        classes=CLASSES,
        progress=no_progress,
    )
    return str(folder)


def write_export(root: Path, step: int = 600) -> Path:
    """An encoder as an export holds it, never trained."""
    from transformers import ViTConfig, ViTModel

    folder = RunDirectory(root).exports / f"step-{step:08d}"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=28, patch_size=7, num_channels=1, **small)).save_pretrained(folder)
    preprocessor = {"image_size": 28, "channels": 1, "mean": [0.5], "std": [0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def _recipe(name: str, objective: str, summary: str, folder: Path, data: str = "data/mnist") -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "summary": summary,
            "ran_here": True,
            "objective": {"name": objective, "encoder": {"architecture": "vit", "width": 96, "depth": 4}},
            "data": {"path": f"{data}/train", "validation": f"{data}/val", "num_lanes": 256},
            "train": {"global_batch": BATCH, "steps": STEPS},
            "optim": {"base_lr": 1e-3, "warmup": 0.1},
            "evals": [{"name": "linear_probe"}, {"name": "knn"}],
            "runs": str(folder.name),
        }
    )


def _info() -> dict[str, Any]:
    return {
        "steps": STEPS,
        "parameters": 1_243_904,
        "flops_per_sample": 9.3e7,
        "facts": {"channels": 1, "image_size": [28, 28], "vocabulary_size": None},
        "data": {"mnist": "9f8a1c0de2b7467f8a1c0de2b7467f11"},
        "data_paths": {"mnist": "data/mnist/train"},
        "samples": SAMPLES,
        "lanes": {"mnist": 256},
        "code": {"version": "0.1.0", "commit": "5c508e489622bbc1a5227b5e62ea4c8e17661c9e", "changes": "false"},
        "environment": {"python": "3.11.2", "machine": "x86_64", "torch": "2.12.0", "deepspeed": "0.19.1"},
    }


def _attempts(run: RunDirectory, finished: bool) -> None:
    run.attempts_folder.mkdir()
    where = {"host": "node-17", "process": {"space": "another boot"}, "world_size": 2, "period_s": 2.0}
    first = {**where, "attempt": 1, "began_at_step": 0, "beat": 61, "status": "running", "pid": 4242, "began": BEGAN}
    second = {**where, "attempt": 2, "began_at_step": 200, "beat": 99, "pid": 5151, "began": BEGAN + 140}
    second |= {"status": "ended", "exit_code": 0, "message": ""}
    if not finished:
        second |= {"exit_code": 85, "message": "saved at step 430 after SIGUSR2; start again to go on", "job": "118201"}
    for number, record in enumerate((first, second), start=1):
        (run.attempts_folder / f"{number}.json").write_text(json.dumps(record))


def _metrics(writer: LineWriter, steps: range, objective: str, rng: np.random.Generator) -> None:
    for step in steps:
        done = step / STEPS
        noise = rng.normal(size=8)
        floor, height = (0.28, 0.75) if objective == "mae" else (1.9, 3.6)
        loss = floor + height * np.exp(-5 * done) + 0.02 * height * noise[0]
        warm = min(1.0, done / 0.1)
        line: dict[str, float] = {
            "loss": loss,
            "lr": 1e-3 * warm * 0.5 * (1 + np.cos(np.pi * max(0.0, (done - 0.1) / 0.9))),
            "grad_norm": float(np.exp(0.4 - 1.6 * done + 0.25 * noise[1])) * (14 if step == 330 else 1),
            "samples_per_s": (1320 + 40 * noise[2]) * (0.55 if step in (10, 210) else 1),
            "tflops_per_rank": 0.061 + 0.002 * noise[2],
            "data_wait": float(abs(0.03 + 0.01 * noise[3])),
            "memory_gib": 1.31 + 0.02 * done,
            "update_ratio": 0.004 * warm * (1.05 - done),
            "replaced": 1.0,
            "skipped": 0.0,
        }
        if step % 20 == 0:
            line |= {
                "effective_rank": 21 + 58 * (1 - np.exp(-4 * done)) + noise[4],
                "embedding_dimensions": 96.0,
                "embedding_std": 0.35 + 0.3 * done + 0.01 * noise[5],
                "uniformity": -1.1 - 1.6 * (1 - np.exp(-5 * done)) + 0.03 * noise[6],
            }
        if objective == "info_nce":
            line["alignment"] = 0.62 * np.exp(-3 * done) + 0.25 + 0.01 * noise[7]
            line["positive_energy"] = 0.55 * np.exp(-4 * done) + 0.12 + 0.01 * noise[7]
            line["contrastive_energy"] = 0.62 + 0.4 * (1 - np.exp(-4 * done)) + 0.01 * noise[6]
            line["contrast_accuracy"] = 1 - 0.95 * np.exp(-4 * done) + 0.01 * noise[7]
        if step % 100 == 0:
            line |= {"validation_loss": loss * 1.02, "knn": 0.88 + 0.07 * done, "probe": 0.86 + 0.09 * done}
        writer.write({"step": step, "time": BEGAN + step / 5, **{key: float(value) for key, value in line.items()}})


def _ledger(run: RunDirectory, until: int) -> None:
    with LineWriter(run.root / "ledger.jsonl", attempt=2) as ledger:
        for step in range(1, until + 1):
            ledger.write(
                {
                    "step": step,
                    "position": step * BATCH,
                    "total": f"{step * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}",
                }
            )


def _events(run: RunDirectory, until: int, finished: bool) -> None:
    path = run.root / "events.jsonl"
    with LineWriter(path, attempt=1) as first:
        _event(first, 0, "start", f"run runs/{run.name}: {STEPS} steps on 2 rank(s)")
        _event(first, 120, "starvation", "41% of the time goes into waiting for data; raise data.workers")
        _event(first, 122, "quarantine", "1 unreadable sample(s) replaced")
        for step in (100, 200):
            _event(first, step, "checkpoint", "")
    with LineWriter(path, attempt=2) as second:
        _event(second, 200, "resume", f"resumed at step 200 of {STEPS} (attempt 2)")
        for step in range(300, until + 1, 100):
            _event(second, step, "checkpoint", "")
        if finished:
            _event(second, STEPS, "end", f"done: {STEPS} steps, {STEPS * BATCH} samples, 1 replaced")


def _event(writer: LineWriter, step: int, kind: str, words: str) -> None:
    writer.write({"step": step, "time": BEGAN + step / 5, "kind": kind, "words": words})


def _evals(run: RunDirectory, objective: str, data: str, until: int) -> None:
    probe_raw = {"top1@10": 0.745, "top1_std@10": 0.008, "top1@100": 0.881, "top1_std@100": 0.003, "top1@all": 0.896}
    probe_init = {"top1@10": 0.773, "top1_std@10": 0.007, "top1@100": 0.888, "top1_std@100": 0.004, "top1@all": 0.910}
    top = [0.801, 0.919, 0.934] if objective == "mae" else [0.937, 0.961, 0.958]
    for step in range(200, until + 1, 200):
        grown = 1 - np.exp(-step / 180)
        values = [0.97 * probe_raw[f"top1@{budget}"] for budget in ("10", "100", "all")]
        values = [low + (high - low) * grown for low, high in zip(values, top, strict=True)]
        probe = {
            "top1@10": values[0],
            "top1_std@10": 0.006,
            "top1@100": values[1],
            "top1_std@100": 0.002,
            "top1@all": values[2],
        }
        kinds = {f"cls.{name}": value - 0.02 for name, value in probe.items() if "std" not in name}
        settings = {"budgets": [10, 100], "repeats": 5, "l2_grid": [10.0, 3.16, 1.0, 0.316, 0.1, 1e-5]}
        _result(run, step, "linear_probe", probe | kinds, {"raw": probe_raw, "random_init": probe_init}, settings, data)
        knn = {
            "top1@k1": 0.93,
            "weighted@k1": 0.93,
            "top1@k10": 0.89 + 0.05 * grown,
            "weighted@k10": 0.9 + 0.05 * grown,
        }
        raw = {"top1@k1": 0.899, "weighted@k1": 0.899, "top1@k10": 0.893, "weighted@k10": 0.901}
        controls = {"raw": raw, "random_init": {name: value + 0.003 for name, value in raw.items()}}
        _result(run, step, "knn", knn, controls, {"k": [1, 10], "temperature": 0.07}, data)


def _result(
    run: RunDirectory,
    step: int,
    name: str,
    metrics: Mapping[str, float],
    controls: dict[str, dict[str, float]],
    settings: Mapping[str, Any],
    data: str,
) -> None:
    sets = {"train": ("mnist", "train", 4000), "test": ("mnist-val", "val", 1000)}
    result = Result(
        name=name,
        protocol=f"{name}/1",
        run=run.name,
        step=step,
        metrics=dict(metrics),
        controls=controls,
        pictures={},
        config={"data": {"train": f"{data}/train", "test": f"{data}/val"}, **settings},
        data={
            role: {"name": of, "path": f"{data}/{folder}", "digest": f"{samples:032x}", "samples": samples}
            for role, (of, folder, samples) in sets.items()
        },
        checkpoint=f"{step:032x}",
        code="0.1.0",
        seconds=12.5,
        created=BEGAN + 200,
    )
    folder = run.evals / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-0f3a9c2b71d4e5f6.json").write_text(result.model_dump_json())


def digits(count: int, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, side, side) uint8 and their classes, from scikit-learn's own digits."""
    from sklearn.datasets import load_digits

    packaged = load_digits()
    small = (packaged.images[:count] * 15.9).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in small]
    return np.stack(large), packaged.target[:count].astype(np.int64)


def _sketches(run: RunDirectory, objective: str, rng: np.random.Generator, until: int) -> None:
    images, _ = digits(8)
    for step in range(100, until + 1, 100):
        rows = (
            [images, *_masked_and_painted(images, step, rng)]
            if objective == "mae"
            else [images, np.roll(images, 2, axis=2)]
        )
        name = "reconstructions" if objective == "mae" else "views"
        path = run.sketches / f"step-{step:08d}" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = np.concatenate(
            [
                np.concatenate([np.pad(one, ((0, 1), (0, 1)), constant_values=255) for one in row], axis=1)
                for row in rows
            ]
        )
        Image.fromarray(np.repeat(table[..., None], 3, axis=2)).save(path)


def _masked_and_painted(images: np.ndarray, step: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.kron(rng.random((len(images), 7, 7)) < 0.75, np.ones((4, 4), dtype=bool))
    blurred = np.stack(
        [np.asarray(Image.fromarray(one).resize((7, 7)).resize(one.shape, Image.Resampling.BICUBIC)) for one in images]
    )
    share = min(1.0, step / 400)
    painted = np.where(
        hidden, (share * (0.5 * blurred + 0.5 * images) + (1 - share) * images.mean()).astype(np.uint8), images
    )
    return np.where(hidden, 96, images).astype(np.uint8), painted
