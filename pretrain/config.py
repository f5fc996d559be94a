"""The recipe: one YAML file, typed, complete, readable top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from data_pipelines.base import Strict, UserError, apply_overrides, did_you_mean, digest_of, parse
from data_pipelines.storage import Storage

RECIPES = Path(__file__).parent / "recipes"


class Source(Strict):
    """One packed set of a mixture."""

    path: str
    """Folder of a packed set, or a glob of plain tars."""
    weight: float = Field(1.0, gt=0)
    """Share of the mixture, relative to the other sources."""


class Data(Strict):
    """What is read, in which order, by how many workers."""

    path: str | None = None
    """A packed set; for mixtures use `sources`."""
    sources: tuple[Source, ...] = ()
    temperature: float | None = Field(None, gt=0)
    """Instead of weights: a source's share is its size to the power of 1 / temperature, tokens where all sources count
    them, else samples. 1 draws as there is, more favours small sources. Source: Conneau 2019, arXiv:1911.02116, 3.1."""
    validation: str | None = None
    """Packed set whose loss is measured at `validation.every` steps."""
    num_lanes: int | None = Field(None, gt=0)
    """Lanes of the order; the largest divisor of the global batch up to 4,096 when unset."""
    window: int = Field(64, gt=0)
    """Samples a shuffle window."""
    shuffle: Literal["window", "full", "none"] = "window"
    """`window`: shards in random order, samples among `window` neighbours of each lane, so that reading stays nearly in
    sequence. `full`: a permutation of the whole epoch, one read a sample: for local disks. `none`: as the files lie."""
    workers: int = Field(2, ge=0)
    """Loader processes a rank; 0 reads in the training process."""
    prefetch: int = Field(2, gt=0)
    """Micro batches read ahead by each worker."""
    storage: Storage = Storage()
    opt_out: str | None = None
    """File of keys of samples to pass over, one a line, after the name of their set and a tab where it is one set's."""
    max_quarantined: float = Field(0.001, ge=0, le=1)
    """Share of samples that may be unreadable before the run stops (the first 10 are free)."""

    @model_validator(mode="after")
    def _has_weights_or_temperature(self) -> Self:
        if self.temperature is not None and any(source.weight != 1 for source in self.sources):
            raise ValueError("temperature sets the weights; give temperature or weights, not both")
        return self

    def mixture(self) -> tuple[Source, ...]:
        """The sources, whichever way they were written."""
        return self.sources or ((Source(path=self.path),) if self.path else ())


class Optim(Strict):
    """Optimizer and schedule; both are pure functions of the step."""

    name: Literal["adamw", "lars", "sgd"] = "adamw"
    base_lr: float = Field(1.5e-4, gt=0)
    """Learning rate per 256 samples of the global batch; see `lr_scaling`."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How `base_lr` grows with global_batch / 256 ("none": base_lr is the learning rate)."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of LARS and SGD."""
    trust: float = Field(0.001, gt=0)
    """LARS coefficient."""
    weight_decay: float = Field(0.05, ge=0)
    """Not applied to norms and biases."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor on the learning rate per layer below the top."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup: float = Field(0.0, ge=0)
    """Steps of linear warm-up; below 1, a share of all steps."""
    final_lr: float = Field(0.0, ge=0)
    """Learning rate at the end as a share of the peak."""
    cooldown: float = Field(0.1, ge=0, le=1)
    """Share of all steps that `wsd` decays over."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient over all parameters."""


class EngineConfig(Strict):
    """How the step is carried out; none of this changes what is learned."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    offload: bool = False
    """Optimizer state in CPU memory (ZeRO >= 2, on a GPU)."""
    checkpoint_activations: bool = False
    compile: bool = False
    collective_timeout_s: float = Field(1200.0, gt=0)
    """Longer than `monitor.watchdog_s`: the watchdog tells which rank is silent, a collective does not."""


class Train(Strict):
    """How long, and in which bites."""

    global_batch: int = Field(gt=0)
    """Samples an optimizer step, over all ranks."""
    accumulation: int = Field(1, gt=0)
    """Micro batches a step."""
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    """Exactly one of `steps` and `epochs`; ceil(epochs * N / global_batch) steps, N the samples of all sets."""
    max_skipped: int = Field(10, ge=0)
    """Steps with a non-finite or exploded gradient in a row before the run stops."""
    spike_factor: float = Field(100.0, gt=1)
    """A gradient norm beyond this multiple of its running median is skipped."""


class Checkpoint(Strict):
    """When the whole state is written, and what is kept."""

    every: int = Field(1000, gt=0)
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = Field(2, gt=0)
    keep_every: int | None = Field(None, gt=0)
    """Also keep checkpoints at multiples of this step."""


class Stage(Strict):
    """What changes at a step of a run; what is left out stays as it was before. See `Recipe.curriculum`."""

    step: int = Field(ge=0)
    """The first one, counted from 0, that is taken so."""
    image_size: int | None = Field(None, gt=0)
    """Side of the crops, in pixels."""
    max_tokens: int | None = Field(None, gt=0)
    """Tokens of a text row that are read; the rest is cut off."""
    weights: dict[str, float] | None = None
    """The mixture, by the datasets' names; one that is left out rests."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.view() and self.weights is None:
            raise ValueError("a stage changes image_size, max_tokens or weights")
        return self

    def view(self) -> dict[str, int]:
        """Settings of the objective's view that change here."""
        return self.model_dump(include={"image_size", "max_tokens"}, exclude_none=True)


class Validation(Strict):
    """Loss over a finite stream, every sample once."""

    every: int = Field(1000, gt=0)
    max_samples: int = Field(10_000, gt=0)


class OnlineProbe(Strict):
    """Cheap k-NN and linear probe inside the run, where labels exist."""

    every: int = Field(1000, gt=0)
    train_samples: int = Field(2000, gt=0)
    test_samples: int = Field(1000, gt=0)


class Monitor(Strict):
    """What is watched, and when it is an alarm."""

    log_every: int = Field(10, gt=0)
    min_effective_rank: float = Field(0.02, ge=0, le=1)
    """Alarm below this share of the embedding's dimensions."""
    max_data_wait: float = Field(0.3, gt=0, le=1)
    """Alarm above this share of the time spent waiting for data."""
    divergence: float = Field(3.0, gt=1)
    """Alarm when the loss exceeds this multiple of the best running mean."""
    tensorboard: bool = True
    wandb: bool = False
    watchdog_s: float = Field(600.0, gt=0)
    """Seconds without a step before the run is declared hung."""


class EvalSpec(Strict):
    """A job on every kept checkpoint."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)


class Recipe(Strict):
    """A run, whole. See `pretrain/recipes`."""

    name: str
    summary: str = ""
    """One line for `thalweg recipes`."""
    ran_here: bool = False
    """True when the result in `summary` is our own, False when it is the paper's."""
    seed: int = Field(0, ge=0)
    objective: dict[str, Any]
    """`name` and the keys of that objective's Config."""
    data: Data
    train: Train
    curriculum: tuple[Stage, ...] = ()
    """Resolution, row length and mixture by step; validation, probes and export keep to the objective's own view."""
    optim: Optim = Optim()
    engine: EngineConfig = EngineConfig()
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()
    probe: OnlineProbe | None = None
    monitor: Monitor = Monitor()
    evals: tuple[EvalSpec, ...] = ()
    init_from: str | None = None
    """A checkpoint of another run, or a transformers folder, to take weights from."""
    profile: str | None = Field(None, pattern=r"^\d+:\d+$")
    """START:STOP steps to record with the torch profiler."""
    runs: str = "runs"
    """Folder in which the run's own folder is made."""

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> Self:
        steps = [stage.step for stage in self.curriculum]
        if steps != sorted(set(steps)):
            raise ValueError(f"curriculum: each stage begins at a later step than the one before, got {steps}")
        return self


FREE_ON_RESUME = (
    "summary", "ran_here", "data.path", "data.sources", "data.temperature", "data.validation", "data.workers",
    "data.prefetch", "data.storage", "data.opt_out", "data.max_quarantined", "engine", "checkpoint", "validation",
    "probe", "monitor", "evals", "profile", "runs", "train.max_skipped", "train.spike_factor",
)  # fmt: skip
"""Paths that may change between attempts of a run; anything else is a new run.

Data may move, be reweighted or be joined by more (a new segment of the order); that none of it was
exchanged is told from its digests.
"""


def recipe_names() -> list[str]:
    """Names of the packaged recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_tree(recipe: str) -> dict[str, Any]:
    """The plain data of a recipe file, its `extends` merged in, one level deep.

    Args:
        recipe: path of a YAML file, or the name of a packaged recipe.

    Raises:
        UserError: no such recipe (nearest named), not YAML, or `extends` twice.
    """
    path = _find(recipe)
    tree = _read_yaml(path)
    parent_name = tree.pop("extends", None)
    if parent_name is not None:
        beside = path.parent / f"{parent_name}.yaml"
        parent = _read_yaml(beside if beside.exists() else _find(parent_name))
        if "extends" in parent:
            raise UserError(f"recipe {path}: {parent_name!r} extends another one itself; one level is allowed")
        tree = merge(parent, tree)
    tree.setdefault("name", path.stem)
    return tree


def load_recipe(recipe: str, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Read, merge, override and check a recipe.

    Raises:
        UserError: one line that names the wrong key or value.
    """
    return parse(Recipe, apply_overrides(load_tree(recipe), overrides), f"recipe {recipe}")


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the groups of `change` merged in; an objective of another name replaces the whole group."""
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        another = key == "objective" and isinstance(old, dict) and value.get("name", old.get("name")) != old.get("name")
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) and not another else value
    return result


def identity(recipe: Recipe) -> dict[str, Any]:
    """What makes a run this run: the recipe without what may change on resume."""
    tree = recipe.model_dump(mode="json")
    for path in FREE_ON_RESUME:
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node.pop(last, None)
    if not tree["curriculum"]:  # runs that began before there were stages have none
        del tree["curriculum"]
    return tree


def identity_digest(recipe: Recipe) -> str:
    """Name of `identity`."""
    return digest_of(identity(recipe))


def _find(recipe: str) -> Path:
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"recipe {recipe}: no such file")
        return path
    packaged = RECIPES / f"{recipe}.yaml"
    if not packaged.is_file():
        raise UserError(f"recipe {recipe!r} does not exist{did_you_mean(recipe, recipe_names())}")
    return packaged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path}: want a mapping of keys, got {type(tree).__name__}")
    return tree
