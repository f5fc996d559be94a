"""Parts of objectives: heads, twins, queues, features, and the table of objectives."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from data_pipelines.base import UserError
from pretrain.networks.architectures import CAUSAL, SEQ2SEQ, TEXT, VISION, model_class, network_config, settings_of
from pretrain.networks.flops import forward_flops
from pretrain.networks.projector import Projector
from pretrain.networks.queue import KeyQueue
from pretrain.networks.target import cosine_momentum, frozen_twin
from pretrain.networks.vision import feature_map, feature_width, features, vision_encoder
from pretrain.networks.vit import sincos_positions
from pretrain.objective import DataFacts
from pretrain.objectives import OBJECTIVES, build, objective_class, objective_names

SMALL: dict[str, dict[str, Any]] = {
    "vit": {
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 24], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 24], "depths": [1, 1]},
}


@pytest.mark.parametrize("architecture", VISION)
def test_features_are_as_wide_as_announced(architecture: str) -> None:
    encoder = vision_encoder({"architecture": architecture, **SMALL[architecture]}, "here", image_size=16, channels=3)
    found = features(encoder, torch.randn(2, 3, 16, 16))
    assert found.pooled.shape == (2, feature_width(encoder))
    assert (found.cls is not None) == (architecture == "vit")
    assert found.joined().shape[1] == feature_width(encoder) * (2 if architecture == "vit" else 1)


@pytest.mark.parametrize("architecture", SMALL)
def test_a_feature_map_keeps_rows_and_columns_and_averages_to_the_pooled_features(architecture: str) -> None:
    torch.manual_seed(0)  # a drawn network may, by chance, look past its own place
    encoder = vision_encoder({"architecture": architecture, **SMALL[architecture]}, "here", image_size=16, channels=3)
    encoder.eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found, changed = feature_map(encoder, images), images.clone()
        changed[:, :, 12:, :4] += 5  # lower left
        moved = (feature_map(encoder, changed) - found).norm(dim=1)
        pooled = features(encoder, images).pooled
    assert found.shape[:2] == (2, feature_width(encoder))
    assert (moved.flatten(1).argmax(dim=1) == moved.shape[-1] * (moved.shape[-2] - 1)).all()
    if architecture in ("vit", "resnet"):
        torch.testing.assert_close(found.mean(dim=(2, 3)), pooled)


def test_pooled_features_of_a_vit_leave_the_class_token_out() -> None:
    encoder = vision_encoder({"architecture": "vit", **SMALL["vit"]}, "here", image_size=16, channels=3)
    images = torch.randn(2, 3, 16, 16)
    states = encoder(images).last_hidden_state
    found = features(encoder, images)
    assert found.cls is not None and torch.equal(found.cls, states[:, 0])
    torch.testing.assert_close(found.pooled, states[:, 1:].sum(dim=1) / 16)


@pytest.mark.parametrize(
    ("name", "table"), [(name, table) for table in (VISION, TEXT, SEQ2SEQ, CAUSAL) for name in table]
)
def test_the_table_names_what_transformers_has(name: str, table: Any) -> None:
    assert {"hidden_size", "hidden_sizes", "d_model"} & set(settings_of(model_class(name, table).config_class))
    assert "output_attentions" not in settings_of(model_class(name, table).config_class)


def test_wrong_values_are_named_in_one_line() -> None:
    for tree in ({"hidden_size": "wide"}, {"hidden_size": 2.5}):
        with pytest.raises(UserError, match=r"there: .*hidden_size") as caught:
            network_config({"architecture": "vit", **tree}, VISION, "there")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("final_norm", [True, False])
def test_projectors_end_as_asked(layers: int, final_norm: bool) -> None:
    config = Projector.Config(num_layers=layers, hidden_size=6, output_size=4, final_norm=final_norm)
    head = Projector(config, input_size=5)
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert [module.in_features for module in linear] == [5, 6, 6][:layers]
    assert sum(isinstance(module, nn.BatchNorm1d) for module in head.modules()) == layers - 1 + final_norm
    output = head(torch.randn(32, 5))
    assert output.shape == (32, 4)
    if final_norm:
        torch.testing.assert_close(output.std(dim=0, correction=0), torch.ones(4), rtol=1e-2, atol=1e-2)


def test_no_bias_stands_before_a_batch_norm() -> None:
    head = Projector(Projector.Config(num_layers=2, final_norm=True), input_size=5)
    assert not any(name.endswith("0.bias") or name.endswith("3.bias") for name, _ in head.named_parameters())


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 9), pushes=st.lists(st.integers(0, 12), max_size=8))
def test_a_queue_holds_the_newest_keys(size: int, pushes: list[int]) -> None:
    queue, expected, counter = KeyQueue(size, 2), deque[int](maxlen=size), 0
    for count in pushes:
        ids = torch.arange(counter, counter + count)
        queue.push(ids[:, None].expand(-1, 2).float(), ids)
        expected.extend(ids.tolist())
        counter += count
    held = queue.ids[queue.valid].tolist()
    assert sorted(held) == list(expected)
    assert queue.keys[queue.valid][:, 0].tolist() == held


def test_the_queue_travels_with_the_state() -> None:
    queue, other = KeyQueue(4, 2), KeyQueue(4, 2)
    queue.push(torch.randn(3, 2), torch.arange(3))
    other.load_state_dict(queue.state_dict())
    other.push(torch.ones(2, 2), torch.tensor([7, 8]))
    assert other.ids.tolist() == [8, 1, 2, 7]


def test_a_twin_is_a_copy_of_its_own() -> None:
    source = nn.Linear(2, 2)
    twin = frozen_twin(source)
    assert source.weight.requires_grad and not twin.weight.requires_grad
    assert torch.equal(twin.weight, source.weight) and twin.weight.data_ptr() != source.weight.data_ptr()


@given(start=st.floats(0, 1), progress=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
def test_momentum_rises_to_one(start: float, progress: list[float]) -> None:
    momentum = cosine_momentum(start)
    assert start - 1e-9 <= momentum(progress[0]) <= momentum(progress[1]) + 1e-9 <= 1 + 2e-9


def test_positions_want_a_width_of_fours() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sincos_positions(2, 6)


def test_positions_tell_all_places_apart() -> None:
    positions = sincos_positions(8, 32)
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1


def test_flops_of_a_product_and_a_convolution() -> None:
    linear, convolution = nn.Linear(3, 5, device="meta"), nn.Conv2d(2, 4, 3, padding=1, device="meta")
    assert forward_flops(lambda: linear(torch.empty(7, 3))) == 2 * 7 * 3 * 5
    assert forward_flops(lambda: convolution(torch.empty(1, 2, 6, 6))) == 2 * 4 * 36 * 2 * 9
    heads = torch.empty(1, 2, 6, 8, device="meta")
    assert forward_flops(lambda: F.scaled_dot_product_attention(heads, heads, heads)) == 2 * 2 * 2 * 36 * 8


def test_objectives_are_found_by_name() -> None:
    assert {"info_nce", "mae", "masked_lm"} <= set(objective_names())
    for name in OBJECTIVES:
        assert objective_class(name).Config.model_fields
    with pytest.raises(UserError, match="objective 'info_nec' does not exist; did you mean 'info_nce'"):
        objective_class("info_nec")
    with pytest.raises(UserError, match=r"recipe objective: no name; known: .*info_nce, mae"):
        build({}, DataFacts(), seed=0)


@pytest.fixture
def installed_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution of a third party, as pip leaves it on the path."""
    (tmp_path / "their_objective.py").write_text(
        "from pretrain.objectives.mae import MaskedAutoencoder\nclass Theirs(MaskedAutoencoder): ...\n"
    )
    metadata = tmp_path / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[thalweg.objectives]\ntheirs = their_objective:Theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield


def test_third_parties_add_objectives_by_entry_point(installed_plugin: None) -> None:
    assert "theirs" in objective_names()
    assert objective_class("theirs").__name__ == "Theirs"


def test_vits_are_drawn_as_mae_draws_them() -> None:
    tree = {"architecture": "vit", **SMALL["vit"], "hidden_size": 128, "intermediate_size": 512}
    encoder = vision_encoder(tree, "here", image_size=16, channels=3)
    block, patches = encoder.layers[0], encoder.embeddings.patch_embeddings.projection
    bounds = {
        block.attention.q_proj: 6 / (4 * 128),  # as part of one 3D x D matrix
        block.attention.o_proj: 6 / (2 * 128),
        block.mlp.fc1: 6 / (128 + 512),
        patches: 6 / (128 + 48),  # as the linear map that it is
    }
    for module, square in bounds.items():
        assert module.weight.abs().max().item() == pytest.approx(square**0.5, rel=0.02)
        assert not module.bias.any()
