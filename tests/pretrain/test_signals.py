"""A signal sets a flag; a second one, later, leaves at once. Real processes."""

import signal
import subprocess
import sys
import time

import pytest

WAIT = """
import os, signal, time
from pretrain import signals
signals.SAME_REQUEST_S = 0.5
flag = signals.StopFlag().install()
child = os.fork()
while child == 0 and os.getppid() != 1:  # a loader's worker, ended with its rank
    time.sleep(0.05)
if child == 0:
    os._exit(0)
print("ready", flush=True)
while not flag.is_set:
    time.sleep(0.05)
os.kill(child, signal.SIGTERM)
time.sleep(0.2)
outlived = os.waitpid(child, os.WNOHANG) == (0, 0)
print("asked", flag.name, outlived, flush=True)
time.sleep(60)
"""


@pytest.fixture
def process():
    child = subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_first_signal_sets_the_flag_and_a_later_second_one_leaves(process, number):
    process.send_signal(number)
    process.send_signal(number)  # the launcher's echo of the same request
    assert process.stdout.readline().split() == ["asked", signal.Signals(number).name, "True"]
    time.sleep(0.6)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
