"""The store's clock: what a step of the wall clock changes, and what it does not."""

from array import array
from pathlib import Path

import pytest

from bridge.clock import JUMP, TOLERANCE, DatabaseClock, MachineClock, steady
from bridge.storage.cells import shared_cells

HOUR, DAY = 3600.0, 86_400.0
STEPS = [-DAY, -HOUR, -60.0, 60.0, HOUR, DAY]
T0 = 1_800_000_000.0


class Machine:
    """A machine whose wall clock can be set; it was started 1,000 s ago."""

    def __init__(self) -> None:
        self.cells = [T0 - 1000.0, 0.0, 0.0]
        self.passed = 1000.0
        self.stepped = 0.0
        self.clock = self.process()

    def process(self) -> MachineClock:
        """The clock as another process of this machine reads it."""
        return MachineClock(self.cells, self.wall, lambda: self.passed)

    def wall(self) -> float:
        return T0 - 1000.0 + self.passed + self.stepped


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_wall_clock_is_no_step_of_the_stores(machine: Machine, step: float) -> None:
    machine.stepped = step
    assert machine.clock.now() == T0
    assert machine.clock.difference() == step
    assert machine.process().now() == T0


@pytest.mark.parametrize("step", STEPS)
def test_it_follows_at_half_speed_and_never_runs_back(machine: Machine, step: float) -> None:
    machine.stepped = step
    for _ in range(10):
        before = machine.clock.now()
        machine.passed += 2
        machine.clock.follow(2)
        assert 1 <= machine.clock.now() - before <= 3
    assert abs(machine.clock.difference()) == abs(step) - 10


def test_it_ends_at_the_wall_clocks_time(machine: Machine) -> None:
    machine.stepped = -4.5
    for _ in range(5):
        machine.clock.follow(2)
    assert machine.clock.difference() == 0
    assert machine.process().difference() == 0


@pytest.mark.parametrize("step", STEPS)
def test_where_nothing_waits_it_follows_at_once(machine: Machine, step: float) -> None:
    assert not machine.clock.wants_to_jump()
    machine.stepped = step * 1.1
    assert machine.clock.wants_to_jump()
    machine.clock.jump()
    assert machine.process().difference() == 0
    assert not machine.process().wants_to_jump()


def test_a_small_step_is_not_worth_a_jump(machine: Machine) -> None:
    machine.stepped = -JUMP / 2
    assert not machine.clock.wants_to_jump()


def test_a_jump_forward_makes_nothing_older_than_it_is(machine: Machine) -> None:
    """An event of an hour ago is not older than a week because the clock jumped by eight days."""
    week, event = 7 * DAY, T0 - HOUR
    machine.stepped = 8 * DAY
    machine.clock.jump()
    assert machine.clock.before(week) < event
    machine.passed += week - HOUR - 1
    assert machine.clock.before(week) < event
    machine.passed += 2
    assert machine.clock.before(week) > event


def test_what_comes_after_a_jump_forward_is_kept_as_long_as_ever(machine: Machine) -> None:
    machine.stepped = 8 * DAY
    machine.clock.jump()
    event = machine.clock.now()
    machine.passed += 7 * DAY - 1
    assert machine.clock.before(7 * DAY) < event
    machine.passed += 2
    assert machine.clock.before(7 * DAY) > event


def test_jumps_forward_and_back_again_drop_nothing(machine: Machine) -> None:
    event = machine.clock.now()
    for _ in range(3):
        machine.stepped = 30 * DAY
        machine.clock.jump()
        assert machine.clock.before(7 * DAY) < event
        machine.stepped = 0
        machine.clock.jump()
        assert machine.clock.before(7 * DAY) < event


def test_it_goes_on_from_what_was_stored_last(machine: Machine) -> None:
    machine.clock.not_before(T0 + HOUR)
    assert machine.process().now() == T0 + HOUR
    machine.clock.not_before(T0)
    machine.clock.not_before(T0 + HOUR + TOLERANCE / 2)
    assert machine.clock.now() == T0 + HOUR


def test_processes_share_numbers_until_the_machine_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    first = shared_cells(path, [1.0, 2.0])
    first[1] = 5.0
    assert list(shared_cells(path, [3.0, 4.0])) == [1.0, 5.0]
    # As another start of the machine has left it.
    path.write_bytes(array("d", [7.0, 1.0, 5.0]).tobytes())
    assert list(shared_cells(path, [3.0, 4.0])) == [3.0, 4.0]
    path.write_bytes(b"torn")
    assert list(shared_cells(path, [3.0, 4.0])) == [3.0, 4.0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_database_decides() -> None:
    clock = DatabaseClock()
    at = steady()
    clock.measure(at, T0, at)
    assert clock.now() == pytest.approx(T0, abs=0.5)
    assert not clock.stepped_back()
    clock.measure(at, T0 + HOUR, at)
    assert clock.now() == pytest.approx(T0 + HOUR, abs=0.5)
    assert not clock.stepped_back()
    clock.measure(at, T0, at)
    assert clock.now() == pytest.approx(T0, abs=0.5)
    assert [clock.stepped_back(), clock.stepped_back()] == [True, False]
    # Nothing moves a server's clock from here.
    clock.jump()
    clock.follow(2)
    clock.not_before(T0 + DAY)
    assert clock.now() == pytest.approx(T0, abs=0.5)


def test_a_slow_answer_does_not_shift_what_a_quick_one_showed() -> None:
    clock = DatabaseClock()
    at = steady()
    clock.measure(at, T0, at)
    exact = clock.now() - steady()
    clock.measure(at, T0, at + 3.0)
    assert clock.now() - steady() == pytest.approx(exact, abs=1e-3)
    clock.measure(at, T0 + 10.0, at + 3.0)
    assert clock.now() - steady() == pytest.approx(exact + 8.5, abs=1e-3)
