"""From a checkpoint to an export."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_pipelines.base import OtherModelError, UserError
from pretrain.checkpoint import CheckpointReader, newest_whole
from pretrain.export.files import PREPROCESSOR, PROVENANCE, Network, provenance, quiet_transformers
from pretrain.objective import DataFacts, Encoder, Objective
from pretrain.objectives import build
from pretrain.run.directory import RunDirectory
from pretrain.tokenizer_files import tokenizer_files

MANIFEST = "MANIFEST.json"


def find_checkpoint(path: str | Path) -> Path:
    """The folder of a committed checkpoint.

    Args:
        path: that folder, or a run's, which means the run's newest whole checkpoint.

    Raises:
        UserError: there is none.
    """
    given = Path(path)
    if (given / MANIFEST).is_file():
        return given
    if (given / "run.json").is_file():
        reader, damaged = newest_whole(RunDirectory(given).checkpoints)
        if reader is None:
            reason = f"; damaged: {'; '.join(damaged)}" if damaged else ""
            raise UserError(f"run {given} has no whole checkpoint yet{reason}")
        return Path(reader.path)
    if given.is_dir():
        raise UserError(f"{path} is neither a run nor a committed checkpoint (no run.json, no {MANIFEST} in it)")
    raise UserError(f"checkpoint {path} does not exist; want runs/NAME or runs/NAME/checkpoints/step-N")


def checkpoint_digest(checkpoint: Path) -> str:
    """32 hex digits of its manifest, which holds the digests of all its files."""
    return hashlib.blake2b((checkpoint / MANIFEST).read_bytes(), digest_size=16).hexdigest()


def export(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the encoder of a checkpoint in transformers' format.

    Two processes may export the same checkpoint to the same place at once: one of them wins, both are served.

    Args:
        checkpoint: see `find_checkpoint`; the run's config.yaml and run.json lie above it.
        out: folder to make.

    Returns:
        `out`.

    Raises:
        UserError: no such checkpoint, or `out` holds anything but an export of this very checkpoint.
        CheckpointError: the checkpoint is damaged, or (OtherModelError) of another model than its run.
    """
    source, out = find_checkpoint(checkpoint), Path(out)
    digest = checkpoint_digest(source)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        return _refuse_other(out, digest)
    reader, run = CheckpointReader(source), RunDirectory.open(source)
    encoder = trained_encoder(run, reader)
    origin = {
        "run": run.name,
        "step": int(source.name.rpartition("-")[2]),
        "checkpoint": digest,
        "objective": run.recipe().objective["name"],
        "version": version("thalweg"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        staged = Path(staging) / "export"
        write_encoder(encoder, origin, staged, tokenizer_files(run))
        try:
            staged.rename(out)
        except OSError:  # another process was faster
            return _refuse_other(out, digest)
    return out


def trained_encoder(run: RunDirectory, reader: CheckpointReader) -> Encoder:
    """The objective's encoder with the weights of a checkpoint; nothing but the encoder takes memory."""
    recipe, facts = run.recipe(), DataFacts.from_plain(run.info()["facts"])
    with torch.device("meta"):
        objective = build(recipe.objective, facts, recipe.seed)
        encoder = objective.encoder()
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in _persistent(encoder.module).items()}
    weights = _Weights(reader, objective)
    encoder.module.to_empty(device="cpu")
    empty = _persistent(encoder.module)
    with torch.no_grad():
        for name, (shape, _) in wanted.items():
            empty[name].copy_(weights.read(encoder.prefix + name, shape))
    if isinstance(encoder.module, PreTrainedModel):
        encoder.module.tie_weights()
    return encoder


class _Weights:
    """Reads a tensor by name, whatever kind of state it is."""

    def __init__(self, reader: CheckpointReader, objective: Objective) -> None:
        self._reader = reader
        self._targets = tuple(f"{target.target}." for target in objective.targets)
        self._shapes = {kind: reader.names(kind) for kind in ("w", "ema", "buffer")}

    def read(self, name: str, shape: torch.Size) -> Tensor:
        # a target encoder's own w is the rounded copy that the forward pass reads; ema is the fp32 original
        kinds = ("ema", "w", "buffer") if name.startswith(self._targets) else ("w", "buffer")
        for kind in kinds:
            if name in self._shapes[kind]:
                if tuple(self._shapes[kind][name]) != tuple(shape):
                    break
                return self._reader.read(name, kind).reshape(shape)
        raise OtherModelError(
            f"checkpoint {self._reader.path} is of another model: the recipe beside it wants {name} {[*shape]}; "
            f"put it back to the run that wrote it"
        )


def _persistent(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, tied ones once."""
    parameters = dict(module.named_parameters())
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - parameters.keys()
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if name not in tied}


def write_encoder(
    encoder: Encoder, origin: Mapping[str, Any], folder: Path, beside: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Write a network as an export.

    Args:
        origin: what `provenance` shall say of it.
        folder: to make.
        beside: further files by name.
    """
    if isinstance(encoder.module, PreTrainedModel):
        with quiet_transformers():
            encoder.module.save_pretrained(folder)
    else:
        _write_own(encoder.module, folder)
    preprocessor = {**encoder.preprocessor, PROVENANCE: origin}
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n")
    for name, content in beside.items():
        (folder / name).write_bytes(content)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the folder's name must never stand over unwritten bytes


def _write_own(module: nn.Module, folder: Path) -> None:
    network, kind = cast(Network, module), type(module)
    folder.mkdir()
    description = {
        "network": f"{kind.__module__}:{kind.__qualname__}",
        "settings": network.config.model_dump(mode="json"),
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
    save_file(module.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def _refuse_other(out: Path, digest: str) -> Path:
    """`out` if it is the export of the checkpoint of that digest."""
    held = provenance(out)
    if held.get("checkpoint") != digest:
        what = f"the export of {held['run']}, step {held['step']}" if held else "other files"
        raise UserError(f"{out} already holds {what}; name a new folder")
    return out
