"""torchrun without its page-long account of a failed rank: ranks speak for themselves, their exit code goes on."""

from __future__ import annotations

import logging
import sys

from data_pipelines.base import SavedAndStopped, UserError

MEANT = (UserError.exit_code, SavedAndStopped.exit_code)
"""Exit codes that a rank chooses; they say more than those of peers that were ended after it."""


def main(arguments: list[str]) -> int:
    """Start ranks as torchrun does.

    Args:
        arguments: of torchrun.

    Returns:
        The ranks' exit code: 0, one that a rank chose, or 1.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return next((code for code in MEANT if code in codes), 1)
    except SignalException:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
