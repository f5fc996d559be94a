"""`init_from:`: start from the weights of another run, or of a transformers folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.base import UserError
from pretrain.checkpoint import CheckpointReader, newest_whole
from pretrain.checkpoint.manifest import NAME as MANIFEST
from pretrain.engine import Engine, Entry

_POSITIONS = re.compile(r"position_embeddings?|pos_embed")


@dataclass(frozen=True)
class Weights:
    """Whole tensors by name, read one at a time.

    Attributes:
        shapes: of each.
        read: the tensor of a name.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


@dataclass
class Taken:
    """What came of an initialization, by the names of the engine."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    interpolated: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def words(self, source: str) -> str:
        """One line for the log."""
        total = len(self.tensors) + len(self.misfits) + len(self.missing)
        parts = [f"init_from {source}: {len(self.tensors)} of {total} tensors taken"]
        for what, names in (
            ("interpolated", self.interpolated),
            ("of another shape, left as drawn", self.misfits),
            ("not there, left as drawn", self.missing),
            ("there, but unused", self.unused),
        ):
            if names:
                parts.append(f"{what}: {_some(names)}")
        return "; ".join(parts)


def initialize(engine: Engine, source: str) -> str:
    """Give the engine the weights of `source` where names and shapes fit; moments and steps start fresh.

    Args:
        source: a run's folder (its newest whole checkpoint), a checkpoint, or a transformers folder.

    Returns:
        One line that says what was taken, interpolated, and left.

    Raises:
        UserError: there is nothing at `source`, or nothing of it fits.
        CheckpointError: the checkpoint is damaged.
    """
    path = Path(source)
    catalogue = engine.catalogue()
    trained = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    if (path / "config.json").is_file():
        weights = rename_to_encoder(read_transformers(path), catalogue, engine.module.encoder().prefix)
    else:
        weights = read_checkpoint(path)
    taken = match(weights, catalogue, trained)
    if not taken.tensors:
        raise UserError(
            f"init_from={source}: none of its tensors fits; there: {_some(weights.shapes)}; here: {_some(catalogue)}"
        )
    engine.set_weights(taken.tensors)
    return taken.words(source)


def match(weights: Weights, catalogue: Mapping[str, Entry], trained: Iterable[str]) -> Taken:
    """Pair tensors by name; position embeddings of another length are interpolated."""
    taken, trained = Taken(), set(trained)
    for name, entry in catalogue.items():
        shape = entry.cut.shape
        if name not in weights.shapes:
            # A target encoder follows its source when it is not there itself.
            if entry.kinds != ("ema",):
                taken.missing.append(name)
        elif weights.shapes[name] == shape:
            taken.tensors[name] = weights.read(name)
        elif (
            _POSITIONS.search(name)
            and name in trained
            and (found := fit_positions(weights.read(name), shape)) is not None
        ):
            taken.tensors[name] = found
            taken.interpolated.append(f"{name} {[*weights.shapes[name]]} -> {[*shape]}")
        else:
            taken.misfits.append(f"{name} {[*weights.shapes[name]]}, here {[*shape]}")
    taken.unused = [name for name in weights.shapes if name not in catalogue]
    return taken


def fit_positions(table: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Learned positions for another number of places; None where there is no sound way.

    Args:
        table: (1, K + H * H, D) of an image, K leading tokens without a place; or (N, D) of a text.
        shape: wanted, of the same form.

    Returns:
        Images: the square grid, bicubic; leading tokens as they are. Texts: the first rows, when fewer are wanted.
    """
    if table.ndim != len(shape) or table.shape[-1] != shape[-1]:
        return None
    if table.ndim == 2:
        return table[: shape[0]].clone() if shape[0] <= table.shape[0] else None
    for leading in (0, 1, 2, 5):
        old, new = (math.isqrt(max(0, length - leading)) for length in (table.shape[1], shape[1]))
        if old and new and old * old + leading == table.shape[1] and new * new + leading == shape[1]:
            grid = table[:, leading:].reshape(1, old, old, -1).permute(0, 3, 1, 2).float()  # (1, D, H, H)
            grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
            return torch.cat([table[:, :leading].float(), grid.flatten(2).transpose(1, 2)], dim=1)
    return None


def read_checkpoint(path: Path) -> Weights:
    """Weights, targets and buffers of a checkpoint, or of the newest whole one of a run."""
    if (path / MANIFEST).is_file():
        reader = CheckpointReader(path)
        reader.verify()
    else:
        found, damaged = newest_whole(path / "checkpoints")
        if found is None:
            detail = f" ({'; '.join(damaged)})" if damaged else ""
            raise UserError(f"init_from={path}: neither a run, a checkpoint nor a transformers folder{detail}")
        reader = found
    kinds = {name: kind for kind in ("w", "ema", "buffer") for name in reader.names(kind)}
    shapes = {name: reader.manifest.tensors[name].shape for name in kinds}
    return Weights(shapes, lambda name: reader.read(name, kinds[name]).view(shapes[name]))


def read_transformers(folder: Path) -> Weights:
    """The encoder of a transformers folder under the names that its modules have in this version.

    transformers renames weights between its files and its modules, so its own loader reads them.
    What it does not know (a network of our own) is read as it lies in the file.

    Raises:
        UserError: no safetensors weights; pickled ones are not opened.
    """
    from transformers import CONFIG_MAPPING, AutoModel

    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"init_from={folder}: no safetensors file beside config.json; only safetensors weights are read"
        )
    if json.loads((folder / "config.json").read_text()).get("model_type") not in CONFIG_MAPPING:
        return read_safetensors(folder / "model.safetensors")
    model, found = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
    )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in found["missing_keys"]}
    return Weights({name: tuple(tensor.shape) for name, tensor in tensors.items()}, lambda name: tensors[name])


def read_safetensors(path: Path) -> Weights:
    """The tensors of one file."""
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    return Weights(shapes, file.get_tensor)


def rename_to_encoder(weights: Weights, catalogue: Mapping[str, Entry], prefix: str) -> Weights:
    """Put an encoder's names below `prefix`.

    A model with a head keeps its encoder under a name of its own ("vit.", "bert."), on either
    side: the spelling under which most names are found is taken.
    """
    heads = {name.split(".")[0] + "." for name in [*weights.shapes, *(n.removeprefix(prefix) for n in catalogue)]}
    spellings: list[Callable[[str], str]] = [lambda name: prefix + name]
    spellings += [lambda name, head=head: prefix + name.removeprefix(head) for head in sorted(heads)]  # type: ignore[misc]
    spellings += [lambda name, head=head: prefix + head + name for head in sorted(heads)]  # type: ignore[misc]
    best = max(spellings, key=lambda spell: sum(spell(name) in catalogue for name in weights.shapes))
    original = {best(name): name for name in weights.shapes}
    shapes = {new: weights.shapes[old] for new, old in original.items()}
    return Weights(shapes, lambda name: weights.read(original[name]))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
