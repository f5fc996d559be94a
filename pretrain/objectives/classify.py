"""Classes from labels: linear heads on an exported encoder, which stays frozen or is trained with them.

Not self-supervised: this is how an encoder is judged (`evals.linear_probe_mae`, `evals.finetune`), as a run like any
other, with its order, ranks and resume.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTModel

from data_pipelines.base import Strict, UserError
from data_pipelines.batch import Batch
from data_pipelines.views.image import Crop
from data_pipelines.views.labelled import LabelledCrop
from data_pipelines.views.mixing import Mixing
from data_pipelines.views.rand_augment import RandAugment
from pretrain.collectives.norms import GroupBatchNorm
from pretrain.export import LoadedEncoder, features_by_kind, load_encoder
from pretrain.networks.drop_path import drop_paths
from pretrain.networks.flops import forward_flops
from pretrain.objective import DataFacts, Encoder, Objective, Output


class Classify(Objective):
    """Cross-entropy of one or many linear heads that know nothing of each other."""

    class Config(Strict):
        """An encoder, its heads, and what they are shown."""

        encoder: str
        """Folder of an export."""
        classes: int = Field(gt=1)
        frozen: bool = True
        """Heads alone are trained; else the whole encoder too."""
        kinds: tuple[str, ...] | None = None
        """Features that get a head each, "cls" or "pooled"; every kind there is when unset."""
        lr_factors: tuple[float, ...] = Field((1.0,), min_length=1)
        """On the learning rate; each gets heads of its own."""
        batch_norm: bool = False
        """Without scale and shift, before each head, over all rows of a micro step."""
        head_std: float = Field(0.01, gt=0)
        """Of the heads' first weights."""
        held_out: int = Field(0, ge=0)
        """One sample in so many, by the hash of its key, teaches nothing: heads can be chosen by it. 0 holds none."""
        label_smoothing: float = Field(0.0, ge=0, lt=1)
        drop_path: float = Field(0.0, ge=0, lt=1)
        """Of the last layer; see `networks.drop_path`."""
        crop: Crop = Crop(area=(0.08, 1.0))
        rand_augment: RandAugment | None = None
        mixing: Mixing | None = None

    coupling: ClassVar[Literal["sample", "micro"]] = "micro"

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config = config
        loaded = load_encoder(config.encoder)
        plain = loaded.view
        if facts.channels is None:
            raise UserError("recipe objective: the data holds no images to classify")
        self.view: LabelledCrop = LabelledCrop(
            **plain.model_dump(include={"image_size", "channels", "mean", "std"}),
            **{name: getattr(config, name) for name in ("classes", "crop", "rand_augment", "mixing")},
        )
        self.preprocessor = loaded.preprocessor
        self.network = _trunk(loaded, config)
        widths, self._forward_flops = self._survey()
        self.kinds = _chosen(config, widths)
        self.norms = nn.ModuleDict(
            {kind: GroupBatchNorm(widths[kind], eps=1e-6, affine=False) for kind in self.kinds if config.batch_norm}
        )
        self.heads = nn.ModuleDict()
        for kind in self.kinds:
            for number in range(len(config.lr_factors)):
                self.heads[f"{kind}_{number}"] = _head(widths[kind], config)
        numbered = enumerate(config.lr_factors)
        self.lr_factors = {f"heads.{kind}_{n}.": factor for n, factor in numbered for kind in self.kinds}

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; the loss is summed over heads, logs are those of each."""
        taught = self._taught(batch)
        share = taught / taught.sum().clamp(min=1)
        losses = {name: self._loss(logits, batch) for name, logits in self.logits(batch["image"]).items()}  # (B,) each
        return Output(
            loss=torch.stack([(loss * taught).sum() for loss in losses.values()]).sum(),
            logs={f"{name}_loss": (loss * share).sum().detach() for name, loss in losses.items()},
        )

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """(B, classes) of every head, by "KIND_NUMBER" of its learning rate."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            features = features_by_kind(self.network, images)
        if self.config.batch_norm:
            features = {kind: self.norms[kind](features[kind]) for kind in self.kinds}
        return {name: head(features[name.rpartition("_")[0]]) for name, head in self.heads.items()}

    def rows(self, batch: Batch) -> Tensor:
        """See `Objective.rows`."""
        return self._taught(batch).sum()

    def held_out(self, batch: Batch) -> Tensor:
        """(B,) bool: rows that teach nothing, the same samples in every epoch."""
        if not self.config.held_out:
            return torch.zeros_like(batch.key_hash, dtype=torch.bool)
        return batch.key_hash % self.config.held_out == 0

    def _taught(self, batch: Batch) -> Tensor:
        return batch.weight * ~self.held_out(batch)

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        smoothing = self.config.label_smoothing

        def cross_entropy(label: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), label, reduction="none", label_smoothing=smoothing)

        if "share" not in batch.fields:
            return cross_entropy(batch["label"])
        return torch.lerp(cross_entropy(batch["partner_label"]), cross_entropy(batch["label"]), batch["share"])

    def train(self, mode: bool = True) -> Classify:
        """A frozen encoder stays as it is used: its own norms and dropouts do not train either."""
        super().train(mode)
        if self.config.frozen:
            self.network.eval()
        return self

    def encoder(self) -> Encoder:
        """The encoder, as it has become."""
        return Encoder(self.network, "network.", self.preprocessor)

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) of all kinds side by side."""
        return torch.cat([*features_by_kind(self.network, batch["image"]).values()], dim=1)

    def flops_per_sample(self) -> float:
        """A forward pass of the encoder, three where it is trained; heads are left out."""
        return (1 if self.config.frozen else 3) * self._forward_flops

    def _survey(self) -> tuple[dict[str, int], float]:
        """Widths of the features by kind, and FLOPs of a forward pass of one image."""
        found: dict[str, Tensor] = {}
        twin = copy.deepcopy(self.network).to("meta")
        images = torch.empty(1, self.view.channels, self.view.image_size, self.view.image_size, device="meta")
        flops = forward_flops(lambda: found.update(features_by_kind(twin, images)))
        return {kind: features.shape[1] for kind, features in found.items()}, flops


def _trunk(loaded: LoadedEncoder, config: Classify.Config) -> nn.Module:
    """The export's network, ready to be trained or to stand still."""
    network = loaded.module
    if isinstance(network, ViTModel):
        network.pooler = None  # exports hold no weights for it, features do not pass it
    drop_paths(network, config.drop_path)
    return network.requires_grad_(not config.frozen)


def _chosen(config: Classify.Config, widths: Mapping[str, int]) -> tuple[str, ...]:
    """The kinds of features that get heads."""
    unknown = [kind for kind in config.kinds or () if kind not in widths]
    if unknown:
        raise UserError(f"recipe objective: kinds: this encoder has {', '.join(widths)}, no {unknown[0]!r}")
    return config.kinds or tuple(widths)


def _head(width: int, config: Classify.Config) -> nn.Linear:
    head = nn.Linear(width, config.classes)
    nn.init.trunc_normal_(head.weight, std=config.head_std)
    nn.init.zeros_(head.bias)
    return head
