"""`thalweg`: the front door. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
import traceback
from collections.abc import Sequence

from data_pipelines.base import ThalwegError, UserError

COMMANDS = (
    "launch.demo",
    "launch.data_commands",
    "launch.pretrain_command",
    "launch.launch_commands",
    "launch.eval_commands",
    "launch.runs_commands",
    "launch.report_commands",
    "launch.catalog_commands",
    "launch.doctor",
)
"""Modules that add commands through `add_parser(subparsers)`; a handler is `run(options) -> exit code`."""

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk answers that must not, or cannot, be written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failure, 2 the user's mistake, 85 saved and to be started again."""
    options = parse(argv)
    try:
        code: int = options.run(options)
        return code
    except ThalwegError as error:
        if options.debug:
            traceback.print_exc()
        print(f"thalweg: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("thalweg: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `thalweg runs show ... | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if options.debug:
            raise
        print(f"thalweg: {_words(error)}", file=sys.stderr)
        return UserError.exit_code if _is_refusal(error) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of a command; `key=value` words may stand before and behind flags."""
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word]
    if strange or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="thalweg",
        description="Distributed self-supervised pretraining: exact data order, elastic checkpoints, judged runs.",
    )
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        importlib.import_module(module).add_parser(subparsers)
    for command in subparsers.choices.values():  # `thalweg --debug X` and `thalweg X --debug` alike
        if "--debug" not in command._option_string_actions:
            command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in REFUSALS


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and _is_refusal(error):
        return f"{error.filename or 'output'}: {error.strerror}; make room there, or name another folder"
    said = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {said} (a bug; --debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
