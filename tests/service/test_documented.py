"""Each command of the README and of docs/ is run, as far as this machine can."""

import logging
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from bridge.cli import main
from bridge.sandbox import SandboxServer
from tests.commands import Command, run_bridge
from tests.conftest import ALICE, KEYS, SEED_CUSTOMER, MakeService, Service, bearer, eventually

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:bridge|curl) [^`]*)`")

# What no test can run as it stands there -> why, and what runs instead. A key is the beginning
# of the command.
NOT_RUN = {
    # Of the bridge: these run until they are ended, or at an address of their own.
    "bridge demo": "tests/service/test_demo.py runs it to its end",
    "bridge serve": "`make_service` runs it at another address, for every test of this folder",
    "bridge deliver": "tests/service/test_crash.py runs it to its end",
    # Of other programs.
    "python3 -m venv": "an environment with packages of a registry: every run of the tests has one",
    "pip install": "as above",
    "pytest": "these are the tests",
    "ruff": "looks at the code alone",
    "mypy": "as above",
    "bench/setup": "installs databases and load generators",
    "python -m bench": "takes an hour; tests/service/test_bench.py runs its parts",
    "mkdir -m 700 deploy/secrets": "writes secrets; its `bridge keys new` are run",
    "printf": "as above",
    "install -": "needs root and systemd; tests/service/test_deploy.py reads the same files",
    "systemd-sysusers": "as above",
    "systemctl": "as above",
    "bridge-run": "as above",
    "docker": "needs a registry; tests/service/test_deploy.py reads the same files",
    "kubectl": "needs a cluster; tests/service/test_deploy.py reads the same files",
    "export": "sets a variable",
}


def lines() -> Iterator[str]:
    """Each command line of the documents, without prompts, variables and comments."""
    for page in PAGES:
        text = page.read_text()
        for kind, block in BLOCK.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                if kind == "sh" or (kind == "console" and line.startswith("$ ")):
                    yield from re.split(r"&&|\||;", line.removeprefix("$ "))
        if page.name != "CHANGELOG.md":
            yield from SPAN.findall(BLOCK.sub("", text).replace("\n", " "))


def commands() -> set[tuple[str, ...]]:
    """The same as words, each once; `bridge` by whatever path."""
    found = (shlex.split(re.sub(r"\s>.*", "", line), comments=True) for line in lines())
    return {
        (Path(words[0]).name if "bin/" in words[0] else words[0], *words[1:])
        for words in found
        if words and not re.match(r"\w+=", words[0]) and words[0] not in {"cd", "."}
    }


def is_run(words: tuple[str, ...]) -> bool:
    return not any(" ".join(words).startswith(one) for one in NOT_RUN)


def test_commands_that_are_not_run_are_listed_and_the_list_has_no_others() -> None:
    every = [" ".join(words) for words in commands()]
    assert {words[0] for words in commands() if is_run(words)} == {"bridge", "curl"}
    assert [one for one in NOT_RUN if not any(line.startswith(one) for line in every)] == []


# A command that is named without what it needs -> what it is run with.
COMPLETED = {
    ("batch", "submit"): ("segment.csv", "--tag", "vip", "--ttl", "1d"),
    ("erase",): ("--user-id", ALICE),
    ("move",): ("--from", "sqlite:///var/bridge.db", "--to", "sqlite:///second.db"),
    ("queue", "discard"): ("--all", "--dry-run"),
    ("queue", "replay"): ("--all", "--dry-run"),
    ("render", "TEMPLATE.liquid"): ("--user-id", SEED_CUSTOMER),
    ("warm",): ("segment.csv",),
}


class Documented:
    """Runs commands of the documents, with real names in place of those of the examples."""

    def __init__(self, service: Service) -> None:
        # In this process: another one for each command would cost a second.
        self._shell = CliRunner(env=service.environ)
        self.service = service
        self.batches: list[str] = []
        self.event = ""
        folder = service.folder
        (folder / "segment.csv").write_text(f"user_id\n{ALICE}\n{SEED_CUSTOMER}\n")
        with zipfile.ZipFile(folder / "segment.zip", "w") as file:
            file.write(folder / "segment.csv", "segment.csv")
        (folder / "message.liquid").write_text("Hi {{${first_name}}}")
        (folder / "ann.json").write_text('{"first_name": "Ann"}')
        self.names = {
            "FILE.csv": "segment.csv",
            "TEMPLATE.liquid": str(ROOT / "templates/liquid/best_offer.liquid"),
            "sqlite:///var/bridge.db": service.environ["BRIDGE_DATABASE_URL"],
            "postgresql://bridge@db.internal/bridge": f"sqlite:///{folder}/first.db",
            "sqlite:///second.db": f"sqlite:///{folder}/second.db",
            "…": "summer",
        }

    def run(self, words: Sequence[str]) -> str:
        """What the command prints; it must succeed."""
        words = [*words, *COMPLETED.get(tuple(words), ())]
        filled = [self._filled(words, word) for word in words]
        if words[0] == "render":
            filled += ["--url", self.service.url]
        ended = self._shell.invoke(main, filled)
        assert ended.exit_code == 0, (filled, ended.output, ended.exception)
        return ended.stdout

    def run_curl(self, words: Sequence[str]) -> None:
        """Make the same call to this bridge; it must succeed."""
        real = {"SECRET": KEYS["admin"], "https://bridge.acme.com": self.service.url}
        call = list(words)
        for example, name in real.items():
            call = [word.replace(example, name) for word in call]
        subprocess.run([*call, "--silent", "--fail"], cwd=self.service.folder, check=True)

    def _filled(self, words: Sequence[str], word: str) -> str:
        if word in {"ID", "[ID]"}:
            if words[0] == "batch":
                # One is submitted again, one discarded.
                return self.batches[words[1] == "discard"]
            return self.event if words[1] == "show" else "summer" if words[0] == "queue" else ALICE
        if word.startswith("templates/"):
            return str(ROOT / word)
        return self.names.get(word, word)

    def dead_event(self, sandbox: SandboxServer) -> None:
        """One that SessionM refuses, of the campaign summer; and one that the bridge refuses."""
        sandbox.sandbox.set_faults({"ok_error": True, "code": "validation", "match": "POST"})
        self.event = self.service.webhook(user_id=ALICE, braze_campaign_id="summer").json()["id"]
        eventually(lambda: "dead" in self.run(("queue", "list", "--state", "dead")))
        sandbox.sandbox.set_faults({})
        assert self.service.webhook(user_id="", braze_campaign_id="summer").status_code == 422

    def failed_batches(self, sandbox: SandboxServer) -> None:
        url = f"{sandbox.url}/sandbox/batches"
        requests.post(url, json={"fail": "on request"}, timeout=9).raise_for_status()
        # Without a TTL they count, and what counts is not submitted again by itself.
        for tag in ("one", "two"):
            self.run(("batch", "submit", "segment.csv", "--tag", tag))

        def failed() -> list[str]:
            listed = requests.get(
                f"{self.service.url}/batches", headers=bearer("admin"), timeout=9
            ).json()["batches"]
            return [one["id"] for one in listed if one["state"] == "failed"]

        eventually(lambda: len(failed()) == 2)
        self.batches = failed()
        requests.post(url, json={}, timeout=9).raise_for_status()


# What comes before what: a batch fails before it is submitted again, all is stopped for `move`.
ORDER = ("keys", "completion", "check", "queue", "render", "warm", "batch", "erase", "move")


def test_every_command_of_the_documents_works(
    make_service: MakeService, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service("--workers", "1", public=True)
    monkeypatch.chdir(service.folder)
    # The commands replace them.
    monkeypatch.setattr(logging.getLogger("bridge"), "handlers", [])
    documented = Documented(service)
    documented.dead_event(sandbox)
    documented.failed_batches(sandbox)
    ours = [words[1:] for words in commands() if words[0] == "bridge" and is_run(words)]
    of_bridge = [words for words in ours if words[0] != "sandbox"]
    for words in commands():
        if words[0] == "curl" and shutil.which("curl"):
            documented.run_curl(words)
    for words in sorted(of_bridge, key=lambda words: (ORDER.index(words[0]), words)):
        if words[0] == "move" and service.process and service.process.poll() is None:
            assert service.stop() == 0
        documented.run(words)


def test_the_sandbox_prints_settings_that_are_good(tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    with printed.open("wb") as out, Path(os.devnull).open("r+b") as nothing:
        sandbox = Command(
            *("sandbox", "--port", "0"),
            env={"PATH": "", "PYTHONUNBUFFERED": "1"},
            cwd=tmp_path,
            stdin=nothing,
            stdout=out,
            stderr=nothing,
        )
    try:
        eventually(lambda: "Customers:" in printed.read_text())
        settings = dict(re.findall(r"^export (\w+)=(.*)$", printed.read_text(), re.MULTILINE))
        keys = {f"BRIDGE_{s.upper()}_KEYS": f"a:{key}" for s, key in KEYS.items()}
        done = run_bridge("check", env={"PATH": "", **settings, **keys}, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
    finally:
        sandbox.terminate()
        assert sandbox.wait(30) == 0
