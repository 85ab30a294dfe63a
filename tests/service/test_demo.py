"""`bridge demo`: the first command that anybody runs."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.commands import Command, run_bridge
from tests.conftest import ALICE, children_of, eventually, free_port

# Seconds: on a busy machine the demo takes its time.
PATIENCE = 120


class DemoProcess:
    """`bridge demo` as a user starts it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.port = free_port()
        self._out, self._err = folder / "out", folder / "err"
        with (
            Path(os.devnull).open("rb") as nothing,
            self._out.open("wb") as out,
            self._err.open("wb") as err,
        ):
            self.process = Command(
                *("demo", "--port", str(self.port)),
                env={"PATH": "", **environment},
                cwd=folder,
                stdin=nothing,
                stdout=out,
                stderr=err,
            )

    def has_printed(self, words: str) -> str:
        """Wait for *words*; returns everything that was printed."""

        def look() -> str:
            assert self.process.poll() is None, self.errors()
            return text if words in (text := self._out.read_text()) else ""

        return eventually(look, PATIENCE)

    def errors(self) -> str:
        return self._err.read_text()

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoProcess]:
    # Nothing listens at the discard port: a request by this proxy would fail.
    proxy = "http://127.0.0.1:9"
    demo = DemoProcess(tmp_path, HTTP_PROXY=proxy, http_proxy=proxy, ALL_PROXY=proxy)
    yield demo
    if demo.process.poll() is None:
        demo.end()


def test_the_demo_shows_itself_and_ends_on_ctrl_c(demo: DemoProcess, tmp_path: Path) -> None:
    shown = demo.has_printed("Running.")
    assert shown.startswith("Starting …\n")
    content_key = re.search(r"content key\s+demo:(\S+)", shown)
    assert content_key
    offers = requests.get(
        f"http://127.0.0.1:{demo.port}/connected-content/offers?user_id={ALICE}",
        headers={"Authorization": f"Bearer {content_key[1]}"},
        timeout=10,
    )
    assert offers.json()["count"] == 5
    viewer_key = re.search(r"viewer key\s+demo:(\S+)", shown)
    assert viewer_key
    for path, status in (("dashboard", 200), ("delivery/pause", 403)):
        page = requests.get(
            f"http://127.0.0.1:{demo.port}/{path}", auth=("demo", viewer_key[1]), timeout=10
        )
        assert page.status_code == status
    assert "summer-sale: accepted" in shown
    assert "same one: duplicate" in shown
    assert "tags: " in shown
    assert "<strong>Free coffee this weekend</strong>" in shown
    assert "You have 5 offers" in shown
    # The demo's own traffic turns no step of the setup green.
    admin = ("demo", re.search(r"admin key\s+demo:(\S+)", shown)[1])  # type: ignore[index]
    progress = f"http://127.0.0.1:{demo.port}/setup/progress"
    eventually(
        lambda: not any(requests.get(progress, auth=admin, timeout=10).json()["steps"].values())
    )
    # Commands work in the demo's folder.
    command = re.search(r"cd (\S+) && (\S+) queue status", shown)
    assert command
    backlog = run_bridge("queue", "status", env={"PATH": ""}, cwd=Path(command[1])).stdout
    assert "Backlog   0 writes" in backlog
    render = re.search(r"\S+ (render --url .*) \\\n +(\S+)", shown)
    assert render
    given = (*render[1].split(), render[2])
    message = run_bridge(*given, env={"PATH": ""}, cwd=Path(command[1])).stdout
    assert "Your offer: <strong>" in message
    assert Path(command[2]).exists()
    assert demo.end() == 0
    assert demo.errors() == ""
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{demo.port}/healthz", timeout=5)
    assert not list(tmp_path.glob("*.db"))


def test_a_slow_start_is_waited_for(demo: DemoProcess) -> None:
    demo.has_printed("Starting …")
    [bridge] = eventually(demo.children, PATIENCE)
    os.kill(bridge, signal.SIGSTOP)
    # Longer than a request of a usual client lasts.
    with pytest.raises(subprocess.TimeoutExpired):
        demo.process.wait(3)
    os.kill(bridge, signal.SIGCONT)
    demo.has_printed("Running.")


@pytest.mark.parametrize("when", ["Starting …", "Running."])
def test_a_bridge_that_dies_ends_the_demo_with_one_line_that_says_so(
    demo: DemoProcess, when: str
) -> None:
    demo.has_printed(when)
    [bridge] = eventually(demo.children, PATIENCE)
    os.kill(bridge, signal.SIGKILL)
    assert demo.process.wait(PATIENCE) == 1
    [line] = demo.errors().splitlines()
    assert line.startswith("bridge: the bridge has ended with status -9")


def test_ctrl_c_is_obeyed_while_the_demo_starts(demo: DemoProcess) -> None:
    demo.has_printed("Starting …")
    assert demo.end() == 0
    assert demo.errors() == ""
