"""`thalweg launch` and `thalweg clusters`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from data_pipelines.base import UserError

if TYPE_CHECKING:
    from launch.job import Job, Submission


def add_parser(subparsers: Any) -> None:
    """Add both commands; nothing heavy is imported before one of them runs."""
    launch = subparsers.add_parser("launch", help="submit a run to a cluster; an existing run goes on")
    launch.add_argument("recipe", metavar="RECIPE", help="a recipe's name or a YAML file")
    launch.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    launch.add_argument("--cluster", required=True, metavar="NAME|FILE.yaml", help="see `thalweg clusters`")
    launch.add_argument("--nodes", type=int, metavar="N", help="instead of the cluster's own number")
    launch.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    launch.add_argument(
        "--estimate", action="store_true", help="with --dry-run: days, memory, exchange, checkpoints instead"
    )
    launch.add_argument("--samples", type=int, metavar="N", help="with --estimate: of the data, where it is not here")
    launch.add_argument("--samples-per-s", type=float, metavar="N", help="with --estimate: as measured, of all ranks")
    launch.set_defaults(run=run_launch)
    listing = subparsers.add_parser("clusters", help="where runs can be launched, one line each")
    listing.set_defaults(run=run_clusters)


def run_launch(options: argparse.Namespace) -> int:
    """Submit, then say where the job is and how to follow it."""
    from launch.cluster import load_cluster
    from launch.submit import fitted, pretrain_script, submit_pretrain

    cluster = load_cluster(options.cluster)
    if options.estimate and not options.dry_run:
        raise UserError("--estimate submits nothing; say so with --dry-run")
    if options.estimate:
        from launch.estimate import estimate

        cluster, recipe = fitted(options.recipe, options.overrides, cluster, options.nodes)
        print("\n".join(estimate(recipe, cluster.config, options.samples, options.samples_per_s)))
        return 0
    if options.dry_run:
        print(pretrain_script(options.recipe, options.overrides, cluster, nodes=options.nodes))
        return 0
    return tell(*submit_pretrain(options.recipe, options.overrides, cluster, nodes=options.nodes))


def tell(job: Job, submission: Submission) -> int:
    """Where the job is and how to follow it; the exit code of one that has run already."""
    if submission.exit_code is not None:
        return submission.exit_code
    print(f"job     {submission.kind} {submission.job_id}")
    print(f"log     {submission.log}")
    print(f"follow  thalweg runs follow {job.run}")
    return 0


def run_clusters(options: argparse.Namespace) -> int:
    """One line for each packaged cluster."""
    from launch.cluster import clusters, load_cluster

    for name in clusters():
        config = load_cluster(name).config
        print(f"{name:<12} {config.kind:<6} {config.summary}")
    return 0
