import json

import pytest
import yaml

from data_pipelines.base import UserError
from data_pipelines.bench import Parts
from launch.feeding import Consumer, Demand, verdict
from pretrain.config import load_recipe
from pretrain.objective import DataFacts


def test_verdict_names_the_workers_it_takes():
    parts = Parts(read_s=0.0005, view_s=0.0019, stack_s=0.0001, sample_bytes=100_000)  # 400 samples/s a worker
    asked = Demand(1600.0, "as told")
    assert verdict(asked, parts, cores=8) == (
        "your GPUs will not starve: it takes data.workers=5 and 160 MB/s a GPU; 8 cores a GPU here"
    )
    words = verdict(asked, parts, cores=2)
    assert words.startswith(
        "your GPUs WILL STARVE: it takes data.workers=5 and 160 MB/s a GPU; 2 cores a GPU here feed"
    )
    assert words.endswith("50% of what is asked")


def test_a_model_asks_for_what_its_flops_and_the_gpu_allow():
    consumer = Consumer.of("mae_debug", ["engine.precision=bf16"], "H100", None)
    objective = consumer.objective(DataFacts(channels=1, image_size=(28, 28)))
    asked = consumer.demand(objective)
    assert asked.samples_per_s == pytest.approx(0.4 * 989e12 / objective.flops_per_sample())
    assert "40% of 989 TFLOP/s, H100 in bf16" in asked.source
    assert Consumer.of("mae_debug", [], None, 123.0).demand(objective).samples_per_s == 123.0
    reading = Consumer.of("mae_vitb16", [], None, None).reading()
    assert (reading.global_batch, reading.num_lanes, reading.window) == (4096, 4096, 64)


def test_a_run_asks_for_what_its_ranks_took_while_they_did_not_wait(tmp_path):
    run = tmp_path / "runs" / "known"
    (run / "attempts").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"schema": 1, "name": "known"}))
    (run / "config.yaml").write_text(yaml.safe_dump(load_recipe("mae_debug").model_dump(mode="json")))
    (run / "attempts" / "1.json").write_text(json.dumps({"attempt": 1, "began_at_step": 0, "world_size": 4}))
    consumer = Consumer.of(str(run), ["train.steps=7"], None, None)
    assert consumer.recipe.train.steps == 7
    with pytest.raises(UserError, match="no step yet"):
        consumer.demand(None)
    lines = [{"attempt": 1, "step": step, "samples_per_s": 800.0, "data_wait": 0.5} for step in (5, 10)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert consumer.demand(None).samples_per_s == 400.0  # 4 ranks, busy half of the time


def test_an_unknown_gpu_is_refused_before_anything_is_read():
    with pytest.raises(UserError, match="--gpu h10: not known; did you mean 'h100'"):
        Consumer.of("mae_debug", [], "h10", None)
