"""The `bridge` command, as a user runs it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from bridge.sessionm.sandbox import SandboxServer
from tests.conftest import (
    ALICE,
    KEYS,
    SEED_CUSTOMER,
    MakeService,
    environment,
    eventually,
    free_port,
)

SNIPPETS = Path(__file__).parent.parent / "templates" / "liquid"


def bridge(folder: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        env={"PATH": "", **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_command_has_help(tmp_path: Path) -> None:
    listed = bridge(tmp_path, "--help").stdout
    commands = re.findall(r"^  (\w+)  ", listed, re.MULTILINE)
    assert {"demo", "serve", "deliver", "sandbox", "check", "render", "keys"} <= set(commands)
    for command in commands:
        shown = bridge(tmp_path, command, "--help")
        assert shown.returncode == 0
        assert shown.stdout.startswith("Usage:")


def test_a_new_key_is_a_name_and_a_long_secret(tmp_path: Path) -> None:
    first, second = (bridge(tmp_path, "keys", "new", "braze").stdout.strip() for _ in range(2))
    assert re.fullmatch(r"braze:[\w-]{43}", first)
    assert first != second
    assert bridge(tmp_path, "keys", "new", "a:b").returncode != 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("SESSIONM_CORE_URL", "core.example"),
        ("BRIDGE_WEBHOOK_KEYS", "justasecret"),
        ("BRIDGE_ALLOWED_IPS", "10.0.0.0/99"),
        ("BRIDGE_DATABASE_URL", "mysql://x"),
        ("BRIDGE_CAMPAIGN_TTL", "soon"),
        ("BRIDGE_LOOKUP_DEADLINE", "fast"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, setting: str, value: str
) -> None:
    environ = {**environment("http://127.0.0.1:9", tmp_path), setting: value}
    ended = bridge(tmp_path, "serve", **environ)
    assert ended.returncode == 1
    [line] = ended.stderr.strip().splitlines()
    assert setting in line
    assert f"for example {setting}=" in line
    assert "justasecret" not in line


def test_rules_that_contradict_themselves_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(
        '[campaigns.a]\ntags = ["x"]\n[campaigns.b]\ncounters = ["x"]\n'
    )
    ended = bridge(tmp_path, "serve", **environment("http://127.0.0.1:9", tmp_path))
    assert ended.returncode == 1
    [line] = ended.stderr.strip().splitlines()
    assert '"x"' in line
    assert "rules.toml" in line


def test_without_keys_it_serves_only_this_machine(tmp_path: Path) -> None:
    environ = {**environment("http://127.0.0.1:9", tmp_path), "BRIDGE_INSECURE_NO_AUTH": "1"}
    ended = bridge(tmp_path, "serve", "--bind", f"0.0.0.0:{free_port()}", **environ)
    assert ended.returncode == 1
    assert "BRIDGE_INSECURE_NO_AUTH" in ended.stderr


def test_check_is_content_when_all_is_well(tmp_path: Path, sandbox: SandboxServer) -> None:
    ended = bridge(tmp_path, "check", "--json", **environment(sandbox.url, tmp_path))
    found = json.loads(ended.stdout)
    assert ended.returncode == 0, ended.stdout
    assert found["ok"] is True
    assert {check["name"] for check in found["checks"]} >= {
        "settings",
        "rules",
        "store",
        "SessionM Core",
        "SessionM Connect",
    }


def test_check_does_not_blame_the_settings_for_a_sessionm_that_is_down(
    tmp_path: Path, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    ended = bridge(tmp_path, "check", **environment(sandbox.url, tmp_path))
    assert ended.returncode == 1
    assert ended.stdout.count("-> SessionM is down or overloaded") == 2
    assert "check SESSIONM" not in ended.stdout


@pytest.mark.parametrize(
    ("wrong", "name", "remedy"),
    [
        ({"SESSIONM_CORE_SECRET": "nonsense"}, "SessionM Core", "SESSIONM_CORE_SECRET"),
        ({"SESSIONM_CORE_URL": "http://127.0.0.1:9"}, "SessionM Core", "SESSIONM_CORE_URL"),
        ({"SESSIONM_CONNECT_AUTH": "a:nonsense"}, "SessionM Connect", "SESSIONM_CONNECT_AUTH"),
        ({"BRIDGE_DATABASE_URL": "sqlite:////proc/no/bridge.db"}, "store", "disk"),
        ({"BRIDGE_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d"}, "store", "refused"),
        ({"SESSIONM_CORE_KEY": ""}, "settings", "SESSIONM_CORE_KEY"),
    ],
)
def test_check_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, sandbox: SandboxServer, wrong: dict[str, str], name: str, remedy: str
) -> None:
    ended = bridge(tmp_path, "check", **{**environment(sandbox.url, tmp_path), **wrong})
    assert ended.returncode == 1
    failed = re.search(rf"FAIL {name}: .*(\n.*)?", ended.stdout)
    assert failed
    assert remedy in failed[0]
    assert "nonsense" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_render_shows_the_message_that_braze_would_send(
    tmp_path: Path, make_service: MakeService
) -> None:
    service = make_service()
    arguments = ("--user-id", SEED_CUSTOMER, "--url", service.url)
    rendered = bridge(
        tmp_path,
        "render",
        str(SNIPPETS / "points_balance.liquid"),
        *arguments,
        "--key",
        f"test:{KEYS['content']}",
    )
    assert rendered.returncode == 0, rendered.stderr
    assert "100" in rendered.stdout
    assert KEYS["content"] not in rendered.stderr + rendered.stdout


def test_render_names_the_line_of_a_broken_template(tmp_path: Path) -> None:
    broken = tmp_path / "broken.liquid"
    broken.write_text("fine\n{% if %}\n")
    ended = bridge(tmp_path, "render", str(broken), "--user-id", "u1", "--key", "a:b")
    assert ended.returncode == 1
    assert "line 2" in ended.stderr


def test_the_demo_shows_itself_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "bridge", "demo", "--port", str(port)],
            env={"PATH": "", "PYTHONUNBUFFERED": "1"},
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    shown = eventually(
        lambda: text if "Running." in (text := (tmp_path / "out").read_text()) else "", 40
    )
    content_key = re.search(r"content key\s+demo:(\S+)", shown)
    assert content_key
    offers = requests.get(
        f"http://127.0.0.1:{port}/connected-content/offers?user_id={ALICE}",
        headers={"Authorization": f"Bearer {content_key[1]}"},
        timeout=10,
    )
    assert offers.json()["count"] == 4
    assert "duplicate" in shown
    demo.send_signal(signal.SIGINT)
    assert demo.wait(40) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
    assert not list(tmp_path.glob("*.db"))


def test_a_taken_port_is_told_in_one_line(tmp_path: Path, sandbox: SandboxServer) -> None:
    for command in ("demo", "sandbox"):
        ended = bridge(tmp_path, command, "--port", str(sandbox.port))
        assert ended.returncode == 1
        [line] = ended.stderr.strip().splitlines()
        assert str(sandbox.port) in line
