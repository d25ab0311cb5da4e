"""The first signal asks, the second ends."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from holdfast.engine.interrupt import Interrupt

TWICE = """
import os, signal, sys
from holdfast.engine.interrupt import Interrupt
with Interrupt() as interrupt:
    os.kill(os.getpid(), signal.{first})
    print("asked", interrupt.requested, flush=True)
    os.kill(os.getpid(), signal.{second})
    print("still here", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number, capfd):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert interrupt.requested is None
        os.kill(os.getpid(), number)
        assert interrupt.requested == number.name
    assert signal.getsignal(number) is before
    assert f"{number.name}: stopping after this step; again to stop at once" in capfd.readouterr().err


def test_where_several_hear_one_says_so(capfd):
    with Interrupt(aloud=False) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested == "SIGTERM"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("first, second", [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_the_second_signal_ends_at_once(first, second):
    program = TWICE.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"asked {first}\n"
    assert done.returncode == -signal.Signals[second]


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), Interrupt():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_it_does_nothing():
    found = []

    def work():
        with Interrupt() as interrupt:
            found.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
