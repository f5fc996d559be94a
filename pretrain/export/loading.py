"""Opening exports, and what users do with an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, VideoMAEModel, ViTModel

from data_pipelines.base import UserError, parse
from data_pipelines.hashing import mix
from data_pipelines.views.image import PlainImage
from pretrain.export.files import PREPROCESSOR, Network, quiet_transformers, weights_digest
from pretrain.networks.video import draw_video
from pretrain.networks.vision import feature_map, features
from pretrain.networks.vit import draw_vit
from pretrain.objectives import GROUP


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
        with quiet_transformers():
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
