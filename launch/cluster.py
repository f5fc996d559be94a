"""Where jobs run: a cluster is one YAML file, its `kind` names the class that submits to it."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import AfterValidator, Field

from data_pipelines.base import Strict, UserError, did_you_mean, parse
from launch.entry import Entry
from launch.job import Job, Submission
from pretrain.estimate import Hardware

CLUSTERS = Path(__file__).parent / "clusters"

KINDS = {
    "slurm": "launch.slurm:SlurmCluster",
    "local": "launch.local:LocalCluster",
    "debug": "launch.local:DebugCluster",
}


def quote(text: str) -> str:
    """The one way into a shell script: `text` as a single word of bash, whatever it holds.

    Raises:
        UserError: a NUL, which no shell word can hold.
    """
    if "\0" in text:
        raise UserError(f"{text!r}: a NUL character cannot be passed to a shell")
    return shlex.quote(text)


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line without control characters")
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name of an environment variable")
    return name


OneLine = Annotated[str, AfterValidator(_one_line)]
Variable = Annotated[str, AfterValidator(_variable)]


class EvalResources(Strict):
    """What one eval job gets: one process on one node, or the ranks of an eval that trains."""

    nodes: int = Field(1, gt=0)
    """Of evals that take many ranks."""
    ranks_per_node: int | None = Field(None, gt=0)
    """Of evals that take many ranks; those of a training job when unset."""
    gpus_per_node: int | None = Field(None, ge=0)
    """Of evals of one process, at most one is used; 0 or 1, by whether the cluster has any, when unset."""
    cpus_per_task: int | None = Field(None, gt=0)
    mem_gb: float | None = Field(None, gt=0)
    timeout_min: int = Field(120, gt=0)
    partition: OneLine | None = None
    """Where eval jobs go; the run's own partition when unset."""
    at_once: int | None = Field(None, gt=0)
    """Eval jobs of one run that may be pending or running at the same time."""


class ClusterConfig(Strict):
    """What every kind of cluster knows."""

    kind: str
    summary: str = ""
    """One line for `thalweg clusters`."""
    nodes: int = Field(1, gt=0)
    gpus_per_node: int = Field(0, ge=0)
    tasks_per_node: int | None = Field(None, gt=0)
    """Ranks on each node; one for each GPU when unset, else one."""
    timeout_min: int = Field(60, gt=0)
    signal_delay_s: int = Field(120, gt=0)
    """Seconds between the stop signal and the time limit: longest step + save + 60."""
    env: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables of the job."""
    evals: EvalResources = EvalResources()
    hardware: Hardware = Hardware()
    """Read by `thalweg launch --estimate` alone."""

    @property
    def ranks_per_node(self) -> int:
        """Tasks a node, resolved."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """Number of ranks of a training job."""
        return self.nodes * self.ranks_per_node

    def for_evals(self, many_ranks: bool) -> dict[str, Any]:
        """What changes when the job is an eval."""
        own = {"timeout_min": self.evals.timeout_min}
        if many_ranks:
            ranks = self.evals.ranks_per_node or self.ranks_per_node
            gpus = min(ranks, self.gpus_per_node)
            return {**own, "nodes": self.evals.nodes, "tasks_per_node": ranks, "gpus_per_node": gpus}
        wanted = self.evals.gpus_per_node
        gpus = min(1, self.gpus_per_node) if wanted is None else wanted
        return {**own, "nodes": 1, "tasks_per_node": 1, "gpus_per_node": gpus}


class Cluster(ABC):
    """Submits jobs, and knows whether one is still there."""

    Config: ClassVar[type[ClusterConfig]] = ClusterConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def changed(self, **changes: Any) -> Cluster:
        """The same cluster with other values, checked as if they had stood in the file."""
        return type(self)(parse(self.Config, {**self.config.model_dump(), **changes}, f"cluster {self.config.kind}"))

    def for_evals(self, many_ranks: bool = False) -> Cluster:
        """The same cluster with the resources of an eval job."""
        return self.changed(**self.config.for_evals(many_ranks))

    @property
    def world_size(self) -> int:
        """Number of ranks of a training job."""
        size: int = self.config.world_size
        return size

    @abstractmethod
    def script(self, job: Job, entry: Entry) -> str:
        """What `submit` would run, for the eyes of `--dry-run`; touches nothing."""

    @abstractmethod
    def submit(self, job: Job, entry: Entry) -> Submission:
        """Start `entry` in `job`; the record of it is on disk when this returns.

        Raises:
            UserError: the scheduler is not there, or refuses the job; its own words are passed on.
        """

    @staticmethod
    @abstractmethod
    def is_alive(submission: Submission) -> bool:
        """Whether the job waits, runs, or cannot be asked about right now."""

    @staticmethod
    @abstractmethod
    def stop(submission: Submission) -> None:
        """Ask all ranks to save and to leave."""


def clusters() -> dict[str, Path]:
    """The packaged clusters by name."""
    return {path.stem: path for path in sorted(CLUSTERS.glob("*.yaml"))}


def load_cluster(cluster: str | Path) -> Cluster:
    """A packaged cluster by name, or one of your own by its file.

    Raises:
        UserError: no such cluster, or one line that names the wrong key or value.
    """
    path = _find(str(cluster))
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cluster {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"cluster {path}: want a mapping of keys, got {type(tree).__name__}")
    kind = tree.get("kind")
    if kind not in KINDS:
        raise UserError(f"cluster {path}: kind={kind!r} is none of {', '.join(KINDS)}")
    cls = cluster_class(str(kind))
    return cls(parse(cls.Config, tree, f"cluster {path}"))


def cluster_class(kind: str) -> type[Cluster]:
    """The class behind a `kind`."""
    module, _, name = KINDS[kind].partition(":")
    cls: type[Cluster] = getattr(importlib.import_module(module), name)
    return cls


def python_command(container: str, python: str | None) -> str:
    """Shell words that start Python on a node."""
    return " ".join(part for part in (container, quote(python or sys.executable)) if part)


def exports(env: Mapping[str, str]) -> list[str]:
    """`env` as lines of bash."""
    return [f"export {name}={quote(value)}" for name, value in env.items()]


@contextmanager
def outside_any_job(keep: Sequence[str] = ("SLURM_CONF",)) -> Iterator[None]:
    """A job that submits a job must not pass its own place in the cluster on to it."""
    from submitit import helpers

    kept = {name: os.environ[name] for name in keep if name in os.environ}
    with helpers.clean_env():
        os.environ.update(kept)
        yield


def _find(cluster: str) -> Path:
    path = Path(cluster)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"cluster {cluster}: no such file")
        return path
    packaged = clusters()
    if cluster not in packaged:
        raise UserError(f"cluster {cluster!r} does not exist{did_you_mean(cluster, list(packaged))}")
    return packaged[cluster]
