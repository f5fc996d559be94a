"""From a recipe's `data` to what the loader needs: open sets, their order, what an objective may know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from data_pipelines.base import UserError, did_you_mean
from data_pipelines.mixture import allot_lanes
from data_pipelines.opt_out import OptOut, read_opt_out
from data_pipelines.order import Order, Stream, check_batch, default_lanes, steps_of
from data_pipelines.shards import Dataset
from pretrain.config import Recipe

if TYPE_CHECKING:
    from pretrain.objective import DataFacts


@dataclass(frozen=True)
class Sources:
    """The opened data of a run.

    Attributes:
        datasets: training sets, in the order of the mixture.
        validation: the set whose loss is measured, if any.
        opt_out: keys of samples that none of these sets gives, if there is a list.
        num_lanes: of the order, frozen in config.yaml.
        lanes: whole lanes by dataset, the weights really used; those of `data`, until a stage has others.
        planned: first step, and lanes by name, of each stage with a mixture of its own.
    """

    datasets: tuple[Dataset, ...]
    validation: Dataset | None
    num_lanes: int
    lanes: tuple[int, ...]
    planned: tuple[tuple[int, dict[str, int]], ...] = ()
    opt_out: OptOut | None = None

    @property
    def num_samples(self) -> int:
        """Samples over all training sets."""
        return sum(dataset.num_samples for dataset in self.datasets)

    @property
    def tokens_per_sample(self) -> float | None:
        """On average in the mixture, without padding where the sets count that; None where one holds no text."""
        tokens = [_tokens_per_sample(dataset) for dataset in self.datasets]
        known = [count * lanes for count, lanes in zip(tokens, self.lanes, strict=True) if count is not None]
        return sum(known) / self.num_lanes if len(known) == len(tokens) else None

    def order(self, recipe: Recipe, segments: Sequence[Mapping[str, Any]] = (), position: int = 0) -> Order:
        """The order of a run's whole life.

        Args:
            segments: how the mixture changed before, from a checkpoint (`Order.to_state`).
            position: the next slot; where lanes are not those of the last segment, a new one opens there.
        """
        streams = [
            Stream(dataset.name, dataset.shard_sizes, lanes)
            for dataset, lanes in zip(self.datasets, self.lanes, strict=True)
        ]
        return Order.from_state(
            recipe.seed,
            streams,
            self.num_lanes,
            segments,
            position,
            planned=[(step * recipe.train.global_batch, lanes) for step, lanes in self.planned],
            window=recipe.data.window,
            shuffle=recipe.data.shuffle,
        )

    def digests(self) -> dict[str, str]:
        """By dataset name; part of a run's identity."""
        return {dataset.name: dataset.digest for dataset in self.datasets}

    def facts(self) -> DataFacts:
        """What all training sets agree on.

        They may be of different languages, and all of these are named; sets of images may stand beside sets of clips.

        Raises:
            UserError: they disagree.
        """
        every = _beside_clips([data_facts(dataset) for dataset in self.datasets])
        common = [_without_languages(facts) for facts in every]
        for dataset, facts in zip(self.datasets, common, strict=True):
            if facts != common[0]:
                raise UserError(
                    f"data: {dataset.path} does not go with {self.datasets[0].path}: {facts} against {common[0]}"
                )
        return replace(
            every[0],
            special_tokens=dict(chain.from_iterable(facts.special_tokens.items() for facts in every)),
            languages=tuple(dict.fromkeys(chain.from_iterable(facts.languages for facts in every))),
        )


def open_sources(recipe: Recipe) -> Sources:
    """Open every set of a recipe.

    Raises:
        UserError: no data named, a set missing or empty, weights finer than the lanes, no list of keys to opt out.
    """
    mixture = recipe.data.mixture()
    if not mixture:
        raise UserError(f"recipe {recipe.name}: no data; set data.path=FOLDER (made by `thalweg data pack`)")
    num_lanes = recipe.data.num_lanes or default_lanes(recipe.train.global_batch)
    storage = recipe.data.storage
    opt_out = read_opt_out(recipe.data.opt_out, storage) if recipe.data.opt_out else None
    datasets = _named_apart([Dataset.open(source.path, storage=storage, opt_out=opt_out) for source in mixture])
    if recipe.data.temperature is not None:
        weights = [size ** (1 / recipe.data.temperature) for size in sizes(datasets)]
    else:
        weights = [source.weight for source in mixture]
    lanes = allot_lanes(weights, num_lanes)
    held_out = recipe.data.validation
    validation = Dataset.open(held_out, storage=storage, opt_out=opt_out) if held_out else None
    planned = _planned_lanes(recipe, [dataset.name for dataset in datasets], num_lanes)
    return Sources(tuple(datasets), validation, num_lanes, tuple(lanes), planned, opt_out)


def _planned_lanes(recipe: Recipe, names: Sequence[str], num_lanes: int) -> tuple[tuple[int, dict[str, int]], ...]:
    planned = []
    for stage in recipe.curriculum:
        if stage.weights is None:
            continue
        unknown = sorted(set(stage.weights) - set(names))
        if unknown:
            raise UserError(
                f"recipe curriculum, step {stage.step}: no dataset is named {unknown[0]!r}"
                f"{did_you_mean(unknown[0], names)}"
            )
        mixed = [name for name in names if name in stage.weights]
        lanes = allot_lanes([stage.weights[name] for name in mixed], num_lanes)
        planned.append((stage.step, dict(zip(mixed, lanes, strict=True))))
    return tuple(planned)


def sizes(datasets: Sequence[Dataset]) -> list[int]:
    """Tokens of each set where all of them count tokens, else samples."""
    tokens = [dataset.manifest.facts.tokens for dataset in datasets]
    return [count for count in tokens if count] if all(tokens) else [dataset.num_samples for dataset in datasets]


def total_steps(recipe: Recipe, num_samples: int) -> int:
    """Steps of the whole run.

    Raises:
        UserError: not exactly one of train.steps and train.epochs is set.
    """
    train = recipe.train
    if (train.steps is None) == (train.epochs is None):
        raise UserError(f"recipe {recipe.name}: set exactly one of train.steps and train.epochs")
    return train.steps or steps_of(train.epochs or 0, num_samples, train.global_batch)


def check_sizes(recipe: Recipe, sources: Sources, world_size: int) -> None:
    """Raises UserError, with the nearest legal values, when the batch does not divide over ranks and lanes."""
    check_batch(recipe.train.global_batch, recipe.train.accumulation, world_size, sources.num_lanes)


def data_facts(dataset: Dataset) -> DataFacts:
    """What an objective may know of a set before any sample is read."""
    from pretrain.objective import DataFacts  # torch comes with it, and planning does without

    facts = dataset.manifest.facts
    return DataFacts(
        channels=facts.channels,
        image_size=facts.image_size,
        vocabulary_size=facts.vocabulary_size,
        row_tokens=facts.row_tokens,
        special_tokens=facts.special_tokens,
        tokenizer_digest=facts.tokenizer_digest,
        languages=(facts.language,) if facts.language else facts.languages,
        frames=facts.frames,
        frames_per_second=facts.frames_per_second,
        label_frames=facts.label_frames,
    )


def _tokens_per_sample(dataset: Dataset) -> float | None:
    facts = dataset.manifest.facts
    return facts.row_tokens if facts.tokens is None else facts.tokens / dataset.num_samples


def _beside_clips(every: Sequence[DataFacts]) -> list[DataFacts]:
    """Facts in which sets of images and of clips can agree: the clips' own, and whether there are stills."""
    clips = [facts for facts in every if facts.frames is not None]
    if len(clips) in (0, len(every)) or any(facts.channels is None for facts in every):
        return list(every)
    size = every[0].image_size if len({facts.image_size for facts in every}) == 1 else None
    still = replace(clips[0], image_size=size, stills=True)
    return [
        replace(facts, image_size=size, stills=True)
        if facts.frames is not None
        else replace(still, channels=facts.channels)
        for facts in every
    ]


def _without_languages(facts: DataFacts) -> DataFacts:
    tokens = {name: token for name, token in facts.special_tokens.items() if not name.startswith("lang:")}
    return replace(facts, special_tokens=tokens, languages=())


def _named_apart(datasets: Sequence[Dataset]) -> list[Dataset]:
    names = [dataset.name for dataset in datasets]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(
            f"data.sources: the name {min(twice)!r} occurs twice; a set's name keys its order: "
            f"pack one of them anew with name=ANOTHER"
        )
    return list(datasets)
