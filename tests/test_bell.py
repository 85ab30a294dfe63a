"""A bell between processes and threads."""

import os
import threading
import time

from bridge.bell import Bell, sleep

LONG = 10.0


def test_another_process_wakes_who_sleeps() -> None:
    bell = Bell()
    child = os.fork()
    if not child:
        time.sleep(0.1)
        bell.ring()
        os._exit(0)
    began = time.monotonic()
    sleep(LONG, [bell, Bell()])
    os.waitpid(child, 0)
    assert time.monotonic() - began < LONG / 2


def test_what_rang_before_is_heard_once_it_is_listened_for() -> None:
    bell = Bell()
    threading.Thread(target=bell.ring).start()
    sleep(LONG, [bell])
    began = time.monotonic()
    sleep(LONG, [bell])
    assert time.monotonic() - began < LONG / 2


def test_a_silenced_bell_lets_sleep() -> None:
    bell = Bell()
    bell.ring()
    bell.silence()
    began = time.monotonic()
    sleep(0.05, [bell])
    assert time.monotonic() - began >= 0.05


def test_it_may_ring_for_ever_unheard() -> None:
    bell = Bell()
    for _ in range(100_000):
        bell.ring()
    sleep(LONG, [bell])
    bell.silence()
    began = time.monotonic()
    sleep(0.05, [bell])
    assert time.monotonic() - began >= 0.05
