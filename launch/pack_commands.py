"""`thalweg data pack`, `index` and `near`: what makes packed sets, and what they have in common."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from data_pipelines.base import UserError, apply_overrides
from data_pipelines.pack import SOURCES
from launch.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_pipelines.shards import Dataset

_OVERRIDE = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*=")


def add_parsers(commands: Any) -> None:
    """Add the commands to those of `thalweg data`."""
    pack = add_command(commands, "pack", "write shards, indexes and a manifest from a source", run_pack)
    pack.usage = "thalweg data pack SOURCE [IN] OUT [key=value ...] [--val-fraction SHARE] [--exclude-near SET ...]"
    pack.add_argument("source", metavar="SOURCE", help=", ".join(SOURCES))
    pack.add_argument("rest", nargs="+", metavar="[IN] OUT key=value", help="where from, where to, settings")
    pack.add_argument("--val-fraction", metavar="SHARE", help="share held out as the split val; same as val_fraction=")
    pack.add_argument(
        "--exclude-near",
        action="append",
        metavar="SET",
        help="packed set, of an eval for instance, whose images, and those that look like them, are left out",
    )

    index = add_command(commands, "index", "index the tars of a folder in place, and write its manifest", run_index)
    index.add_argument("path", help="a tar, or a folder of tars; of a store too")
    index.add_argument("--cluster", metavar="NAME|FILE.yaml", help="do it in jobs there, see `thalweg clusters`")
    index.add_argument("--jobs", type=int, metavar="N", help="with --cluster: how many (one for each 1,000 tars)")

    near = add_command(commands, "near", "images of a set that look like another of it, or of other sets", run_near)
    near.add_argument("path", metavar="SET", help="a packed folder")
    near.add_argument("others", metavar="OTHER", nargs="*", help="packed folders it shall have no image of")
    near.add_argument("--bits", type=int, help="of 64 by which the hashes of like images may differ (6)")
    near.add_argument("--keys", metavar="FILE", help="write the keys of those images of SET, to read as data.opt_out")


def add_command(
    commands: Any, name: str, words: str, handler: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """A command of `thalweg data`; `run` of its arguments is the handler."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    parser.set_defaults(run=handler)
    return parser


def run_pack(arguments: argparse.Namespace) -> int:
    """`thalweg data pack SOURCE [IN] OUT [key=value ...]`."""
    from pathlib import Path

    from data_pipelines.pack import pack
    from data_pipelines.pack.statistics import in_words

    overrides = [word for word in arguments.rest if _OVERRIDE.match(word)]
    paths = [word for word in arguments.rest if not _OVERRIDE.match(word)]
    if arguments.val_fraction is not None:
        overrides.append(f"val_fraction={arguments.val_fraction}")
    if arguments.exclude_near:
        overrides.append(f"exclude_near={json.dumps(arguments.exclude_near, ensure_ascii=False)}")
    if not 1 <= len(paths) <= 2:
        raise UserError(f"data pack: want [IN] OUT, got {len(paths)} paths: {' '.join(map(repr, paths))}")
    source, out = (paths[0] if len(paths) == 2 else None), Path(paths[-1])
    with Progress() as progress:
        sets = pack(arguments.source, source, out, apply_overrides({}, overrides), progress)
    for dataset in sets:
        print(one_line(dataset))
        if figures := in_words(Path(dataset.path)):
            print(f"  {figures}")
        for note in dataset.manifest.notes:
            print(f"  note: {note}")
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """`thalweg data index PATH [--cluster NAME [--jobs N]]`."""
    from data_pipelines.indexing import index_in_place

    if arguments.cluster:
        from launch.cluster import load_cluster
        from launch.indexing import submit_indexing

        print("\n".join(submit_indexing(arguments.path, load_cluster(arguments.cluster), arguments.jobs)))
        return 0
    if arguments.jobs is not None:
        raise UserError("data index: --jobs are those of a cluster; name it with --cluster")
    with Progress() as progress:
        for line in index_in_place(arguments.path, progress):
            print(line)
    return 0


def run_near(arguments: argparse.Namespace) -> int:
    """`thalweg data near SET [OTHER ...] [--bits N] [--keys FILE]`."""
    from pathlib import Path

    from data_pipelines.base import write_atomically
    from data_pipelines.near import NEAR_BITS, compare

    bits = NEAR_BITS if arguments.bits is None else arguments.bits
    with Progress() as progress:
        report = compare(arguments.path, arguments.others, bits, progress)
    print("\n".join(report.lines))
    if arguments.keys:
        write_atomically(Path(arguments.keys), "".join(f"{report.name}\t{key}\n" for key in report.keys))
        print(f"{len(report.keys)} keys: {arguments.keys}")
    return 0


def one_line(dataset: Dataset) -> str:
    """What a packed set is."""
    facts = dataset.facts()
    size = facts["image_size"]
    words = [f"{dataset.num_samples} samples in {len(dataset.shard_sizes)} shards"]
    if facts["frames"]:
        labelled = ", ".join(map(str, facts["label_frames"])) if len(facts["label_frames"]) < facts["frames"] else "all"
        words.append(f"clips of {facts['frames']} frames, labelled: {labelled or 'none'}")
    else:
        words.append(f"fields {', '.join(dataset.fields)}")
    if facts["channels"]:
        words.append(f"images {f'{size[0]} x {size[1]}' if size else 'of several sizes'}, {facts['channels']} channels")
    if facts["row_tokens"]:
        words.append(f"rows of {facts['row_tokens']} tokens, vocabulary {facts['vocabulary_size']}")
    if facts["tokens"]:
        words.append(f"{facts['tokens']} tokens")
    if facts["languages"] or facts["language"]:
        words.append(", ".join(facts["languages"] or [facts["language"]]))
    if dataset.classes:
        words.append(f"{len(dataset.classes)} classes")
    return f"{dataset.path}: {'; '.join(words)}; digest {dataset.digest}"
