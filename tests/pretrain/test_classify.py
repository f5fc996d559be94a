"""Linear heads on an exported encoder, frozen or trained with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from pretrain.export import load_encoder, write_encoder
from pretrain.networks.drop_path import DropPath
from pretrain.networks.pixels import Pixels
from pretrain.networks.vision import vision_encoder
from pretrain.objective import DataFacts, Encoder
from pretrain.objectives import build
from pretrain.objectives.classify import Classify
from tests.networks import RESNET

SIDE, CLASSES = 16, 3
VIT = {
    "architecture": "vit", "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
PREPROCESSOR = {"image_size": SIDE, "channels": 1, "mean": [0.4], "std": [0.2]}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    for name, tree in {"vit": VIT, "resnet": RESNET}.items():
        network = vision_encoder(tree, "test", image_size=SIDE, channels=1)
        write_encoder(Encoder(network, "", PREPROCESSOR), {}, folder / name)
    write_encoder(Encoder(Pixels(Pixels.Config(mean=(0.4,), std=(0.2,))), "", PREPROCESSOR), {}, folder / "pixels")
    return folder


def classifier(encoder: Path, **changes: Any) -> Classify:
    settings = {"name": "classify", "encoder": str(encoder), "classes": CLASSES, **changes}
    built = build(settings, DataFacts(channels=1, image_size=(SIDE, SIDE)), seed=0)
    assert isinstance(built, Classify)
    return built


def batch_of(rows: int, **fields: torch.Tensor) -> Batch:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 1, SIDE, SIDE, generator=draw)
    return Batch(
        fields={"image": images, "label": torch.arange(rows) % CLASSES, **fields},
        keys=tuple(map(str, range(rows))),
        positions=torch.arange(rows),
        weight=torch.ones(rows),
        key_hash=torch.arange(rows),
    )


def test_a_frozen_encoder_gets_no_gradient_and_its_heads_that_of_plain_softmax_regression(exports: Path) -> None:
    objective, batch = classifier(exports / "vit"), batch_of(6)
    objective.forward(batch).loss.backward()
    assert all(parameter.grad is None for parameter in objective.network.parameters())
    features = load_encoder(exports / "vit").features(batch["image"])
    assert set(objective.heads) == {"cls_0", "pooled_0"}
    for kind in ("cls", "pooled"):
        head = objective.heads[f"{kind}_0"]
        x, weight = features[kind].clone(), head.weight.detach()
        residual = (x @ weight.T).softmax(dim=1) - F.one_hot(batch["label"], CLASSES)
        torch.testing.assert_close(head.weight.grad, residual.T @ x, atol=1e-5, rtol=1e-4)


def test_heads_see_normalised_features_in_training_and_running_ones_later(exports: Path) -> None:
    objective, batch = classifier(exports / "vit", batch_norm=True), batch_of(8)
    x = load_encoder(exports / "vit").features(batch["image"])["pooled"].clone()
    normal = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()
    head = objective.heads["pooled_0"]
    torch.testing.assert_close(objective.logits(batch["image"])["pooled_0"], head(normal), atol=1e-4, rtol=1e-4)
    for _ in range(200):
        objective.forward(batch)
    torch.testing.assert_close(
        objective.eval().logits(batch["image"][:1])["pooled_0"],
        head((x[:1] - x.mean(0)) / (x.var(0) + 1e-6).sqrt()),
        atol=1e-3,
        rtol=1e-3,
    )
    assert not any(name.startswith("norms") for name, _ in objective.named_parameters())  # no scale, no shift


def test_rows_that_are_held_out_teach_nothing_and_are_not_counted(exports: Path) -> None:
    objective, batch = classifier(exports / "pixels", held_out=3), batch_of(7)  # hashes 0, 3 and 6
    assert objective.rows(batch) == 4
    alone = classifier(exports / "pixels")
    taught = Batch(
        fields={name: tensor[[1, 2, 4, 5]] for name, tensor in batch.fields.items()},
        keys=("1", "2", "4", "5"), positions=torch.arange(4), weight=torch.ones(4), key_hash=torch.arange(4),
    )  # fmt: skip
    torch.testing.assert_close(objective.forward(batch).loss, alone.forward(taught).loss)


def test_each_learning_rate_has_heads_of_its_own(exports: Path) -> None:
    objective = classifier(exports / "vit", lr_factors=[1.0, 0.1])
    assert set(objective.heads) == {"cls_0", "cls_1", "pooled_0", "pooled_1"}
    assert objective.lr_factors["heads.pooled_1."] == 0.1
    names = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert all(any(name.startswith(prefix) for prefix in objective.lr_factors) for name in names)


def test_a_mixed_label_is_the_mean_of_two_losses(exports: Path) -> None:
    share = torch.tensor([0.25, 1.0])
    batch = batch_of(2, partner_label=torch.tensor([2, 0]), share=share)
    objective = classifier(exports / "pixels", label_smoothing=0.1)
    soft = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]) * 0.9 + 0.1 / CLASSES
    logits = objective.logits(batch["image"])["pooled_0"]
    torch.testing.assert_close(objective.forward(batch).loss, F.cross_entropy(logits, soft, reduction="sum"))


def test_the_pixels_are_those_before_the_normalisation(exports: Path) -> None:
    images = torch.rand(2, 1, SIDE, SIDE)
    features = load_encoder(exports / "pixels").features((images - 0.4) / 0.2)
    torch.testing.assert_close(features["pooled"], images.flatten(1))


def test_everything_is_trained_when_nothing_is_frozen(exports: Path) -> None:
    objective = classifier(exports / "vit", frozen=False, kinds=["pooled"], drop_path=0.5)
    objective.train()
    torch.manual_seed(0)
    objective.forward(batch_of(8)).loss.backward()
    assert not [name for name, p in objective.named_parameters() if p.grad is None]


def test_branches_drop_out_for_whole_rows_in_training_only_and_the_mean_stays() -> None:
    drop = DropPath(0.25)
    torch.manual_seed(0)
    rows = drop(torch.ones(4000, 2, 3))
    assert {tuple(row.unique().tolist()) for row in rows * 0.75} == {(0.0,), (1.0,)}
    assert float(rows.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(5, 2)), torch.ones(5, 2))


def test_rates_rise_over_the_layers(exports: Path) -> None:
    network = classifier(exports / "vit", frozen=False, drop_path=0.2).network
    assert [layer.dropout.rate for layer in network.layers] == pytest.approx([0.0, 0.1, 0.2])


def test_a_frozen_convnet_keeps_its_running_statistics(exports: Path) -> None:
    objective = classifier(exports / "resnet").train()
    before = {name: buffer.clone() for name, buffer in objective.network.named_buffers()}
    objective.forward(batch_of(4))
    assert all(torch.equal(before[name], buffer) for name, buffer in objective.network.named_buffers())


@pytest.mark.parametrize(
    ("encoder", "changes", "words"),
    [
        ("vit", {"kinds": ["mean"]}, "this encoder has cls, pooled, no 'mean'"),
        ("resnet", {"drop_path": 0.1}, "is for ViTs without dropout, this is ResNetModel; set it to 0"),
        ("nowhere", {}, "is no export"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(
    exports: Path, encoder: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        classifier(exports / encoder, **changes)
