"""InfoNCE on two views: tell an image's other view from the views of all other images.

Without a target encoder this is SimCLR: 2B - 1 candidates for each of 2B queries. With one it is
MoCo v3, or v2 where there is a queue: each view's queries choose among the target's keys of the other.

Source: Chen 2020, arXiv:2002.05709; Chen 2021, arXiv:2104.02057; He 2019, arXiv:1911.05722.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTModel

from data_pipelines.base import Strict, UserError, parse
from data_pipelines.batch import Batch
from data_pipelines.views import View
from data_pipelines.views.clips import ClipPair
from data_pipelines.views.two_crops import Augmentation, TwoCrops
from pretrain.collectives.gather import gather, gather_constant, rank
from pretrain.collectives.norms import couple_batch_norms
from pretrain.energies import cosine
from pretrain.networks.flops import forward_flops
from pretrain.networks.projector import Projector
from pretrain.networks.queue import KeyQueue
from pretrain.networks.target import cosine_momentum, frozen_twin
from pretrain.networks.vision import feature_width, features, refuse_broken_patches, vision_encoder
from pretrain.objective import DataFacts, Encoder, Objective, Output, Target
from pretrain.objectives.images import picture, preprocessor, to_unit_range, working_size
from pretrain.shaping.info_nce import Candidates, info_nce

PICTURED = 8
"""Images in a sketch."""


@dataclass(frozen=True)
class Contrast:
    """What the loss finds for each of a rank's queries, view 0 first; Q = 2B.

    Attributes:
        surprise: (Q,) in nats, differentiable.
        nearest: (Q,) bool, the positive is nearer than every other candidate.
        positive: (Q,) cosine distance to the positive.
        contrastive: (Q,) mean cosine distance to the other candidates.
    """

    surprise: Tensor
    nearest: Tensor
    positive: Tensor
    contrastive: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Contrast]) -> Contrast:
        """Queries of all parts, part after part."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls)))


class InfoNCE(Objective):
    """Pull the two views of an image together, push all others away."""

    class Config(Strict):
        """Networks, views, and where the contrast comes from."""

        encoder: dict[str, Any] = Field(default_factory=lambda: {"architecture": "resnet"})
        """`architecture: vit | resnet | convnext` and keys of its transformers config."""
        pool: Literal["cls", "mean"] = "cls"
        """What a ViT hands to the projector; convnets are pooled."""
        freeze_patches: bool = False
        """Leave a ViT's patch embedding as it was drawn (MoCo v3's cure for unstable training)."""
        projector: Projector.Config | None = Projector.Config()
        predictor: Projector.Config | None = None
        temperature: float = Field(0.2, gt=0)
        target_momentum: float | None = Field(None, ge=0, le=1)
        """At the start of training, rising to 1; no target encoder when unset."""
        queue_size: int | None = Field(None, gt=0)
        """Past keys that compete too; wants a target encoder."""
        image_size: int | None = Field(None, gt=0)
        """Side of the crops in pixels; the data's when unset."""
        crop_on: Literal["cpu", "device"] = "cpu"
        """See `TwoCrops`."""
        first: Augmentation = Augmentation()
        second: Augmentation | None = None
        """Of the second view; like the first when unset."""
        frame_distance: tuple[int, int] | None = None
        """Of clips: least and largest number of frames between the two views; [0, 0] takes two crops of one frame."""
        mean: tuple[float, ...] | None = None
        """Of each channel in [0, 1]; see `ImageView`."""
        std: tuple[float, ...] | None = None

        @model_validator(mode="after")
        def _a_target_where_one_is_needed(self) -> Self:
            for key in ("predictor", "queue_size"):
                if getattr(self, key) is not None and self.target_momentum is None:
                    raise ValueError(f"{key} wants a target encoder; set target_momentum (0.99), or leave {key} out")
            return self

    coupling: ClassVar[Literal["sample", "micro"]] = "micro"
    takes_stills_beside_clips = True
    may_change = frozenset({"image_size"})
    view: TwoCrops

    def __init__(self, config: Config, facts: DataFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        size, channels = working_size(config.image_size, facts)
        self.view = _view(config, facts, size, channels)
        self.network = vision_encoder(config.encoder, "recipe objective, encoder", image_size=size, channels=channels)
        if config.freeze_patches:
            self._freeze_patches()
        width = feature_width(self.network)
        self.projector = _head(config.projector, width)
        width = config.projector.output_size if config.projector else width
        self.predictor = _head(config.predictor, width)
        couple_batch_norms(self)
        if config.target_momentum is not None:
            self.target_network, self.target_projector = frozen_twin(self.network), frozen_twin(self.projector)
            momentum, followed = cosine_momentum(config.target_momentum), ("network", "projector")
            self.targets = tuple(
                Target(name, f"target_{name}", momentum) for name in followed if _has_weights(self, name)
            )
        self.queue = KeyQueue(config.queue_size, width) if config.queue_size else None
        self._fresh: list[tuple[Tensor, Tensor, Tensor]] = []  # slots, keys, ids of the running step

    def view_at(self, **settings: int) -> View:
        """See `Objective.view_at`; a ViT's positions are stretched over the other grid."""
        refuse_broken_patches(self.network, settings.get("image_size"))
        return super().view_at(**settings)

    def forward(self, batch: Batch) -> Output:
        """See `Objective.forward`; `embeddings` are the encoder's features of view 0, before the projector."""
        images = torch.cat([batch["view0"], batch["view1"]])  # (2B, C, H, W)
        seen = self._features(self.network, images)  # (2B, F)
        queries = _on_sphere(self.predictor(self.projector(seen)))  # (2B, D)
        found = self._among_views(queries, batch) if not self.targets else self._among_keys(queries, images, batch)
        surprise = _mean_of_views(found.surprise)  # (B,)
        nearest = _mean_of_views(found.nearest.float())
        share = batch.weight / batch.weight.sum().clamp(min=1)
        return Output(
            loss=(surprise * batch.weight).sum(),
            logs={"contrast_accuracy": (nearest * share).sum()},
            embeddings=seen[: len(batch)].detach(),
            energies={
                "positive": _mean_of_views(found.positive),
                "contrastive": _mean_of_views(found.contrastive),
            },
        )

    def _among_views(self, queries: Tensor, batch: Batch) -> Contrast:
        """Each view among all other views of all ranks (SimCLR's NT-Xent)."""
        count = len(batch)
        everyone = Candidates(
            keys=gather(queries),
            ids=gather_constant(batch.key_hash.repeat(2)),
            valid=gather_constant(batch.weight.repeat(2)) > 0,
        )
        place = torch.arange(2 * count, device=queries.device)
        positives = rank() * 2 * count + (place + count) % (2 * count)
        # a view has its own image's id, so neither itself nor a repeat of its image competes
        return self._contrast(queries, everyone, positives, batch.key_hash.repeat(2), with_self=True)

    def _among_keys(self, queries: Tensor, images: Tensor, batch: Batch) -> Contrast:
        """Each view among the target's keys of the other view, of all ranks, and the queue's."""
        with torch.no_grad():
            keys = _on_sphere(self.target_projector(self._features(self.target_network, images)))
        ids, valid = gather_constant(batch.key_hash), gather_constant(batch.weight) > 0
        positives = rank() * len(batch) + torch.arange(len(batch), device=keys.device)
        halves = []
        for own_queries, other_keys in zip(queries.chunk(2), reversed(keys.chunk(2)), strict=True):
            everyone = self._with_queue(Candidates(gather_constant(other_keys), ids, valid))
            halves.append(self._contrast(own_queries, everyone, positives, batch.key_hash, with_self=False))
            if self.queue is not None and self.training:
                self._fresh.append((gather_constant(batch.positions), everyone.keys[: len(ids)], ids))
        return Contrast.joined(halves)

    def _contrast(
        self, queries: Tensor, everyone: Candidates, positives: Tensor, ids: Tensor, *, with_self: bool
    ) -> Contrast:
        surprise, nearest = info_nce(queries, everyone, positives, ids, self.config.temperature)
        with torch.no_grad():
            positive = cosine(queries, everyone.keys[positives])
            # the mean distance to unit vectors needs no more than their sum
            total = (everyone.keys * everyone.valid[:, None]).sum(dim=0)
            similarity = queries @ total - (1 - positive) - (1 if with_self else 0)
            others = everyone.valid.sum() - (2 if with_self else 1)
            contrastive = 1 - similarity / others.clamp(min=1)
        return Contrast(surprise, nearest, positive, contrastive)

    def _with_queue(self, batch_keys: Candidates) -> Candidates:
        if self.queue is None:
            return batch_keys
        queue = self.queue
        return Candidates(
            keys=torch.cat([batch_keys.keys, queue.keys.to(batch_keys.keys.dtype)]),
            ids=torch.cat([batch_keys.ids, queue.ids]),
            valid=torch.cat([batch_keys.valid, queue.valid]),
        )

    def after_step(self, step: int) -> None:
        """Push the step's keys in the order of their slots, so that the queue does not depend on the ranks."""
        if self.queue is None or not self._fresh:
            return
        slots, keys, ids = (torch.cat(parts) for parts in zip(*self._fresh, strict=True))
        order = slots.argsort(stable=True)
        self.queue.push(keys[order], ids[order])
        self._fresh.clear()

    def after_skip(self) -> None:
        """Forget the keys of a step that was dropped."""
        self._fresh.clear()

    def _features(self, network: nn.Module, images: Tensor) -> Tensor:
        found = features(network, images)
        return found.pooled if found.cls is None or self.config.pool == "mean" else found.cls

    def _freeze_patches(self) -> None:
        if not isinstance(self.network, ViTModel):
            raise UserError("recipe objective: freeze_patches wants encoder.architecture: vit; leave it out")
        self.network.embeddings.patch_embeddings.requires_grad_(False)

    def encoder(self) -> Encoder:
        """The target encoder where there is one, else the trained one; heads are dropped."""
        name = "target_network" if self.targets else "network"
        return Encoder(getattr(self, name), f"{name}.", preprocessor(self.view))

    def embed(self, batch: Batch) -> Tensor:
        """(B, F) pooled features of `encoder`; class token and mean of the patch tokens (B, 2F) for a ViT."""
        return features(self.encoder().module, batch["image"]).joined()

    @torch.no_grad()
    def sketch(self, batch: Batch) -> dict[str, np.ndarray]:
        """The two views of some images, one above the other."""
        rows = [to_unit_range(batch[name][:PICTURED].float(), self.view) for name in ("view0", "view1")]
        return {"views": picture(rows)}

    def flops_per_sample(self) -> float:
        """Two views through encoder and heads, forward and backward; forward only through the target.

        The product of queries and keys, 3 x 2 x D x candidates a view, is left out: it depends on the batch.
        """
        with torch.device("meta"):
            twin = InfoNCE(self.config, self.facts).eval()
            images = torch.empty(2, self.view.channels, self.view.image_size, self.view.image_size)
        trained = forward_flops(lambda: twin.predictor(twin.projector(twin._features(twin.network, images))))
        followed = forward_flops(lambda: twin.projector(twin._features(twin.network, images)))
        return 3 * trained + (followed if self.targets else 0)


def _view(config: InfoNCE.Config, facts: DataFacts, image_size: int, channels: int) -> TwoCrops:
    """Two crops of an image, or of two frames of a clip; in a mixture of both, of whatever a sample is."""
    if (facts.frames is None) != (config.frame_distance is None):
        words = (
            "holds no clips; leave frame_distance out" if facts.frames is None else "holds clips; set frame_distance"
        )
        raise UserError(f"recipe objective: the data {words}")
    chosen = config.model_dump(include={"crop_on", "first", "second", "mean", "std"}, exclude_none=True)
    settings = {"image_size": image_size, "channels": channels, **chosen}
    if config.frame_distance is None:
        return parse(TwoCrops, settings, "recipe objective")
    clips = {"distance": config.frame_distance, "stills": facts.stills}
    return parse(ClipPair, {**settings, **clips}, "recipe objective")


def _head(config: Projector.Config | None, input_size: int) -> nn.Module:
    return nn.Identity() if config is None else Projector(config, input_size)


def _on_sphere(rows: Tensor) -> Tensor:
    """Unit length, in fp32: logits of bf16 cosines would tie."""
    return F.normalize(rows.float(), dim=-1)


def _mean_of_views(rows: Tensor) -> Tensor:
    """(2B,) to (B,): the mean of an image's two views."""
    return rows.unflatten(0, (2, -1)).mean(dim=0)


def _has_weights(module: nn.Module, name: str) -> bool:
    return any(True for _ in module.get_submodule(name).parameters())
