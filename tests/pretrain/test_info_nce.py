"""InfoNCE: the streamed loss against its formula, and the objective's contract."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from pretrain.objective import DataFacts
from pretrain.objectives import build
from pretrain.objectives.info_nce import InfoNCE
from pretrain.shaping.info_nce import Candidates, info_nce
from tests.networks import HEAD, RESNET

FACTS = DataFacts(channels=1, image_size=(12, 12))
VIT = {
    "architecture": "vit",
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def objective(**changes: Any) -> InfoNCE:
    built = build({"name": "info_nce", "encoder": RESNET, "projector": HEAD, **changes}, FACTS, seed=0)
    assert isinstance(built, InfoNCE)
    return built


def moco(**changes: Any) -> InfoNCE:
    return objective(predictor=HEAD, target_momentum=0.9, **changes)


def batch_of(num_rows: int, *, seed: int = 0, first: int = 0, **fields: Tensor) -> Batch:
    views = torch.randn(2, num_rows, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    slots = torch.arange(first, first + num_rows)
    return Batch(
        fields={"view0": views[0], "view1": views[1], **fields},
        keys=tuple(map(str, slots.tolist())),
        positions=slots,
        weight=torch.ones(num_rows),
        key_hash=slots * 7919,
    )


def written_out(queries: Tensor, c: Candidates, positives: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The loss row by row, nothing clever."""
    losses = []
    for row, query in enumerate(queries):
        own = int(positives[row])
        competing = [j for j in range(len(c.keys)) if j == own or (c.valid[j] and c.ids[j] != ids[row])]
        scores = torch.stack([query @ c.keys[j] / temperature for j in competing])
        losses.append(-F.log_softmax(scores, dim=0)[competing.index(own)])
    return torch.stack(losses)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9), more=st.integers(0, 7), block=st.integers(1, 200), seed=st.integers(0, 99),
    temperature=st.floats(0.05, 2),
)  # fmt: skip
def test_loss_and_gradients_are_the_formula_s(rows: int, more: int, block: int, seed: int, temperature: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    queries = F.normalize(torch.randn(rows, 4, generator=draw), dim=1).requires_grad_()
    keys = F.normalize(torch.randn(rows + more, 4, generator=draw), dim=1).requires_grad_()
    ids = torch.randint(0, 4, (rows + more,), generator=draw)  # few ids: many equal ones
    valid = torch.rand(rows + more, generator=draw) > 0.3
    positives = torch.randperm(rows + more, generator=draw)[:rows]
    weights = torch.randn(rows, generator=draw)
    candidates = Candidates(keys, ids, valid)

    loss, _ = info_nce(queries, candidates, positives, ids[:rows], temperature, block_logits=block)
    expected = written_out(queries, candidates, positives, ids[:rows], temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    got = torch.autograd.grad((loss * weights).sum(), [queries, keys])
    want = torch.autograd.grad((expected * weights).sum(), [queries, keys])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_no_logits_are_kept_for_backward() -> None:
    queries = F.normalize(torch.randn(64, 4), dim=1).requires_grad_()
    keys, own = F.normalize(torch.randn(64, 4), dim=1), torch.arange(64)
    sizes: list[int] = []

    def note(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        info_nce(queries, Candidates(keys, own, own >= 0), own, own, 0.1)
    assert sizes and max(sizes) == 64 * 4


def test_gradient_is_finite_at_exact_collapse() -> None:
    same = torch.ones(6, 3) / math.sqrt(3)
    queries, own = same.clone().requires_grad_(), torch.arange(6)
    loss, _ = info_nce(queries, Candidates(same, own, own >= 0), own, own, 0.01)
    loss.sum().backward()
    assert queries.grad is not None and queries.grad.isfinite().all()
    torch.testing.assert_close(loss, torch.full((6,), math.log(6)))


def test_a_query_without_competitors_costs_nothing() -> None:
    query, own = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    loss, nearest = info_nce(query, Candidates(query, own, own < 0), own, own, 0.1)
    assert loss.item() == 0 and nearest.item()


def test_without_a_target_it_is_simclr_s_loss() -> None:
    simclr, batch = objective(temperature=0.3).eval(), batch_of(5)
    images = torch.cat([batch["view0"], batch["view1"]])
    rows = F.normalize(simclr.projector(simclr.network(images).pooler_output.flatten(1)), dim=1)
    similarity = (rows @ rows.T / 0.3).fill_diagonal_(-math.inf)
    expected = F.cross_entropy(similarity, (torch.arange(10) + 5) % 10, reduction="sum") / 2
    torch.testing.assert_close(simclr(batch).loss, expected)


def test_with_a_target_each_view_asks_the_other_s_keys() -> None:
    model, batch = moco(temperature=0.3).eval(), batch_of(5)
    torch.nn.init.normal_(model.target_network.embedder.embedder.convolution.weight)  # no longer the trained one's
    images = torch.cat([batch["view0"], batch["view1"]])
    queries = model.predictor(model.projector(model.network(images).pooler_output.flatten(1)))
    keys = model.target_projector(model.target_network(images).pooler_output.flatten(1))
    q0, q1 = F.normalize(queries, dim=1).chunk(2)
    k0, k1 = F.normalize(keys, dim=1).chunk(2)
    own = torch.arange(5)
    expected = (F.cross_entropy(q0 @ k1.T / 0.3, own) + F.cross_entropy(q1 @ k0.T / 0.3, own)) / 2
    torch.testing.assert_close(model(batch).loss / 5, expected)


@pytest.mark.parametrize("make", [objective, moco])
def test_padding_changes_nothing(make: Any) -> None:
    model, short, long = make().eval(), batch_of(4), batch_of(6)
    fields = {name: torch.cat([short[name], long[name][4:]]) for name in ("view0", "view1")}
    padded = Batch(fields, long.keys, long.positions, torch.tensor([1.0] * 4 + [0.0] * 2), long.key_hash)
    torch.testing.assert_close(model(padded).loss, model(short).loss)
    torch.testing.assert_close(model(padded).energies["contrastive"][:4], model(short).energies["contrastive"])


@pytest.mark.parametrize("make", [objective, moco])
def test_repeats_of_an_image_are_no_contrast(make: Any) -> None:
    model, batch = make().eval(), batch_of(4)
    fields = {name: torch.cat([batch[name], batch[name][:1]]) for name in ("view0", "view1")}
    twice = Batch(fields, (*batch.keys, "0"), torch.arange(5), torch.ones(5), torch.tensor([9, 1, 2, 3, 9]))
    strangers = Batch(fields, twice.keys, twice.positions, twice.weight, torch.tensor([9, 1, 2, 3, 4]))
    assert model(twice).loss < model(strangers).loss - 0.1


def test_energies_are_cosine_distances() -> None:
    model, batch = objective().eval(), batch_of(5)
    images = torch.cat([batch["view0"], batch["view1"]])
    rows = F.normalize(model.projector(model.network(images).pooler_output.flatten(1)), dim=1)
    distance = (1 - rows @ rows.T).detach()
    energies = model(batch).energies
    torch.testing.assert_close(energies["positive"], distance[torch.arange(5), torch.arange(5, 10)])
    others = [[distance[i, j] for j in range(10) if j % 5 != i % 5] for i in range(10)]
    expected = torch.tensor(others).mean(dim=1).view(2, 5).mean(dim=0)
    torch.testing.assert_close(energies["contrastive"], expected)
    assert not any(energy.requires_grad for energy in energies.values())


def test_the_target_is_a_frozen_twin_that_the_engine_is_told_of() -> None:
    model = moco(projector=None)
    assert [(t.source, t.target) for t in model.targets] == [("network", "target_network")]  # nothing to project with
    model = moco()
    assert [t.source for t in model.targets] == ["network", "projector"]
    for target in model.targets:
        source, twin = model.get_submodule(target.source), model.get_submodule(target.target)
        assert all(torch.equal(a, b) for a, b in zip(source.parameters(), twin.parameters(), strict=True))
        assert not any(parameter.requires_grad for parameter in twin.parameters())
        assert (target.momentum(0), target.momentum(1)) == (0.9, 1.0)
    model(batch_of(4)).loss.backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith("target"))


def test_the_queue_takes_training_keys_after_the_step_and_competes() -> None:
    model = moco(queue_size=8)
    assert model.queue is not None
    alone = model(batch_of(4)).loss
    assert model.queue.written == 0
    model.after_step(1)
    assert model.queue.written == 8  # two views of four images
    assert model.queue.ids.tolist() == [slot * 7919 for slot in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert model(batch_of(4, first=100)).loss > alone  # eight more candidates
    model.after_skip()
    model.after_step(2)
    assert model.queue.ids.max() == 3 * 7919  # a dropped step leaves nothing
    model.eval()(batch_of(4))
    model.after_step(3)
    assert model.queue.ids.max() == 3 * 7919  # nor does validation


def test_frozen_patches_stay() -> None:
    model = objective(encoder=VIT, freeze_patches=True)
    model(batch_of(4)).loss.backward()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert [name for name in frozen if "patch" in name] and all(".embeddings." in name for name in frozen)
    with pytest.raises(UserError, match="freeze_patches wants encoder"):
        objective(freeze_patches=True)


@pytest.mark.parametrize(
    ("changes", "target"), [({}, False), ({"encoder": VIT}, False), ({"target_momentum": 0.9}, True)]
)
def test_the_export_opens_with_plain_transformers(changes: dict[str, Any], target: bool, tmp_path: Path) -> None:
    model = objective(**changes).eval()
    encoder = model.encoder()
    assert encoder.prefix == ("target_network." if target else "network.")
    assert all(f"{encoder.prefix}{name}" in model.state_dict() for name in encoder.module.state_dict())
    assert encoder.preprocessor["image_size"] == 12 and encoder.preprocessor["channels"] == 1
    cast(PreTrainedModel, encoder.module).save_pretrained(tmp_path)
    images = torch.randn(2, 1, 12, 12)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(opened(images).last_hidden_state, encoder.module(images).last_hidden_state)
        assert model.embed(batch_of(2, image=images)).shape == (2, 32 if changes.get("encoder") else 16)


def test_a_sketch_shows_both_views() -> None:
    picture = objective().sketch(batch_of(3))["views"]
    assert picture.dtype == np.uint8 and picture.shape == (2 * 13 - 1, 3 * 13 - 1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictor": HEAD}, "predictor wants a target encoder; set target_momentum"),
        ({"queue_size": 8}, "queue_size wants a target encoder"),
        ({"temprature": 0.1}, "unknown key 'temprature'; did you mean 'temperature'"),
        ({"encoder": {"architecture": "resnet", "depth": [1]}}, "unknown key 'depth'; did you mean 'depths'"),
        ({"encoder": {"architecture": "resnest"}}, "architecture 'resnest' is unknown; did you mean 'resnet'"),
        ({"encoder": {}}, "architecture None is unknown"),
        ({"encoder": {**RESNET, "depths": "two"}}, "recipe objective, encoder: .*depths"),
        ({"first": {"rotation": 20}}, "rotation and shift need crop_on: device"),
        ({"first": {"rotatoin": 20}}, "did you mean 'rotation'"),
        ({"encoder": {**RESNET, "num_channels": 3}}, "num_channels=3 contradicts the data's 1"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        objective(**changes)
    assert "\n" not in str(caught.value)


def test_parameters_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = objective().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = objective().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build({"name": "info_nce", "encoder": RESNET}, FACTS, seed=1).state_dict()
    name = "network.embedder.embedder.convolution.weight"
    assert not torch.equal(first[name], other[name])


def test_flops_count_what_is_trained_thrice_and_what_follows_once() -> None:
    trained = objective().flops_per_sample()
    with_target = objective(target_momentum=0.9).flops_per_sample()
    assert with_target == pytest.approx(trained * 4 / 3)
