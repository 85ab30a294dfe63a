"""Wake-ups between processes and threads."""

import os
import threading
import time

from bridge.storage.wakeup import Wakeup, wait

LONG = 10.0


def test_another_process_ends_a_wait() -> None:
    wakeup = Wakeup()
    child = os.fork()
    if not child:
        time.sleep(0.1)
        wakeup.set()
        os._exit(0)
    began = time.monotonic()
    wait(LONG, [wakeup, Wakeup()])
    os.waitpid(child, 0)
    assert time.monotonic() - began < LONG / 2


def test_a_wakeup_stays_set_until_it_is_cleared() -> None:
    wakeup = Wakeup()
    threading.Thread(target=wakeup.set).start()
    wait(LONG, [wakeup])
    began = time.monotonic()
    wait(LONG, [wakeup])
    assert time.monotonic() - began < LONG / 2


def test_a_cleared_wakeup_ends_no_wait() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.clear()
    began = time.monotonic()
    wait(0.05, [wakeup])
    assert time.monotonic() - began >= 0.05


def test_it_may_be_set_any_number_of_times_before_it_is_cleared() -> None:
    wakeup = Wakeup()
    for _ in range(100_000):
        wakeup.set()
    wait(LONG, [wakeup])
    wakeup.clear()
    began = time.monotonic()
    wait(0.05, [wakeup])
    assert time.monotonic() - began >= 0.05
