"""A signal sets a flag; a second one, later, leaves at once. Real processes."""

import signal
import subprocess
import sys
import time

import pytest

WAIT = """
import os, sys, time
from pretrain import signals
signals.SAME_REQUEST_S = 0.5
flag = signals.StopFlag().install()
if os.fork() == 0:
    print("child", os.getpid(), flush=True)
    while os.getppid() != 1:
        time.sleep(0.05)
    os._exit(7 if flag.is_set else 0)
print("ready", flush=True)
while not flag.is_set:
    time.sleep(0.05)
print("asked", flag.name, flush=True)
time.sleep(60)
"""


@pytest.fixture
def process():
    child = subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, text=True)
    assert {child.stdout.readline().split()[0] for _ in range(2)} == {"child", "ready"}
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_first_signal_sets_the_flag_and_a_later_second_one_leaves(process, number):
    process.send_signal(number)
    assert process.stdout.readline().split() == ["asked", signal.Signals(number).name]
    process.send_signal(number)  # the launcher's echo of the same request
    assert process.poll() is None
    time.sleep(0.6)
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number
