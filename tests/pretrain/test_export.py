"""Exports hold the trained encoder, all of it and nothing else, and open in plain transformers."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM

from data_pipelines.base import CheckpointError, Strict, UserError
from pretrain import export as exports
from pretrain.export import export, find_checkpoint, load_encoder
from pretrain.networks.vision import Features, features
from pretrain.networks.vit import sincos_positions
from pretrain.objective import Encoder
from tests.evals.judged_runs import (
    BERT,
    FACTS,
    MAE,
    MOCO,
    SIDE,
    SIMCLR,
    TEXT_FACTS,
    make_run,
    trained,
    write_checkpoint,
)


def exported(folder, objective, facts=FACTS, **checkpoint):
    run = make_run(folder / "run", objective, facts=facts)
    model = trained(run, facts)
    write_checkpoint(run, model, **checkpoint)
    return model, export(run.root, folder / "out")


@pytest.fixture
def images():
    return torch.randn(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("objective", [MAE, SIMCLR], ids=["mae_vit", "info_nce_resnet"])
def test_the_export_gives_the_trained_network_s_features(tmp_path, images, objective, world_size):
    model, out = exported(tmp_path, objective, world_size=world_size)
    with torch.no_grad():
        expected = features(model.encoder().module, images)
    found = load_encoder(out).features(images)
    torch.testing.assert_close(found["pooled"], expected.pooled)
    assert ("cls" in found) == (expected.cls is not None)
    if expected.cls is not None:
        torch.testing.assert_close(found["cls"], expected.cls)


@pytest.mark.slow
def test_plain_transformers_opens_it_without_a_network(tmp_path, images):
    model, out = exported(tmp_path, MAE)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; from transformers import AutoModel; "
        "model = AutoModel.from_pretrained(sys.argv[1]).eval(); "
        "images = torch.load(sys.argv[2]); "
        "torch.save(model(pixel_values=images).last_hidden_state.detach(), sys.argv[3]); "
        "assert not any(name.startswith(('thalweg', 'pretrain')) for name in sys.modules)"
    )
    files = [str(tmp_path / name) for name in ("images.pt", "tokens.pt")]
    subprocess.run(
        [sys.executable, "-c", code, str(out), *files],
        check=True,
        capture_output=True,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    with torch.no_grad():
        expected = model.encoder().module(pixel_values=images).last_hidden_state
    torch.testing.assert_close(torch.load(files[1]), expected)


def test_pooled_features_leave_the_class_token_out(tmp_path, images):
    _, out = exported(tmp_path, MAE)
    encoder = load_encoder(out)
    tokens = encoder.module(pixel_values=images).last_hidden_state
    found = encoder.features(images)
    torch.testing.assert_close(found["cls"], tokens[:, 0])
    torch.testing.assert_close(found["pooled"], tokens[:, 1:].mean(dim=1))


def test_only_the_encoder_is_saved(tmp_path):
    model, out = exported(tmp_path, MAE)
    network = model.encoder().module
    assert len(load_file(out / "model.safetensors")) == len(network.state_dict())
    opened = AutoModel.from_pretrained(out, add_pooling_layer=False).state_dict()
    torch.testing.assert_close(opened, network.state_dict())


def test_a_target_encoder_is_exported_from_its_fp32_average(tmp_path):
    run = make_run(tmp_path / "run", MOCO)
    model = trained(run)
    averages = {
        name: parameter.detach() + 1
        for name, parameter in model.named_parameters()
        if name.startswith(("target_network.", "target_projector."))
    }
    write_checkpoint(run, model, averages=averages)
    opened = AutoModel.from_pretrained(export(run.root, tmp_path / "out"), add_pooling_layer=False)
    for name, tensor in opened.named_parameters():
        torch.testing.assert_close(tensor.detach(), averages[f"target_network.{name}"])


def test_a_text_encoder_keeps_its_tied_vocabulary_head(tmp_path):
    model, out = exported(tmp_path, BERT, facts=TEXT_FACTS)
    tokens = torch.randint(0, 50, (2, 12))
    network = model.encoder().module
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForMaskedLM.from_pretrained(out).eval()(tokens).logits, network(tokens).logits
        )
        expected = network.bert(tokens).last_hidden_state
        torch.testing.assert_close(AutoModel.from_pretrained(out).eval()(tokens).last_hidden_state, expected)


def test_an_encoder_of_text_has_no_view_of_images(tmp_path):
    _, out = exported(tmp_path, BERT, facts=TEXT_FACTS)
    with pytest.raises(UserError, match="reads no images"):
        _ = load_encoder(out).view


def test_the_preprocessor_says_what_the_network_saw_and_where_it_comes_from(tmp_path):
    _, out = exported(tmp_path, {**MAE, "mean": [0.25], "std": [0.5]}, step=7)
    view = load_encoder(out).view
    assert (view.image_size, view.channels, view.mean, view.std) == (SIDE, 1, (0.25,), (0.5,))
    origin = exports.provenance(out)
    assert (origin["run"], origin["step"], origin["objective"]) == ("run", 7, "mae")
    assert origin["checkpoint"] == exports.checkpoint_digest(tmp_path / "run/checkpoints/step-00000007")


def test_a_run_stands_for_its_newest_whole_checkpoint(tmp_path):
    run = make_run(tmp_path / "run", MAE)
    for step in (2, 4, 6):
        write_checkpoint(run, trained(run), step=step)
    damaged = next(run.checkpoints.glob("step-00000006/rank-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert find_checkpoint(run.root).name == "step-00000004"


def test_a_damaged_checkpoint_is_named_and_leaves_nothing_behind(tmp_path):
    run = make_run(tmp_path / "run", MAE)
    checkpoint = write_checkpoint(run, trained(run))
    damaged = checkpoint / "rank-00001.safetensors"
    content = bytearray(damaged.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header : header + 4] = b"oops"  # the first tensor is the encoder's
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors"):
        export(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    run = make_run(tmp_path / "run", MAE)
    other = make_run(tmp_path / "other", {**MAE, "encoder": {**MAE["encoder"], "hidden_size": 64}})
    write_checkpoint(run, trained(other))
    with pytest.raises(CheckpointError, match=r"another model: the recipe beside it wants vit\.\S+ \["):
        export(run.root, tmp_path / "out")


def test_exporting_twice_is_once(tmp_path):
    _, out = exported(tmp_path, MAE)
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert export(tmp_path / "run", out) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_another_export_or_other_files_are_never_overwritten(tmp_path):
    _, out = exported(tmp_path, MAE)
    run = make_run(tmp_path / "second", MAE)
    write_checkpoint(run, trained(run, seed=2))
    with pytest.raises(UserError, match="already holds the export of run, step 4"):
        export(run.root, out)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds other files"):
        export(run.root, tmp_path / "notes")


def _export_at_once(run, out, barrier):
    torch.set_num_threads(1)
    barrier.wait()
    export(run, out)


@pytest.mark.slow
def test_two_processes_may_export_to_one_place_at_once(tmp_path):
    run = make_run(tmp_path / "run", MAE)
    write_checkpoint(run, trained(run))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_export_at_once, args=(run.root, tmp_path / "out", barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    load_encoder(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "does not exist"),
        (".", "neither a run nor a committed checkpoint"),
        ("run", "no whole checkpoint yet"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_words(tmp_path, path, words):
    make_run(tmp_path / "run", MAE)
    with pytest.raises(UserError, match=words):
        export(tmp_path / path, tmp_path / "out")


def test_an_export_that_lacks_weights_is_refused(tmp_path):
    _, out = exported(tmp_path, SIMCLR)
    from safetensors.torch import save_file

    weights = load_file(out / "model.safetensors")
    lost = next(name for name in weights if name.endswith("convolution.weight"))
    del weights[lost]
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        load_encoder(out)


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json in it"):
        load_encoder(tmp_path)


def test_a_random_init_is_of_the_same_network_and_keyed_by_its_seed(tmp_path, images):
    _, out = exported(tmp_path, MAE)
    encoder = load_encoder(out)
    torch.manual_seed(5)
    first = encoder.random_init(0)
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after, "the caller's generator must not move"
    torch.testing.assert_close(first.features(images), encoder.random_init(0).features(images), rtol=0, atol=0)
    assert not torch.allclose(first.features(images)["cls"], encoder.random_init(1).features(images)["cls"])
    assert not torch.allclose(first.features(images)["cls"], encoder.features(images)["cls"])
    assert first.network() == encoder.network()


def test_a_random_vit_has_the_positions_a_run_begins_with(tmp_path):
    _, out = exported(tmp_path, MAE)
    positions = load_encoder(out).random_init(0).module.embeddings.position_embeddings
    torch.testing.assert_close(positions[0], sincos_positions(4, 32))


def test_the_digest_follows_the_weights_and_not_the_folder(tmp_path):
    _, out = exported(tmp_path, SIMCLR)
    run = make_run(tmp_path / "twin", SIMCLR)
    write_checkpoint(run, trained(run), step=9)
    twin = load_encoder(export(run.root, tmp_path / "twin_out"))
    assert twin.digest == load_encoder(out).digest
    assert twin.network() == load_encoder(out).network()
    other = make_run(tmp_path / "other", SIMCLR)
    write_checkpoint(other, trained(other, seed=2))
    assert load_encoder(export(other.root, tmp_path / "other_out")).digest != twin.digest


class Mean(torch.nn.Module):
    """A network that transformers does not know."""

    class Config(Strict):
        width: int = 3

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.project = torch.nn.Linear(SIDE * SIDE, config.width)

    def features(self, images):
        return Features(pooled=self.project(images.flatten(1)))


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """This module as an installed package that registers an objective."""
    metadata = tmp_path / "site" / "third_party-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[thalweg.objectives]\nmean = {Mean.__module__}:Mean\n")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.parametrize("network", ["subprocess:Popen", "os:system", f"{Mean.__module__}:Mean"])
def test_an_export_names_no_code_but_that_of_registered_packages(tmp_path, network):
    preprocessor = {"image_size": SIDE, "channels": 1}
    exports.write_encoder(Encoder(Mean(Mean.Config()), "network.", preprocessor), {"run": "r"}, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps({**config, "network": network}))
    with pytest.raises(UserError, match="is of no package that registers objectives here"):
        load_encoder(tmp_path / "own")


def test_a_network_of_our_own_opens_through_load_encoder(tmp_path, images, registered):
    network = Mean(Mean.Config(width=4))
    preprocessor = {"image_size": SIDE, "channels": 1}
    exports.write_encoder(Encoder(network, "network.", preprocessor), {"run": "r"}, tmp_path / "own")
    opened = load_encoder(tmp_path / "own")
    torch.testing.assert_close(opened.features(images)["pooled"], network.features(images).pooled.detach())
    assert not torch.allclose(opened.random_init(0).features(images)["pooled"], opened.features(images)["pooled"])
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    Path(tmp_path / "own" / "config.json").write_text(json.dumps({**config, "network": "pretrain.nowhere:Gone"}))
    with pytest.raises(UserError, match="nowhere:Gone is not installed here"):
        load_encoder(tmp_path / "own")
