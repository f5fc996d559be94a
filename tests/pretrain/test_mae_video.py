"""The masked autoencoder of clips: parity with VideoMAE, what it is asked, and what it exports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModel, PreTrainedModel, VideoMAEConfig, VideoMAEModel
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from pretrain.networks.video import sinusoid_positions, video_encoder
from pretrain.networks.vision import feature_map, feature_width, features
from pretrain.objective import DataFacts
from pretrain.objectives import build
from pretrain.objectives.info_nce import InfoNCE
from pretrain.objectives.mae_video import MaskedVideoAutoencoder, tubelets, untubelets

ENCODER = {
    "architecture": "videomae",
    "patch_size": 4,
    "tubelet_size": 2,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DECODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FACTS = DataFacts(channels=3, image_size=(12, 24), frames=30)
PLACES, HIDDEN, MOMENTS = 9, 6, 2  # 12 x 12 pixels in patches of 4; 4 frames in tubelets of 2


def autoencoder(facts: DataFacts = FACTS, **changes: Any) -> MaskedVideoAutoencoder:
    settings = {"encoder": ENCODER, "decoder": DECODER, "mask_ratio": 0.7, "image_size": 12, "frames": 4}
    built = build({"name": "mae_video", **settings, **changes}, facts, seed=0)
    assert isinstance(built, MaskedVideoAutoencoder)
    return built


def batch_of(num_rows: int, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tubes = torch.rand(num_rows, PLACES, generator=draw).argsort(dim=1) < HIDDEN
    return Batch(
        fields={"clip": torch.randn(num_rows, 4, 3, 12, 12, generator=draw), "mask": tubes.repeat(1, MOMENTS)},
        keys=tuple(map(str, range(num_rows))),
        positions=torch.arange(num_rows),
        weight=torch.ones(num_rows),
        key_hash=torch.arange(num_rows),
    )


def test_tubelets_come_moment_by_moment_and_row_by_row() -> None:
    clips = torch.arange(2 * 4 * 3 * 12 * 12.0).view(2, 4, 3, 12, 12)
    patches = tubelets(clips, 2, 4)
    assert patches.shape == (2, MOMENTS * PLACES, 2 * 4 * 4 * 3)
    assert torch.equal(patches[1, 9 + 5].view(2, 4, 4, 3), clips[1, 2:4, :, 4:8, 8:12].permute(0, 2, 3, 1))
    assert torch.equal(untubelets(patches, MOMENTS, 2, 4), clips)


def test_positions_are_those_of_videomae() -> None:
    published = get_sinusoid_encoding_table(18, 16)[0]
    torch.testing.assert_close(sinusoid_positions(18, 16), published, rtol=0, atol=1e-6)
    model = autoencoder()
    torch.testing.assert_close(model.network.embeddings.position_embeddings[0], published, rtol=0, atol=1e-6)
    assert model.decoder.unmask.positions.shape == (18, 8)


def test_what_the_encoder_sees_is_what_videomae_sees() -> None:
    model, batch = autoencoder().eval(), batch_of(3)
    visible = batch["mask"].byte().argsort(dim=1, stable=True)[:, : model.num_visible(batch["mask"].shape[1])]
    with torch.no_grad():
        ours = model.encode(batch["clip"], visible)
        theirs = model.network(batch["clip"], bool_masked_pos=batch["mask"]).last_hidden_state
    assert ours.shape == (3, MOMENTS * (PLACES - HIDDEN), 16)
    torch.testing.assert_close(ours, theirs)


def test_the_target_is_each_channel_of_a_hidden_tubelet_normalised() -> None:
    model, batch = autoencoder(), batch_of(2)
    seen = model.reconstruct(batch["clip"], batch["mask"])
    expected = torch.tensor(0.0)
    for row in range(2):
        errors = []
        for place in range(MOMENTS * PLACES):
            moment, top, left = place // PLACES * 2, place % PLACES // 3 * 4, place % 3 * 4
            tubelet = batch["clip"][row, moment : moment + 2, :, top : top + 4, left : left + 4]
            mean = tubelet.mean(dim=(0, 2, 3), keepdim=True)
            std = tubelet.transpose(0, 1).flatten(1).std(dim=1)[None, :, None, None]
            target = ((tubelet - mean) / std).permute(0, 2, 3, 1).flatten()
            if batch["mask"][row, place]:
                errors.append((seen.predicted[row, place] - target).square().mean())
        assert len(errors) == MOMENTS * HIDDEN
        expected = expected + torch.stack(errors).mean()
    torch.testing.assert_close(model(batch).loss, expected)
    torch.testing.assert_close(seen.patches, tubelets(batch["clip"], 2, 4))


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    model, batch = autoencoder(), batch_of(2)
    patches = tubelets(batch["clip"], 2, 4)
    noise = torch.where(batch["mask"].unsqueeze(-1), torch.randn_like(patches), patches)
    before, after = (
        model.reconstruct(clip, batch["mask"]).predicted for clip in (batch["clip"], untubelets(noise, MOMENTS, 2, 4))
    )
    assert torch.equal(before, after)


@pytest.mark.slow
def test_it_learns_what_moves() -> None:
    torch.manual_seed(0)
    model = autoencoder(norm_pixels=False, mask_ratio=0.5)
    across = torch.arange(12.0)[None] * 0.5
    clips = torch.stack([
        torch.stack([(across + 0.8 * speed * frame + start).sin().expand(12, 12) for frame in range(4)])
        for speed in (-1, 1) for start in range(8)
    ])[:, :, None].expand(-1, -1, 3, -1, -1)  # fmt: skip
    tubes = torch.rand(16, PLACES).argsort(dim=1) < 4  # round(9 * 0.5)
    batch = batch_of(16).with_fields(clip=clips, mask=tubes.repeat(1, MOMENTS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (model(batch).loss / 16).backward()
        optimizer.step()
    logs = model(batch).logs
    assert logs["masked_mse_raw"] < 0.6 * logs["mean_fill_mse"]


def test_the_export_opens_with_plain_transformers_and_sees_still_images(tmp_path: Path) -> None:
    model = autoencoder().eval()
    encoder = model.encoder()
    cast(PreTrainedModel, encoder.module).save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(opened, VideoMAEModel) and encoder.prefix == "network."
    assert encoder.preprocessor["image_size"] == 12
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        tokens = opened(images[:, None].repeat(1, 4, 1, 1, 1)).last_hidden_state  # (2, 18, 16)
        by_place = feature_map(opened, images)
        assert by_place.shape == (2, 16, 3, 3) and feature_width(opened) == 16
        torch.testing.assert_close(by_place[:, :, 1, 2], (tokens[:, 5] + tokens[:, 9 + 5]) / 2)
        torch.testing.assert_close(features(opened, images).pooled, tokens.mean(dim=1))
        batch = dataclasses.replace(batch_of(2), fields={"image": images})
        torch.testing.assert_close(model.embed(batch), tokens.mean(dim=1))


def test_a_sketch_shows_frames_seen_and_painted() -> None:
    model, batch = autoencoder(mean=[0.5], std=[0.5]), batch_of(2)
    batch = batch.with_fields(clip=batch["clip"].clamp(-1, 1))
    picture = model.sketch(batch)["reconstructions"]
    assert picture.dtype == np.uint8 and picture.shape == (2 * 3 * 13 - 1, 4 * 13 - 1, 3)
    original, masked, painted = (picture[top : top + 12, 13:25] for top in (0, 13, 26))  # second frame, first clip
    hidden = batch["mask"][0, :PLACES].view(3, 3).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    assert (original[~hidden] == masked[~hidden]).all() and (original[~hidden] == painted[~hidden]).all()
    assert (masked[hidden] == 128).all() and (painted[hidden] != 128).any()


def test_flops_follow_the_visible_tubelets() -> None:
    few, many = (autoencoder(mask_ratio=ratio).flops_per_sample() for ratio in (0.7, 0.3))
    more = 2 * 3  # tubelets: at two moments, three places more
    blocks = 3 * 2 * 2 * (4 * 16 * 16 + 2 * 16 * 32) * more
    attention = 3 * 2 * 2 * 2 * 16 * (12**2 - 6**2)
    assert many - few == pytest.approx(blocks + attention + 3 * 2 * 16 * 8 * more)  # and the map into the decoder


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        (
            {},
            DataFacts(channels=3, image_size=(12, 12)),
            "the data holds no clips; pack video, cityscapes or synthetic",
        ),
        ({"stride": 10}, FACTS, "frames=4 at stride=10 take 31 frames, the data's clips have 30"),
        ({"image_size": None}, FACTS, "the images are 12x24; set objective.image_size"),
        ({"frames": 5}, FACTS, "num_frames=5 is no multiple of tubelet_size=2"),
        ({"encoder": {**ENCODER, "patch_size": 5}}, FACTS, "image_size=12 is no multiple of patch_size=5"),
        ({"encoder": {**ENCODER, "num_frames": 8}}, FACTS, "num_frames=8 contradicts the data's 4"),
        ({"encoder": {"architecture": "vit"}}, FACTS, "architecture 'vit' is unknown; known: videomae"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(changes: dict[str, Any], facts: DataFacts, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        autoencoder(facts, **changes)
    assert "\n" not in str(caught.value)


def test_an_encoder_is_drawn_as_videomae_draws_it() -> None:
    torch.manual_seed(0)
    encoder = video_encoder(ENCODER, "here", image_size=12, channels=3, frames=4)
    attention = encoder.encoder.layer[0].attention.attention
    bound = (6 / (4 * 16)) ** 0.5
    assert 0.8 * bound < attention.query.weight.abs().max() <= bound
    assert not attention.query.bias.any() and isinstance(encoder.config, VideoMAEConfig)
    assert encoder.layernorm is not None and encoder.config.layer_norm_eps == 1e-6


def pairs(facts: DataFacts, **changes: Any) -> InfoNCE:
    encoder = {"architecture": "resnet", "embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
    built = build({"name": "info_nce", "encoder": encoder, "image_size": 12, **changes}, facts, seed=0)
    assert isinstance(built, InfoNCE)
    return built


def test_info_nce_pairs_frames_of_clips_and_says_when_there_are_none() -> None:
    view = pairs(FACTS, frame_distance=[2, 6]).view
    assert type(view).__name__ == "ClipPair" and view.distance == (2, 6)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="the data holds clips; set frame_distance"):
        pairs(FACTS)
    with pytest.raises(UserError, match="the data holds no clips; leave frame_distance out"):
        pairs(DataFacts(channels=3), frame_distance=[2, 6])
