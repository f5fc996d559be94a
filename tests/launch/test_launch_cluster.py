"""Cluster files, batch scripts and what may stand in them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.base import UserError
from launch.cluster import Cluster, clusters, load_cluster, quote
from launch.entry import PretrainEntry
from launch.job import Job
from launch.slurm import SlurmCluster
from launch.snapshot import code_folder
from launch.submit import pretrain_script

GOLDEN = Path(__file__).parent / "golden"
RECIPE = """
name: example
objective: {name: mae}
data: {path: data/train, validation: data/val}
train: {global_batch: 64, steps: 10}
evals: [{name: knn}]
"""

# All that a path or a value can hold: no NUL, no lone surrogates.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
hostile = st.sampled_from(
    ["$(touch canary)", "`touch canary`", "'; touch canary; '", '"; touch canary; "', "\ntouch canary\n"]
)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "example.yaml"
    path.write_text(RECIPE)
    return str(path)


def cluster_of(folder: Path, text: str) -> Cluster:
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_cluster(path)


@pytest.mark.parametrize("name", list(clusters()))
def test_the_script_is_the_golden_one(name: str, tmp_path: Path, recipe: str) -> None:
    cluster = load_cluster(name)
    nodes = 2 if cluster.config.kind == "slurm" else None
    runs = tmp_path / "runs"
    script = pretrain_script(recipe, [f"runs={runs}"], cluster, nodes=nodes)
    for found, placeholder in (
        (str(code_folder(runs / "example")), "CODE"),
        (str(runs), "RUNS"),
        (sys.executable, "PYTHON"),
    ):
        script = script.replace(found, placeholder)
    script = re.sub(r"(?<=PYTHONPATH=CODE):\S+", "", script)  # what the tester's own PYTHONPATH adds
    assert script + "\n" == (GOLDEN / f"{name}.sh").read_text(), "renew by hand if the change is meant"
    assert not runs.exists(), "a dry run writes nothing"


def test_each_cluster_has_a_golden_script() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sh")} == set(clusters())


@given(st.one_of(texts, hostile))
@settings(max_examples=60, deadline=None)
def test_quoted_text_is_one_word_of_bash(text: str) -> None:
    shown = subprocess.run(["bash", "-c", f"printf '%s' {quote(text)}"], capture_output=True, check=True).stdout
    assert shown.decode() == text


def test_a_nul_is_refused() -> None:
    with pytest.raises(UserError, match="NUL"):
        quote("a\0b")


@given(name=st.one_of(texts, hostile), value=st.one_of(texts, hostile), interpreter=st.one_of(texts, hostile))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_and_values_cannot_inject(name: str, value: str, interpreter: str, tmp_path: Path) -> None:
    """The whole script runs under bash; stand-ins for srun and Python write down what reaches them."""
    run = tmp_path / "runs" / (re.sub(r"[/\\%\0]", "", "".join(c for c in name if c.isprintable())) or "run")
    python = tmp_path / ("python " + re.sub(r"[/\0]", "", interpreter))
    if len(python.name.encode()) > 200 or run.name in {".", ".."}:
        return
    heard = tmp_path / "heard"
    heard.write_bytes(b"")
    for stand_in in (python, tmp_path / "srun"):
        stand_in.write_text('#!/bin/bash\nprintf "%s\\0" "$VALUE" "$@" >>"$HEARD"\nexit 3\n')
        stand_in.chmod(0o755)
    cluster = SlurmCluster(SlurmCluster.Config(kind="slurm", env={"VALUE": value}, python=str(python)))
    job = Job.next(run, "pretrain")
    script = cluster.script(job, PretrainEntry(str(job.folder), "digest"))
    header, _, body = script.partition("# setup")
    assert all(line.startswith("#") or not line for line in header.split("\n"))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HEARD": str(heard)}
    result = subprocess.run(["bash", "-c", body], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    words = heard.read_bytes().decode().split("\0")
    assert words[:5] == [value, "-m", "launch.job", "begin", str(job.folder)]
    assert str(python) in words and words[-6:-1] == ["launch.job", "end", str(job.folder), "0", "3"]
    assert words.count(value) >= 3
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["two\nlines", "100%", "back\\slash"])
def test_slurm_refuses_log_paths_it_would_garble(name: str, tmp_path: Path) -> None:
    job = Job.next(tmp_path / name, "pretrain")
    with pytest.raises(UserError, match="another name"):
        load_cluster("slurm").script(job, PretrainEntry(str(job.folder), "digest"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: slurm\npartitoin: gpu", "unknown key 'partitoin'; did you mean 'partition'"),
        ("kind: local\npartition: gpu", "unknown key 'partition'"),
        ("kind: slurm\nnodes: 0", "nodes: .*greater than 0, got 0"),
        ("kind: slurm\nevals: {timeout: 3}", "unknown key 'evals.timeout'; did you mean 'timeout_min'"),
        ("kind: pbs", "kind='pbs' is none of slurm, local, debug"),
        ("- kind", "want a mapping"),
        ("kind: [", "not YAML"),
        ('kind: slurm\npartition: "a\\nb"', "partition: must be one line"),
        ('kind: slurm\nparameters: {constraint: "a\\nb"}', "must be one line"),
        ("kind: slurm\nparameters: {'x=1 --y': 1}", "no option of sbatch"),
        ("kind: slurm\nenv: {'A;B': '1'}", "no name of an environment variable"),
        ("kind: local\nnodes: 2", "nodes: Input should be 1, got 2"),
    ],
)
def test_a_wrong_file_is_answered_with_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        cluster_of(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_an_unknown_cluster_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'slurm'"):
        load_cluster("slrum")
    with pytest.raises(UserError, match="no such file"):
        load_cluster(tmp_path / "gone.yaml")


def test_a_batch_that_does_not_divide_is_refused_before_the_queue(recipe: str) -> None:
    with pytest.raises(UserError, match="start 8 or 16 ranks"):
        pretrain_script(recipe, [], load_cluster("slurm"), nodes=5)


def test_an_eval_gets_one_process_and_resources_of_its_own() -> None:
    config = load_cluster("slurm_gpu").for_evals().config
    assert (config.nodes, config.world_size, config.gpus_per_node) == (1, 1, 1)
    assert (config.partition, config.timeout_min) == ("gpu_short", 120)
    assert load_cluster("slurm").for_evals().config.gpus_per_node == 0


def test_an_eval_that_trains_gets_the_ranks_of_a_node_or_those_it_asks_for(tmp_path: Path) -> None:
    config = load_cluster("slurm_gpu").for_evals(many_ranks=True).config
    assert (config.nodes, config.ranks_per_node, config.gpus_per_node) == (1, 8, 8)
    file = "kind: slurm\ngpus_per_node: 8\nevals: {nodes: 2, ranks_per_node: 4}"
    config = cluster_of(tmp_path, file).for_evals(many_ranks=True).config
    assert (config.nodes, config.world_size, config.gpus_per_node) == (2, 8, 4)


def test_parameters_reach_sbatch(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "kind: slurm\nparameters: {constraint: 'a b', exclusive: true}")
    script = cluster.script(Job(tmp_path / "run/logs/jobs/pretrain-1"), PretrainEntry("", ""))
    assert "#SBATCH --constraint='a b'\n#SBATCH --cpus-per-task=4\n#SBATCH --exclusive\n" in script
    assert shlex.quote(sys.executable) in script
