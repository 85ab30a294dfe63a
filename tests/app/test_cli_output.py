"""What commands print: for people, for programs, for spreadsheets, and on a terminal."""

import csv
import io
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from flask.testing import FlaskClient

from bridge.cli import KEY_VARIABLES, main
from bridge.cli.output import csv_text
from bridge.sandbox import SandboxServer
from bridge.settings import Settings
from bridge.web.shapes import FileAccepted
from tests.commands import Command, run_bridge
from tests.conftest import ALICE, MakeApp, Provide, bearer, environment, eventually, send

SEGMENT = f"user_id\n{ALICE}\n"


@pytest.fixture
def environ(sandbox: SandboxServer, tmp_path: Path, provide: Provide) -> dict[str, str]:
    provide(f"sqlite:///{tmp_path}/bridge.db")
    public = {"BRIDGE_PUBLIC_URL": "https://bridge.example.com"}
    return {"PATH": "", "TZ": "America/New_York", **environment(sandbox.url, tmp_path), **public}


@pytest.fixture
def event(make_app: MakeApp) -> str:
    """The ID of an event that waits, in the store that *environ* names."""
    client: FlaskClient = make_app().test_client()
    return send(client, braze_campaign_id="summer", tags=["vip"], ttl="1d")


# --- Help -------------------------------------------------------------------------------------


def commands(group: click.Group, path: str = "bridge") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def test_every_command_says_in_one_whole_line_what_it_does() -> None:
    for path, command in commands(main):
        # What is left of 80 columns beside the longest name.
        line = command.get_short_help_str(limit=62)
        assert line.endswith("."), path
        assert not line.endswith("..."), path


def test_every_option_has_help() -> None:
    for path, command in commands(main):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (path, parameter.name)


# --- JSON and CSV -----------------------------------------------------------------------------

PRINTING: list[tuple[list[str], str]] = [
    (["queue", "list"], "campaign_id"),
    (["queue", "status"], "queued"),
    (["queue", "show", "EVENT"], "id"),
    (["queue", "replay", "--all", "--dry-run"], "matched"),
    (["queue", "discard", "--state", "queued", "--dry-run"], "matched"),
    (["queue", "discard", "EVENT"], "result"),
    (["batch", "submit", "segment.csv", "--tag", "vip", "--ttl", "30d"], "rows"),
    (["batch", "submit", "segment.csv", "--tag", "vip", "--ttl", "30d", "--dry-run"], "rows"),
    (["batch", "status"], "state"),
    (["warm", "segment.csv", "--tags"], "fetched"),
    (["erase", "--user-id", ALICE], "events"),
    (["keys", "new", "ops"], "key"),
    (["check"], "ok"),
]


@pytest.mark.parametrize(("arguments", "field"), PRINTING, ids=lambda given: str(given)[:40])
def test_what_prints_data_prints_json_and_csv(
    environ: dict[str, str], event: str, tmp_path: Path, arguments: list[str], field: str
) -> None:
    (tmp_path / "segment.csv").write_text(SEGMENT)
    given = [event if argument == "EVENT" else argument for argument in arguments]
    if given[:2] == ["batch", "status"]:
        submit = ["batch", "submit", "segment.csv", "--tag", "vip", "--ttl", "30d"]
        assert run_bridge(*submit, env=environ, cwd=tmp_path).returncode == 0
    # The second time there may be nothing left to do, or nothing that may be done again.
    again = ["--again"] if "submit" in given else []
    shown = run_bridge(*given, "--csv", env=environ, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    [first, *_] = csv.DictReader(io.StringIO(shown.stdout))
    assert first[field]
    shown = run_bridge(*given, *again, "--json", env=environ, cwd=tmp_path)
    document = json.loads(shown.stdout)
    assert field in str(document)


def test_a_submission_is_described_as_by_the_api(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "segment.csv").write_text(SEGMENT)
    given = ["batch", "submit", "segment.csv", "--tag", "vip", "--dry-run", "--json"]
    shown = json.loads(run_bridge(*given, env=environ, cwd=tmp_path).stdout)
    assert shown.keys() == FileAccepted.model_fields.keys()
    assert shown["first_rows"] == [{"user_id": ALICE, "tag": "vip", "expires": ""}]


def test_a_cell_that_a_spreadsheet_would_compute_is_quoted() -> None:
    rows = [{"customer": "=cmd()", "n": -5, "tags": ["a", "b"], "test": True, "reason": "+1"}]
    assert csv_text(rows).splitlines() == ["customer,n,tags,test,reason", "'=cmd(),-5,a b,true,'+1"]


# --- For people -------------------------------------------------------------------------------


def test_a_list_has_a_header_aligned_columns_and_local_times(
    environ: dict[str, str], make_app: MakeApp, tmp_path: Path
) -> None:
    client = make_app().test_client()
    send(client, braze_campaign_id="a-campaign-with-a-long-name")
    send(client, braze_campaign_id="b")
    stored = run_bridge("queue", "list", "--json", env=environ, cwd=tmp_path).stdout
    received = json.loads(stored)[0]["received_at"]
    header, *lines = run_bridge("queue", "list", env=environ, cwd=tmp_path).stdout.splitlines()
    assert re.match(
        r"RECEIVED \(E[SD]T\) +STATE +TO +CAMPAIGN OR CANVAS +CUSTOMER +ID +REASON", header
    )
    assert "  SessionM  b  " in lines[0]
    column = header.index("STATE")
    assert [line[column : column + 6] for line in lines] == ["queued", "queued"]
    assert received[:16].replace("T", " ") not in lines[0]
    in_utc = run_bridge("queue", "list", env={**environ, "TZ": "UTC"}, cwd=tmp_path).stdout
    assert received[:16].replace("T", " ") in in_utc


def test_an_event_is_shown_readably(environ: dict[str, str], event: str, tmp_path: Path) -> None:
    shown = run_bridge("queue", "show", event, env=environ, cwd=tmp_path).stdout
    for line in (f"Event     {event}", "State     queued", f"Customer  user_id {ALICE}"):
        assert line in shown.splitlines()
    assert re.search(r"^Write     .*vip.*, for 1d: queued$", shown, re.MULTILINE)
    assert "To        SessionM" in shown.splitlines()
    assert '"braze_campaign_id": "summer"' in shown


def test_what_was_received_does_not_steer_the_terminal(
    make_app: MakeApp, environ: dict[str, str], tmp_path: Path
) -> None:
    client = make_app().test_client()
    client.post("/webhooks/braze", data="no\tJSON \x1b[2J\n{", headers=bearer("webhook"))
    listed = client.get("/api/events", headers=bearer("admin")).get_json()["events"]
    [event] = [one["id"] for one in listed if one["state"] == "rejected"]
    shown = run_bridge("queue", "show", event, env=environ, cwd=tmp_path).stdout
    assert "no      JSON \N{REPLACEMENT CHARACTER}[2J\n{" in shown


def test_a_new_key_says_where_it_belongs(tmp_path: Path) -> None:
    made = run_bridge("keys", "new", "ops", env={"PATH": ""}, cwd=tmp_path)
    assert re.fullmatch(r"ops:[\w-]{43}\n", made.stdout)
    settings = {name.upper() for name in Settings.model_fields if name.endswith("_keys")}
    assert set(KEY_VARIABLES) == settings
    assert all(name in made.stderr for name in settings)


# --- On a terminal ----------------------------------------------------------------------------


def on_a_terminal(environ: Mapping[str, str], folder: Path, *arguments: str) -> str:
    """What a command writes to a terminal."""
    ours, end = pty.openpty()
    with os.fdopen(end, "r+b", buffering=0) as theirs:
        command = Command(
            *arguments, env=environ, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
        )
    written = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            written += chunk
    except OSError:
        # Linux says EIO when the other end is closed.
        pass
    command.wait(60)
    os.close(ours)
    return written.decode()


def test_colours_are_for_terminals_and_not_for_who_wants_none(
    environ: dict[str, str], event: str, tmp_path: Path
) -> None:
    assert event
    for command in (("queue", "list"), ("queue", "status"), ("check",)):
        assert "\x1b[" in on_a_terminal(environ, tmp_path, *command)
        assert "\x1b[" not in on_a_terminal({**environ, "NO_COLOR": "1"}, tmp_path, *command)
        assert "\x1b[" not in run_bridge(*command, env=environ, cwd=tmp_path).stdout


def test_a_watched_status_goes_on_until_ctrl_c(
    environ: dict[str, str], make_app: MakeApp, tmp_path: Path
) -> None:
    client = make_app().test_client()
    output = tmp_path / "watched"
    with output.open("wb") as stdout, Path(os.devnull).open("rb") as stdin:
        command = Command(
            *("queue", "status", "--watch"),
            env=environ,
            cwd=tmp_path,
            stdin=stdin,
            stdout=stdout,
            stderr=stdout,
        )
        eventually(lambda: "Backlog   0 writes" in output.read_text())
        send(client, braze_campaign_id="summer")
        eventually(lambda: "Backlog   1 write;" in output.read_text())
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
    assert "Traceback" not in output.read_text()
    # Each print begins with its time.
    times = re.findall(r"^20\d\d-\d\d-\d\d \S+ \S+\nDatabase ", output.read_text(), re.MULTILINE)
    assert len(times) == output.read_text().count("\nBacklog ") > 1


def test_a_locked_database_is_named_with_what_to_do(
    environ: dict[str, str], event: str, tmp_path: Path
) -> None:
    lock = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")

    def shown(*arguments: str) -> str:
        ended = run_bridge(*arguments, env=environ, cwd=tmp_path)
        return ended.stdout + ended.stderr

    status = shown("queue", "status")
    assert status.startswith(f"Database  {tmp_path}/bridge.db\nDelivery  unknown\n")
    assert "  -> End the program that locks the database" in status
    assert "     -> end the process that locks it" in shown("check")
    assert "locked it; `bridge check` says what to do\n" in shown("queue", "discard", event)
    lock.close()
    environ["BRIDGE_DATABASE_URL"] = "postgresql://u@127.0.0.1:1/d"
    away = shown("queue", "status")
    assert re.fullmatch(r"bridge: .* refused; `bridge check` says what to do\n", away)


def test_a_check_ends_a_failure_that_no_call_would_end(
    environ: dict[str, str], make_app: MakeApp, sandbox: SandboxServer, tmp_path: Path
) -> None:
    client = make_app().test_client()

    def state() -> str:
        health = client.get("/health", headers=bearer("admin")).get_json()
        return str(health["checks"]["sessionm_connect"]["state"])

    sandbox.sandbox.set_faults({"status": 503})
    client.get(f"/connected-content/offers?user_id={ALICE}", headers=bearer("content"))
    eventually(lambda: state() == "failing")
    sandbox.sandbox.set_faults({})
    run_bridge("check", env=environ, cwd=tmp_path)
    eventually(lambda: state() == "up")


# --- Completion -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands(tmp_path: Path, shell: str) -> None:
    path = {"PATH": os.environ["PATH"]}
    script = run_bridge("completion", shell, env=path, cwd=tmp_path)
    assert script.returncode == 0
    assert f"_BRIDGE_COMPLETE={shell}_complete" in script.stdout
    words = {"COMP_WORDS": "bridge queue re", "COMP_CWORD": "2" if shell != "fish" else "re"}
    asked = {**path, **words, "_BRIDGE_COMPLETE": f"{shell}_complete"}
    answer = run_bridge(env=asked, cwd=tmp_path).stdout
    assert "replay" in answer
    assert "resume" in answer
    assert "discard" not in answer


def test_bash_takes_the_script(tmp_path: Path) -> None:
    path = {"PATH": os.environ["PATH"]}
    script = run_bridge("completion", "bash", env=path, cwd=tmp_path).stdout
    ended = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p bridge"], capture_output=True, text=True, check=True
    )
    assert "bridge" in ended.stdout


# --- Mistakes ---------------------------------------------------------------------------------

MISTAKES: list[tuple[list[str], int, str]] = [
    (["queue", "list", "--since", "yesterday"], 2, "--since"),
    (["queue", "list", "--state", "lost"], 2, "--state"),
    (["queue", "list", "--json", "--csv"], 2, "give --json or --csv, not both"),
    (["queue", "show", "nonsense"], 1, "bridge queue list"),
    (["queue", "replay"], 2, "--all"),
    (["queue", "replay", "--state", "queued"], 1, "state"),
    (["queue", "replay", "nonsense"], 1, "bridge queue list"),
    (["queue", "discard", "one", "two"], 1, "2 of 2 events not discarded"),
    (["erase"], 2, "--user-id"),
    (["erase", "--user-id", "a", "--external-id", "b"], 2, "--external-id"),
    (["batch", "submit", "segment.csv"], 1, "--tag"),
    (["batch", "submit", "missing.csv", "--tag", "x"], 2, "missing.csv"),
    (["batch", "submit", "segment.csv", "--tag", "x", "--ttl", "soon"], 1, "--ttl"),
    (["batch", "status", "nonsense"], 1, "bridge batch status"),
    (["batch", "resubmit", "nonsense"], 1, "bridge batch status"),
    (["warm", "segment.csv", "--culture", "?"], 1, "culture"),
    (["keys", "new", "a:b"], 2, "letters"),
    (["completion", "csh"], 2, "bash"),
    (["serve", "--bind", "nowhere"], 2, "--bind"),
    (["move", "--from", "sqlite:///a.db", "--to", "sqlite:///a.db"], 2, "same database"),
    (["render", "message.liquid"], 2, "--user-id"),
    (["chekc"], 2, "check"),
]


@pytest.mark.parametrize(("arguments", "status", "says"), MISTAKES, ids=str)
def test_a_mistake_ends_in_one_line_that_says_what_to_do(
    environ: dict[str, str], tmp_path: Path, arguments: list[str], status: int, says: str
) -> None:
    (tmp_path / "segment.csv").write_text(SEGMENT)
    (tmp_path / "message.liquid").write_text("{% connected_content https://x :basic_auth bridge %}")
    ended = run_bridge(*arguments, env=environ, cwd=tmp_path)
    assert ended.returncode == status, ended.stderr
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("bridge: ")
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["batch", "submit", "segment.csv"], "--tag"),
        (["batch", "submit", "segment.csv", "--tag", "x", "--ttl", "soon"], "--ttl"),
        (["serve", "--bind", "nowhere"], "--bind"),
        (["warm", "segment.csv", "--culture", "?"], "culture"),
        (["render", "message.liquid"], "--user-id"),
    ],
    ids=str,
)
def test_a_mistake_in_the_command_is_named_before_one_in_the_settings(
    environ: dict[str, Any], tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "segment.csv").write_text(SEGMENT)
    (tmp_path / "message.liquid").write_text("{% connected_content https://x :basic_auth bridge %}")
    del environ["BRIDGE_PUBLIC_URL"]
    if arguments[:2] != ["batch", "submit"] or "--ttl" in arguments:
        # The columns of a file are read with the rules, and so after the settings.
        del environ["SESSIONM_CORE_URL"]
    ended = run_bridge(*arguments, env=environ, cwd=tmp_path)
    [line] = ended.stderr.strip().splitlines()
    assert says in line
    assert "BRIDGE_PUBLIC_URL" not in line
    assert "SESSIONM_CORE_URL" not in line
