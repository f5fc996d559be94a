"""What `benchmarks/gpu.sh` runs: parity, then two published recipes on data made here, on one device.

MFU is the objective's own count of matrix FLOPs a second over the rate of a large bf16 product measured first.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import engine as peers  # the file beside this one
import numpy as np
import torch
from PIL import Image

from data_pipelines.batch import Batch
from pretrain.objectives import build
from pretrain.run.directory import RunDirectory

STEPS, ROWS, LR, TOLERANCE = 20, 8, 1e-3, 1e-3
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
DRY = {
    "mae_vitb16": {"encoder": SMALL, "decoder": SMALL, "image_size": 32},
    "bert_base": {"encoder": SMALL},
}


def parity(device: torch.device) -> dict[str, float]:
    """Largest relative difference of the loss from a plain loop on the CPU in 20 fp32 steps, by network and stage."""
    from pretrain.config import EngineConfig, Optim, Train
    from pretrain.distributed import World
    from pretrain.engine import Engine

    torch.backends.cudnn.allow_tf32 = False
    world = World.start(timeout_s=300)
    found = {}
    for name, tree in peers.OBJECTIVES.items():
        batches = [peers.batch_of(name, seed, ROWS) for seed in range(STEPS)]
        expected = plain_losses(name, batches)
        for stage in (0, 1, 2, 3):
            config = EngineConfig.model_validate({"zero_stage": stage})
            objective = build(tree, peers.FACTS[name], seed=0)
            engine = Engine(objective, config, Optim(weight_decay=0.0), Train(global_batch=ROWS), world)
            losses = []
            for batch in batches:
                stats = engine.accumulate([batch.to(device)])
                engine.apply(LR, 0.0)
                losses.append(stats.loss_sum / stats.rows)
            found[f"{name}, ZeRO {stage}"] = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    world.stop()
    return found


def plain_losses(name: str, batches: list[Batch]) -> list[float]:
    """The loop that one would write by hand."""
    objective = build(peers.OBJECTIVES[name], peers.FACTS[name], seed=0)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for batch in map(objective.view.batch, batches):
        optimizer.zero_grad()
        loss = objective(batch).loss / objective.rows(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def matmul_tflops(device: torch.device, side: int) -> float:
    """Of a bf16 product of two square matrices of random numbers, the best of five."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / 10)
    return 2 * side**3 / best / 1e12


def make_data(folder: Path, images: int, lines: int) -> None:
    """A packed set of JPEGs of 500 x 375 and one of text rows of 512 tokens."""
    rng = np.random.default_rng(0)
    pictures, text = folder / "pictures", folder / "text"
    for name in (pictures / "any", text):
        name.mkdir(parents=True)
    for number in range(images):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        grain = rng.integers(-12, 13, (375, 500, 3))
        picture = Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8))
        bytes_ = io.BytesIO()
        picture.save(bytes_, format="JPEG", quality=85)
        (pictures / "any" / f"{number:06d}.jpg").write_bytes(bytes_.getvalue())
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(3000)]
    (text / "all.txt").write_text("\n\n".join(" ".join(rng.choice(words, 300)) for _ in range(lines)))
    thalweg("data", "pack", "imagefolder", str(pictures), str(folder / "images"))
    thalweg("data", "pack", "text", str(text), str(folder / "rows"), "vocabulary_size=8192", "row_tokens=512")


def speed(recipe: str, folder: Path, data: str, batch: int, steps: int, dry: bool, matmul: float) -> dict[str, float]:
    """Of a recipe's own network and precision, by the figures its run logs; the first half is warm-up."""
    overrides = {
        "runs": folder / "runs", "data.path": folder / data / "train", "data.validation": "null",
        "data.workers": 1 if dry else 12, "train.global_batch": batch, "train.steps": steps, "train.epochs": "null",
        "monitor.log_every": max(1, steps // 10), "monitor.tensorboard": "false", "checkpoint.every": steps,
        "probe": "null", "evals": "[]",
    }  # fmt: skip
    changes = [f"{key}={value}" for key, value in overrides.items()]
    if dry:
        for group, keys in DRY[recipe].items():
            pairs = keys.items() if isinstance(keys, dict) else ()
            changes += [f"objective.{group}.{key}={value}" for key, value in pairs] or [f"objective.{group}={keys}"]
    thalweg("pretrain", recipe, *changes, "--ranks", "1")
    lines = RunDirectory(folder / "runs" / recipe).metrics()
    late = lines[len(lines) // 2 :]
    median = {
        key: statistics.median(line[key] for line in late) for key in ("samples_per_s", "tflops_per_rank", "data_wait")
    }
    memory = max(line["memory_gib"] for line in lines)
    return {**median, "mfu": median["tflops_per_rank"] / matmul, "memory_gib": memory, "global_batch": float(batch)}


def thalweg(*arguments: str) -> None:
    """A command that must succeed."""
    subprocess.run([sys.executable, "-m", "launch.cli", *arguments], check=True)


def main() -> int:
    """Everything, then a table and JSON; 1 where parity does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.dry:
        print("no GPU here; --dry walks the same path on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    result: dict[str, Any] = {"device": name, "dry": options.dry, "date": time.strftime("%Y-%m-%d")}
    result["parity"] = parity(device)
    matmul = result["matmul_tflops"] = matmul_tflops(device, 512 if options.dry else 8192)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images, lines, steps = (48, 40, 6) if options.dry else (4000, 4000, 100)
        make_data(folder, images, lines)
        for recipe, data, batch in (("mae_vitb16", "images", 512), ("bert_base", "rows", 64)):
            rows = 8 if options.dry else batch
            result[recipe] = speed(recipe, folder, data, rows, steps, options.dry, matmul)
    from pretrain.session import code_version, environment

    result |= {"versions": environment(), "code": code_version(), "tolerance": TOLERANCE}
    print(json.dumps(result, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.out}")
    return int(max(result["parity"].values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
