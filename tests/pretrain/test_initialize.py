"""`init_from:` another run, or a transformers folder: what fits is taken, and all is said."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from data_pipelines.base import CheckpointError, UserError
from pretrain import checkpoint
from pretrain.config import EngineConfig, Optim, Train
from pretrain.engine import Engine
from pretrain.initialize import fit_positions, initialize
from pretrain.objective import Encoder, Objective, Output
from tests.pretrain.toys import AsIs, AutoEncoder, make_batch


class Vit(Objective):
    """A transformers encoder of 2 or more places a side, and a head."""

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.vit = ViTModel(vit_config(side), add_pooling_layer=False)
        self.head = nn.Linear(8, 3)
        self.view = AsIs()

    def forward(self, batch):
        return Output(loss=self.head(self.vit(batch["image"]).last_hidden_state).sum())

    def encoder(self):
        return Encoder(self.vit, "vit.", {})

    def embed(self, batch):
        return self.vit(batch["image"]).last_hidden_state[:, 0]

    def flops_per_sample(self):
        return 1.0


def vit_config(side):
    return ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=4 * side,
        patch_size=4,
        num_channels=1,
    )


def build(world, objective, stage=2, precision="fp32"):
    return Engine(objective, EngineConfig(zero_stage=stage, precision=precision), Optim(), Train(global_batch=8), world)


def weights_of(engine):
    shapes = {name: entry.cut.shape for name, entry in engine.catalogue().items()}
    return {p.name: p.tensor.view(shapes[p.name]).clone() for p in engine.slices() if p.kind in ("w", "ema", "buffer")}


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "fp32"), (2, "bf16"), (3, "bf16")])
def test_all_weights_of_another_run_are_taken_and_moments_start_fresh(lonely_world, tmp_path, stage, precision):
    donor = build(lonely_world, AutoEncoder(ema=True, seed=3))
    donor.accumulate([make_batch(range(8))])
    donor.apply(1e-2, 0.0)
    checkpoint.save(tmp_path / "checkpoints", donor, lonely_world, {"progress": {"step": 1}}, 1)
    engine = build(lonely_world, AutoEncoder(ema=True, seed=4), stage, precision)
    words = initialize(engine, str(tmp_path))
    expected = weights_of(donor)
    got = weights_of(engine)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert all(not piece.tensor.any() for piece in engine.slices() if piece.kind.startswith("exp_avg"))
    assert engine.updates == 0
    assert words == f"init_from {tmp_path}: {len(expected)} of {len(expected)} tensors taken"
    output, _ = engine.evaluate(make_batch(range(1, 5)))
    reference, _ = donor.evaluate(make_batch(range(1, 5)))
    assert float(output.loss) == pytest.approx(float(reference.loss), rel=1e-5 if precision == "fp32" else 0.02)


def test_a_target_that_the_other_run_did_not_have_becomes_its_source(lonely_world, tmp_path):
    donor = build(lonely_world, AutoEncoder(ema=False, seed=3))
    path = checkpoint.save(tmp_path, donor, lonely_world, {"progress": {"step": 1}}, 1)
    engine = build(lonely_world, AutoEncoder(ema=True, seed=4))
    words = initialize(engine, str(path))
    got, given = weights_of(engine), weights_of(donor)
    assert torch.equal(got["target_net.embed.weight"], given["encoder_net.embed.weight"])
    assert "not there, left as drawn: target_net.seen" in words


def test_an_encoder_is_taken_from_a_transformers_folder_with_or_without_a_head(lonely_world, tmp_path):
    model = ViTForImageClassification(vit_config(2))
    model.save_pretrained(tmp_path / "head")
    model.vit.save_pretrained(tmp_path / "bare")
    for name in ("head", "bare"):
        engine = build(lonely_world, Vit())
        head = weights_of(engine)["head.weight"]
        words = initialize(engine, str(tmp_path / name))
        got = weights_of(engine)
        for parameter, tensor in model.vit.named_parameters():
            assert torch.equal(got[f"vit.{parameter}"], tensor.detach()), parameter
        assert torch.equal(got["head.weight"], head)
        assert "not there, left as drawn: head.weight, head.bias" in words


def test_positions_of_another_image_size_are_interpolated_and_said(lonely_world, tmp_path):
    small = ViTModel(vit_config(2), add_pooling_layer=False)
    torch.nn.init.normal_(small.embeddings.position_embeddings)
    small.save_pretrained(tmp_path)
    engine = build(lonely_world, Vit(side=3))
    words = initialize(engine, str(tmp_path))
    name = "vit.embeddings.position_embeddings"
    assert f"interpolated: {name} [1, 5, 8] -> [1, 10, 8]" in words
    table = weights_of(engine)[name]
    assert torch.equal(table[:, 0], small.embeddings.position_embeddings[:, 0].detach())
    assert not torch.equal(table[:, 1:5], small.embeddings.position_embeddings[:, 1:].detach())


def test_interpolated_positions_keep_order_and_orientation():
    down = torch.linspace(0, 1, 8).view(1, 8, 1, 1).expand(1, 8, 8, 1).reshape(1, 64, 1)
    wide = fit_positions(down, (1, 256, 1)).view(16, 16)
    assert torch.allclose(wide, wide[:, :1].expand(16, 16), atol=1e-6)
    assert (wide[:, 0].diff() > 0).all()
    assert torch.allclose(wide + wide.flip(0), torch.ones(16, 16), atol=1e-5)
    assert torch.equal(fit_positions(down, (1, 64, 1)), down)


def test_positions_without_a_sound_way_are_left():
    assert fit_positions(torch.zeros(1, 7, 4), (1, 5, 4)) is None  # no square grid
    assert fit_positions(torch.zeros(1, 5, 4), (1, 5, 8)) is None  # another width
    assert fit_positions(torch.zeros(8, 4), (16, 4)) is None  # no text positions to be had beyond the last
    assert fit_positions(torch.arange(8.0).view(8, 1), (3, 1)).tolist() == [[0.0], [1.0], [2.0]]


def test_a_layer_of_another_shape_is_left_as_drawn_and_said(lonely_world, tmp_path):
    config = vit_config(2)
    config.intermediate_size = 24
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    words = initialize(build(lonely_world, Vit()), str(tmp_path))
    assert re.search(r"of another shape, left as drawn: vit\S+ \[24, 8\], here \[16, 8\]", words)


def test_what_is_no_source_is_refused(lonely_world, tmp_path):
    engine = build(lonely_world, Vit())
    with pytest.raises(UserError, match="neither a run, a checkpoint nor a transformers folder"):
        initialize(engine, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="only safetensors"):
        initialize(engine, str(tmp_path))
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"none of its tensors fits; there: .*other\.weight"):
        initialize(engine, str(tmp_path))


def test_a_damaged_checkpoint_is_not_started_from(lonely_world, tmp_path):
    path = checkpoint.save(tmp_path, build(lonely_world, AutoEncoder()), lonely_world, {"progress": {"step": 1}}, 1)
    file = path / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="damaged"):
        initialize(build(lonely_world, AutoEncoder()), str(path))
