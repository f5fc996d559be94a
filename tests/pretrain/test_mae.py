"""The masked autoencoder: what it sees, what it is asked, and what it exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from pretrain.networks.vit import sincos_positions
from pretrain.objective import DataFacts
from pretrain.objectives import build
from pretrain.objectives.images import patchify, unpatchify
from pretrain.objectives.mae import MaskedAutoencoder

ENCODER = {
    "architecture": "vit",
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DECODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
N, HIDDEN = 9, 6  # patches of a 12 x 12 image, hidden at 0.7


def autoencoder(channels: int = 1, **changes: Any) -> MaskedAutoencoder:
    settings = {"name": "mae", "encoder": ENCODER, "decoder": DECODER, "mask_ratio": 0.7, **changes}
    built = build(settings, DataFacts(channels=channels, image_size=(12, 12)), seed=0)
    assert isinstance(built, MaskedAutoencoder)
    return built


def batch_of(num_rows: int, channels: int = 1, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(num_rows, N, generator=draw).argsort(dim=1)
    return Batch(
        fields={"image": torch.randn(num_rows, channels, 12, 12, generator=draw), "mask": order < HIDDEN},
        keys=tuple(map(str, range(num_rows))),
        positions=torch.arange(num_rows),
        weight=torch.ones(num_rows),
        key_hash=torch.arange(num_rows),
    )


def pixels_of(mask: Tensor) -> Tensor:
    """(B, N) patches to (B, 1, 12, 12) pixels."""
    return unpatchify(mask[..., None].float().expand(-1, -1, 16), 4)


def test_positions_are_there_and_are_those_of_mae() -> None:
    for grid, width in ((3, 16), (14, 768)):
        positions = sincos_positions(grid, width)
        assert positions[1:].std() > 0.1 and not positions[0].any()
        published = build_2d_sinusoidal_position_embedding(grid, grid, width, cls_token=True)
        rows, columns = published.chunk(2, dim=1)  # theirs before the column is put first
        torch.testing.assert_close(positions, torch.cat([columns, rows], dim=1))


def test_a_model_made_from_a_recipe_has_positions_and_tokens() -> None:
    model = autoencoder()
    embeddings = model.vit.embeddings
    assert torch.equal(embeddings.position_embeddings[0], sincos_positions(3, 16))
    assert torch.equal(model.decoder.unmask.positions, sincos_positions(3, 8))
    assert not embeddings.position_embeddings.requires_grad
    for token in (embeddings.cls_token, model.decoder.unmask.mask_token):
        assert token.requires_grad and 0.005 < token.std() < 0.05
    assert model.vit.config.layer_norm_eps == 1e-6


def test_the_gradient_at_the_start_is_of_ordinary_size() -> None:
    model, batch = autoencoder(), batch_of(8)
    (model(batch).loss / 8).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert 1e-3 < norm < 10  # without positions and with eps 1e-12 it is 2e4


def test_the_loss_is_the_mean_over_hidden_patches_of_normalised_pixels() -> None:
    model, batch = autoencoder(channels=3), batch_of(4, channels=3)
    seen = model.reconstruct(batch["image"], batch["mask"])
    expected = torch.tensor(0.0)
    for row in range(4):
        errors = []
        for patch in range(N):
            top, left = patch // 3 * 4, patch % 3 * 4
            pixels = batch["image"][row, :, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
            target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            if batch["mask"][row, patch]:
                errors.append((seen.predicted[row, patch] - target).square().mean())
        assert len(errors) == HIDDEN
        expected = expected + torch.stack(errors).mean()
    torch.testing.assert_close(model(batch).loss, expected)


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    model, batch = autoencoder(), batch_of(4)
    hidden = pixels_of(batch["mask"]).bool()
    other = torch.where(hidden, torch.randn_like(batch["image"]), batch["image"])
    before, after = (model.reconstruct(images, batch["mask"]) for images in (batch["image"], other))
    assert torch.equal(before.predicted, after.predicted)
    assert not torch.equal(before.target, after.target)
    seen_elsewhere = model.reconstruct(torch.where(hidden, batch["image"], other + 1), batch["mask"])
    assert not torch.equal(before.predicted, seen_elsewhere.predicted)


def test_latents_stand_at_their_own_places() -> None:
    """Moving the mask moves what is decoded: every visible patch meets its own position."""
    model = autoencoder()
    latents = torch.randn(1, 1 + N - HIDDEN, 8)
    visible = torch.tensor([[1, 4, 8]])
    placed = model.decoder.unmask(latents, visible, N) - model.decoder.unmask.positions
    torch.testing.assert_close(placed[0, [0, 2, 5, 9]], latents[0], rtol=1e-5, atol=1e-6)
    rest = [place for place in range(1 + N) if place not in (0, 2, 5, 9)]
    torch.testing.assert_close(
        placed[0, rest], model.decoder.unmask.mask_token[0].expand(HIDDEN, -1), rtol=1e-5, atol=1e-6
    )


def test_logs_are_squared_errors_of_raw_pixels() -> None:
    model, batch = autoencoder(channels=3, std=[0.2, 0.3, 0.4], mean=[0.5, 0.5, 0.5]), batch_of(2, channels=3)
    raw = batch["image"] * torch.tensor([0.2, 0.3, 0.4])[:, None, None] + 0.5
    hidden = pixels_of(batch["mask"]).bool()
    predicted = model.reconstruct(batch["image"], batch["mask"]).pixels
    painted = unpatchify(predicted, 4) * torch.tensor([0.2, 0.3, 0.4])[:, None, None] + 0.5
    wrong, filled = [], []
    for row in range(2):
        hole = hidden[row].expand(3, -1, -1)
        mean = torch.stack([raw[row, c][~hidden[row, 0]].mean() for c in range(3)])[:, None, None]
        wrong.append((painted[row] - raw[row])[hole].square().mean())
        filled.append((mean - raw[row])[hole].square().mean())
    logs = model(batch).logs
    torch.testing.assert_close(logs["masked_mse_raw"], torch.stack(wrong).mean())
    torch.testing.assert_close(logs["mean_fill_mse"], torch.stack(filled).mean())


def test_padding_counts_nothing() -> None:
    model, batch = autoencoder(), batch_of(4)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    padded = Batch(batch.fields, batch.keys, batch.positions, weight, batch.key_hash)
    fields = {name: value[:3] for name, value in batch.fields.items()}
    short = Batch(fields, batch.keys[:3], batch.positions[:3], weight[:3], batch.key_hash[:3])
    torch.testing.assert_close(model(padded).loss, model(short).loss)
    torch.testing.assert_close(model(padded).logs, model(short).logs)
    assert model.rows(padded) == 3


@pytest.mark.slow
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_it_learns_to_paint(norm_pixels: bool) -> None:
    torch.manual_seed(0)
    model = autoencoder(norm_pixels=norm_pixels, mask_ratio=0.5)
    rows = torch.arange(12.0)[:, None].expand(12, 12)
    images = torch.stack([((rows if turn else rows.T) + shift).mul(0.5).sin() for turn in (0, 1) for shift in range(8)])
    batch = batch_of(16)
    mask = batch["mask"].float().add(torch.rand(16, N)).argsort(dim=1).argsort(dim=1) < 4  # round(9 * 0.5)
    batch = batch.with_fields(image=images[:, None], mask=mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (model(batch).loss / 16).backward()
        optimizer.step()
    logs = model(batch).logs
    assert logs["masked_mse_raw"] < 0.5 * logs["mean_fill_mse"]


def test_the_export_hides_nothing_and_opens_with_plain_transformers(tmp_path: Path) -> None:
    model, batch = autoencoder().eval(), batch_of(3)
    encoder = model.encoder()
    assert encoder.prefix == "vit." and encoder.preprocessor["mean"] == [0.5]
    cast(PreTrainedModel, encoder.module).save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours = model.encode(batch["image"], torch.arange(N).expand(3, -1))  # every patch visible
        theirs = opened(batch["image"]).last_hidden_state
        assert torch.equal(theirs, model.vit(batch["image"]).last_hidden_state)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        expected = torch.cat([theirs[:, 0], theirs[:, 1:].mean(dim=1)], dim=1)
        torch.testing.assert_close(model.embed(batch), expected)


def test_patches_come_row_by_row_with_channels_last() -> None:
    images = torch.arange(2 * 3 * 12 * 12.0).view(2, 3, 12, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, N, 48)
    assert torch.equal(patches[1, 5].view(4, 4, 3), images[1, :, 4:8, 8:12].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 4), images)


def test_a_sketch_keeps_visible_patches_and_greys_hidden_ones() -> None:
    model, batch = autoencoder(), batch_of(2)
    batch = batch.with_fields(image=batch["image"].clamp(-1, 1))
    picture = model.sketch(batch)["reconstructions"]
    assert picture.dtype == np.uint8 and picture.shape == (3 * 13 - 1, 2 * 13 - 1, 3)
    original, masked, painted = (picture[top : top + 12, :12, 0] for top in (0, 13, 26))
    hidden = pixels_of(batch["mask"])[0, 0].bool().numpy()
    assert (original[~hidden] == masked[~hidden]).all() and (original[~hidden] == painted[~hidden]).all()
    assert (masked[hidden] == 128).all() and (painted[hidden] != 128).any()


def test_flops_follow_the_visible_patches() -> None:
    few, many = (autoencoder(mask_ratio=ratio).flops_per_sample() for ratio in (0.7, 0.3))
    blocks = 2 * 3 * 2 * (4 * 16 * 16 + 2 * 16 * 32)  # 2 layers, forward and backward, per visible patch
    attention = 2 * 3 * 2 * 2 * 16 * (7**2 - 4**2)  # with the class token
    assert many - few == pytest.approx(3 * blocks + attention + 3 * 3 * 2 * 16 * 8)  # and the map into the decoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"architecture": "resnet"}}, "only architecture 'vit' can"),
        ({"encoder": {**ENCODER, "patch_size": 5}}, "image_size=12 is no multiple of patch_size=5"),
        ({"encoder": {**ENCODER, "hiden_size": 5}}, "encoder: unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"decoder": {"layers": 5}}, "unknown key 'decoder.layers'"),
        ({"mask_ratio": 1.5}, "mask_ratio"),
        ({"mean": [0.5, 0.5, 0.5]}, "1 channels want as many means"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        autoencoder(**changes)
    assert "\n" not in str(caught.value)


def test_images_of_many_sizes_want_a_size() -> None:
    with pytest.raises(UserError, match="the images differ in size; set objective"):
        build({"name": "mae", "encoder": ENCODER}, DataFacts(channels=3), seed=0)
    with pytest.raises(UserError, match="the images are 4x6; set objective"):
        build({"name": "mae", "encoder": ENCODER}, DataFacts(channels=3, image_size=(4, 6)), seed=0)
    with pytest.raises(UserError, match="the data holds no images"):
        build({"name": "mae"}, DataFacts(vocabulary_size=10), seed=0)
