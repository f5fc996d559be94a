"""Exports: the encoder of a checkpoint as a folder that plain `transformers` opens.

    config.json, model.safetensors   `AutoModel.from_pretrained(folder)`; networks of our own: `load_encoder(folder)`
    preprocessor_config.json         what an input needs before the network sees it, and where the weights come from
    tokenizer.json                   of a text network, where its data still is: `AutoTokenizer.from_pretrained(folder)`

An export is made on a CPU, reads only the encoder's part of the checkpoint, and appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, VideoMAEModel, ViTModel
from transformers.utils import logging

from data_pipelines.base import OtherModelError, Strict, UserError, parse
from data_pipelines.hashing import mix
from data_pipelines.views.image import PlainImage
from pretrain.checkpoint import CheckpointReader, newest_whole
from pretrain.networks.video import draw_video
from pretrain.networks.vision import Features, feature_map, features
from pretrain.networks.vit import draw_vit
from pretrain.objective import DataFacts, Encoder, Objective
from pretrain.objectives import GROUP, build
from pretrain.run.directory import RunDirectory
from pretrain.tokenizer_files import tokenizer_files

MANIFEST = "MANIFEST.json"
PREPROCESSOR = "preprocessor_config.json"
PROVENANCE = "thalweg"
"""Key of `preprocessor_config.json` under which an export says where it comes from."""


class Network(Protocol):
    """A network that transformers does not know; `type(network)(network.config)` draws it anew."""

    config: Strict

    def features(self, images: Tensor) -> Features:
        """Features of normalised images (B, C, H, W)."""
        ...


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
        with _quiet():
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


def provenance(folder: Path) -> dict[str, Any]:
    """Run, step and checkpoint that an export comes from; empty where it is not ours."""
    try:
        found: dict[str, Any] = json.loads((folder / PREPROCESSOR).read_text()).get(PROVENANCE, {})
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found


def weights_digest(folder: Path) -> str:
    """32 hex digits of an export's architecture and weights."""
    hasher = xxhash.xxh3_128()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            while block := file.read(2**24):
                hasher.update(block)
    return hasher.hexdigest()


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder as its users see it, in eval mode.

    Attributes:
        module: a transformers model, or a `Network` of our own.
        preprocessor: plain data of `preprocessor_config.json`.
        folder: where it was opened.
    """

    module: nn.Module
    preprocessor: Mapping[str, Any]
    folder: Path

    @cached_property
    def view(self) -> PlainImage:
        """The view of a sample that the network was made for.

        Raises:
            UserError: the network reads no images, or its folder does not say how.
        """
        known = {name: self.preprocessor[name] for name in PlainImage.model_fields if name in self.preprocessor}
        if "image_size" not in known:
            raise UserError(f"export {self.folder}: no image_size in {PREPROCESSOR}; its encoder reads no images")
        return parse(PlainImage, known, f"{self.folder}/{PREPROCESSOR}")

    @torch.inference_mode()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features by kind, float32, of normalised images.

        Args:
            images: (B, C, H, W), on the network's device.

        Returns:
            "pooled" (B, D), the mean over patches or the map; "cls" (B, D) where there is a class token.
        """
        return features_by_kind(self.module, images)

    def feature_map(self, images: Tensor) -> Tensor:
        """Features by place of normalised images; gradients flow where the network's parameters want them.

        Args:
            images: (B, C, H, W) of the view's size, on the network's device.

        Returns:
            (B, D, h, w) float32.

        Raises:
            UserError: the network has none.
        """
        if not isinstance(self.module, PreTrainedModel):
            raise UserError(f"export {self.folder}: {type(self.module).__name__} gives no features by place")
        return feature_map(self.module, images).float()

    def to(self, device: torch.device | str) -> LoadedEncoder:
        """The same encoder on `device`."""
        self.module.to(device)
        return self

    @property
    def digest(self) -> str:
        """Names architecture and weights."""
        return weights_digest(self.folder)

    def network(self) -> dict[str, Any]:
        """The architecture as plain data, without weights and versions."""
        if not isinstance(self.module, PreTrainedModel):
            settings: dict[str, Any] = cast(Network, self.module).config.model_dump(mode="json")
            return {"network": type(self.module).__qualname__, **settings}
        config = self.module.config.to_diff_dict()
        return {key: value for key, value in config.items() if key not in ("transformers_version", "dtype")}

    def random_init(self, seed: int) -> LoadedEncoder:
        """The same network untrained, drawn by `seed` alone, as an objective would draw it."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(mix(seed, "random_init")) >> 1)
            module = _redraw(self.module)
        return LoadedEncoder(_frozen(module), self.preprocessor, self.folder)


def features_by_kind(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """See `LoadedEncoder.features`; gradients flow where the network's parameters want them."""
    known = isinstance(module, PreTrainedModel)
    found = features(module, images) if known else cast(Network, module).features(images)
    kinds = {"cls": found.cls, "pooled": found.pooled}
    return {kind: tensor.float() for kind, tensor in kinds.items() if tensor is not None}


def _redraw(module: nn.Module) -> nn.Module:
    if not isinstance(module, PreTrainedModel):
        return type(module)(cast(Network, module).config)
    drawn: PreTrainedModel = AutoModel.from_config(module.config, dtype=torch.float32)
    if isinstance(drawn, ViTModel):
        draw_vit(drawn)
    elif isinstance(drawn, VideoMAEModel):
        draw_video(drawn)
    return drawn


def _frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False).eval()


def load_encoder(folder: str | Path) -> LoadedEncoder:
    """Open an export.

    Raises:
        UserError: the folder is no export, or one that this program cannot read.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        preprocessor = json.loads((folder / PREPROCESSOR).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no export: no {Path(error.filename).name} in it; see `thalweg export`") from None
    except (ValueError, OSError) as error:
        raise UserError(f"export {folder} cannot be read: {error}") from None
    module = _load_own(config, folder) if "network" in config else _load_transformers(folder)
    return LoadedEncoder(_frozen(module), preprocessor, folder)


def _load_transformers(folder: Path) -> nn.Module:
    try:
        with _quiet():
            module, report = AutoModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"export {folder} cannot be opened: {' '.join(str(error).split())[:300]}") from None
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]  # heads we never read
    if missing:
        raise UserError(f"export {folder} lacks {len(missing)} weights of its network, among them {min(missing)}")
    loaded: nn.Module = module
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its report on heads that were left out on purpose."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_own(config: Mapping[str, Any], folder: Path) -> nn.Module:
    module_name, _, class_name = config["network"].partition(":")
    if module_name.partition(".")[0] not in {"pretrain", *_third_parties()}:
        raise UserError(
            f"export {folder}: its network {config['network']} is of no package that registers objectives here"
        )
    try:
        kind = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError):
        raise UserError(f"export {folder}: its network {config['network']} is not installed here") from None
    module: nn.Module = kind(parse(kind.Config, config["settings"], f"{folder}/config.json"))
    module.load_state_dict(load_file(folder / "model.safetensors"))
    return module


def _third_parties() -> set[str]:
    """Packages whose objectives are registered: an export may name networks of these, and of no other code."""
    return {point.module.partition(".")[0] for point in entry_points(group=GROUP)}
