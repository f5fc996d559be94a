"""Switches of the engine, and what it tells of a step; all in one process."""

from __future__ import annotations

import pytest
import torch
from transformers import ViTConfig, ViTModel

from data_pipelines.base import UserError
from pretrain import checkpoint
from pretrain.checkpoint import CheckpointReader
from pretrain.config import EngineConfig, Optim, Train
from pretrain.engine import Engine
from pretrain.objective import Encoder, Objective, Output
from tests.pretrain.toys import AsIs, AutoEncoder, make_batch

TRAIN = Train(global_batch=8)


def build(world, objective=None, optim=None, train=TRAIN, seed=0, **config):
    return Engine(objective or AutoEncoder(), EngineConfig(**config), optim or Optim(), train, world, seed=seed)


def weights_of(engine):
    return {piece.name: piece.tensor.clone() for piece in engine.slices() if piece.kind == "w"}


def take_steps(engine, count=2):
    for number in range(count):
        engine.accumulate([make_batch(range(8 * number, 8 * number + 8))])
        engine.apply(1e-2, 0.0)


class Vit(Objective):
    """A transformers encoder, so that activations can be recomputed."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = ViTConfig(
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=4,
                patch_size=2,
                num_channels=1,
            )
            self.vit = ViTModel(config, add_pooling_layer=False)
        self.view = AsIs()

    def forward(self, batch):
        images = batch["x"][:, :4].reshape(-1, 1, 2, 2).repeat(1, 1, 2, 2)
        return Output(loss=self.vit(images).last_hidden_state.square().sum())

    def encoder(self):
        return Encoder(self.vit, "vit.", {})

    def embed(self, batch):
        return batch["x"]

    def flops_per_sample(self):
        return 1.0


def test_recomputed_activations_change_no_number(lonely_world):
    plain, thrifty = (build(lonely_world, Vit(), zero_stage=2, checkpoint_activations=on) for on in (False, True))
    assert thrifty.module.vit.is_gradient_checkpointing and not plain.module.vit.is_gradient_checkpointing
    for engine in (plain, thrifty):
        take_steps(engine)
    expected = weights_of(plain)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(thrifty).items())


def test_switches_that_cannot_work_are_refused_with_words(lonely_world):
    with pytest.raises(UserError, match=r"offload needs engine\.zero_stage 2 or 3"):
        build(lonely_world, zero_stage=1, offload=True)
    with pytest.raises(UserError, match="no network of this objective"):
        build(lonely_world, checkpoint_activations=True)
    with pytest.raises(UserError, match="lars needs whole parameters"):
        build(lonely_world, optim=Optim(name="lars"), zero_stage=1)


def test_lars_steps_and_its_momentum_is_saved(lonely_world, tmp_path):
    optim = Optim(name="lars", weight_decay=1e-4)
    engine = build(lonely_world, optim=optim, zero_stage=0, precision="bf16")
    take_steps(engine)
    path = checkpoint.save(tmp_path, engine, lonely_world, {"progress": {"step": 2}}, 1)
    take_steps(engine)
    again = build(lonely_world, AutoEncoder(seed=5), optim=optim, zero_stage=0, precision="bf16")
    again.load(CheckpointReader(path))
    take_steps(again)
    for a, b in zip(engine.slices(), again.slices(), strict=True):
        assert torch.equal(a.tensor, b.tensor), (a.name, a.kind)


def test_dropout_is_keyed_by_seed_and_step_so_that_a_resume_repeats_it(lonely_world, tmp_path):
    engine = build(lonely_world, AutoEncoder(dropout=0.5), zero_stage=2, seed=3)
    take_steps(engine)
    path = checkpoint.save(tmp_path, engine, lonely_world, {"progress": {"step": 2}}, 1)
    take_steps(engine)
    torch.manual_seed(99)
    again, other = (build(lonely_world, AutoEncoder(dropout=0.5), zero_stage=2, seed=seed) for seed in (3, 4))
    for resumed in (again, other):
        resumed.load(CheckpointReader(path))
        take_steps(resumed)
    expected = weights_of(engine)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(again).items())
    assert not all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(other).items())


def test_figures_of_a_step_are_sums_over_rows_of_weight(lonely_world):
    engine = build(lonely_world, train=Train(global_batch=16, accumulation=2), zero_stage=1)
    batches = [make_batch(range(8)), make_batch(range(8, 16))]
    expected = [AutoEncoder()(batch) for batch in batches]
    stats = engine.accumulate(batches)
    assert stats.rows == 12  # every fifth has weight 0
    assert stats.loss_sum == pytest.approx(sum(output.loss.item() for output in expected), rel=1e-6)
    assert stats.logs["rows"] == pytest.approx(sum(output.logs["rows"].item() for output in expected) / 2, rel=1e-6)
    assert [embeddings.shape for embeddings in stats.embeddings] == [(8, 13), (8, 13)]
    assert stats.finite and stats.squared_grad_norm > 0
    engine.skip()


def test_a_step_without_rows_is_no_division_by_zero(lonely_world):
    engine = build(lonely_world, optim=Optim(weight_decay=0.0), zero_stage=2)
    before = weights_of(engine)
    stats = engine.accumulate([make_batch([0, 5, 10, 15])])
    assert (stats.rows, stats.loss_sum, stats.squared_grad_norm) == (0, 0, 0)
    engine.apply(1e-2, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(engine).items())
