"""Processes are told apart, and a zombie does no work."""

import os
import subprocess
import sys

from pretrain.run.process import describe, is_running


def test_a_process_is_known_from_a_later_one_with_its_number():
    me = describe()
    assert is_running(me) is True
    assert is_running({**me, "started": me["started"] - 1}) is False
    assert is_running({**me, "space": "another machine"}) is None
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    described = describe(child.pid)
    assert is_running(described) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie does no work
    assert is_running(described) is False
    child.wait()
    assert is_running(described) is False
