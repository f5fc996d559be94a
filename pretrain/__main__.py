"""`python -m pretrain RECIPE key=value ...`, alone or under torchrun or srun: one rank of a run."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.base import SavedAndStopped, ThalwegError, UserError
from pretrain.config import Recipe, load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; the exit code is 0 done, 1 failure, 2 the user's mistake, 85 saved and to be started again."""
    options = arguments(argv)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        if options.new_run:
            recipe = renamed(recipe)
        return run_recipe(recipe, rollback_to=options.rollback_to, debug=options.debug)
    except ThalwegError as error:  # before ranks know each other: each would say it
        say(error, options.debug)
        return error.exit_code


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, shared with `thalweg pretrain`."""
    parser = argparse.ArgumentParser(prog="pretrain", description="Pretrain by a recipe; an existing run is resumed.")
    add_arguments(parser)
    return parser.parse_args(argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every way of starting understands."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe, e.g. optim.base_lr=1e-3"
    )
    parser.add_argument("--new-run", action="store_true", help="never resume: the run gets a name of its own")
    parser.add_argument(
        "--rollback-to", type=int, metavar="STEP", help="go on from this checkpoint; later ones are set aside"
    )
    parser.add_argument("--debug", action="store_true", help="tracebacks on the console")


def run_recipe(recipe: Recipe, *, rollback_to: int | None = None, debug: bool = False) -> int:
    """Join the other ranks and train; returns the exit code."""
    from pretrain.distributed import World
    from pretrain.scribe import start_logging
    from pretrain.signals import StopFlag

    stop = StopFlag().install()
    world = World.start(recipe.engine.collective_timeout_s)
    start_logging(None, 0, world.rank)
    from pretrain.loop import train
    from pretrain.profiling import memory_in_words
    from pretrain.reading import ReadingError
    from pretrain.session import Session

    session: Session | None = None
    exit_code, words = 0, ""
    try:
        with memory_in_words(world.rank):
            session = Session.start(recipe, world, rollback_to)
            if session is not None:
                train(session, stop)
    except ThalwegError as error:
        exit_code, words = error.exit_code, str(error)
        if exit_code == ThalwegError.exit_code:
            _log_traceback()
        if world.rank == 0 or (
            session is not None and not isinstance(error, UserError | SavedAndStopped | ReadingError)
        ):
            say(error, debug)
    except Exception as error:
        exit_code, words = 1, f"{type(error).__name__}: {first_line(error)}"
        _log_traceback()
        print(f"rank {world.rank}: {words}", file=sys.stderr)
        if debug:
            traceback.print_exc()
    finally:
        if session is not None:
            session.close()
            if session.attempt is not None:
                session.attempt.end(exit_code, words)
    world.stop()
    return exit_code


def renamed(recipe: Recipe) -> Recipe:
    """The recipe under a name that no run has yet."""
    from pretrain.run.rollback import free_path

    free = free_path(Path(recipe.runs) / recipe.name)
    return recipe.model_copy(update={"name": free.name})


def first_line(error: BaseException) -> str:
    """The words of an error that fit a line."""
    return next(iter(str(error).splitlines()), "")


def say(error: ThalwegError, debug: bool) -> None:
    """One line on the console; a traceback only on request."""
    if debug:
        traceback.print_exc()
    print(f"thalweg: {error}", file=sys.stderr)


def _log_traceback() -> None:
    import logging

    log = logging.getLogger("pretrain")
    files = [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]
    for handler in files:
        handler.emit(logging.LogRecord("pretrain", logging.ERROR, __file__, 0, traceback.format_exc(), None, None))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a rank whose peers are gone can hang or abort in the destructors of its process groups
