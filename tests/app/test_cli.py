"""The `bridge` command, as a user runs it."""

import json
import os
import re
import subprocess
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from bridge.sandbox import SandboxServer
from tests.commands import Command, run_bridge
from tests.conftest import (
    KEYS,
    SEED_CUSTOMER,
    MakeService,
    Provide,
    environment,
    free_port,
    rows,
)
from tests.network import Listener, Visitor, unwell
from tests.postgres import fresh_database

SNIPPETS = Path(__file__).parents[2] / "templates" / "liquid"


def bridge(folder: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return run_bridge(*arguments, env={"PATH": "", **environ}, cwd=folder)


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


def test_check_passes_with_warnings_about_what_is_no_failure(
    tmp_path: Path, sandbox: SandboxServer, provide: Provide
) -> None:
    environ = environment(sandbox.url, tmp_path, BRIDGE_TRIGGER_KEYS="", BRIDGE_SESION_RPS="3")
    provide(environ["BRIDGE_DATABASE_URL"])
    ended = bridge(tmp_path, "check", "--json", **environ)
    found = json.loads(ended.stdout)
    assert ended.returncode == 0, ended.stdout
    assert found["ok"] is True
    marks = {check["name"]: check["mark"] for check in found["checks"]}
    for name in ("viewer keys", "rules", "store", "clock", "SessionM Core", "SessionM Connect"):
        assert marks.pop(name) == "ok"
    # Nothing delivers yet, a setting is misspelt, and SessionM has no key.
    for name in ("settings", "delivery", "delivery to Braze", "trigger keys"):
        assert marks.pop(name) == "warn"
    remedies = {check["result"]: check["remedy"] for check in found["checks"]}
    assert remedies["stopped; 0 writes waiting, 0 dead"] == "start `bridge serve`"
    assert "BRIDGE_SESION_RPS is not a setting; did you mean BRIDGE_SESSIONM_RPS?" in remedies


def test_only_what_runs_the_bridge_creates_a_database(
    tmp_path: Path, sandbox: SandboxServer
) -> None:
    (tmp_path / "segment.csv").write_text("user_id\nu1\n")
    with fresh_database() as empty:
        for url, name in (
            (f"sqlite:///{tmp_path}/away/x.db", f"{tmp_path}/away/x.db"),
            ("sqlite:///var/bridge.db", f"{tmp_path}/var/bridge.db"),
            (empty, "postgresql://127.0.0.1"),
        ):
            environ = environment(sandbox.url, tmp_path, BRIDGE_DATABASE_URL=url)
            for command in (
                ("queue", "status"),
                ("queue", "pause"),
                ("erase", "--user-id", "u1"),
                ("batch", "status"),
                ("warm", "segment.csv"),
                ("move", "--from", url, "--to", "sqlite:///other.db"),
            ):
                ended = bridge(tmp_path, *command, **environ)
                assert ended.returncode == 1
                assert f"there is no database at {name}" in ended.stderr
            checked = bridge(tmp_path, "check", **environ)
            assert f"warn store: there is no database at {name}" in checked.stdout
            assert checked.returncode == 0
        assert rows(empty, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
    assert [file.name for file in tmp_path.iterdir()] == ["segment.csv"]


def test_check_tries_brazes_key_without_sending(tmp_path: Path, sandbox: SandboxServer) -> None:
    environ = environment(sandbox.url, tmp_path)

    def findings(**more: str) -> dict[str, Any]:
        ended = bridge(tmp_path, "check", "--json", **environ, **more)
        return {one["name"]: one for one in json.loads(ended.stdout)["checks"]}

    found = findings()
    for permission in ("campaigns.trigger.send", "canvas.trigger.send"):
        assert found[f"Braze {permission}"]["ok"]
    assert len(sandbox.sandbox.calls(match="/trigger/send$")) == 2
    assert sandbox.sandbox.braze.sent() == []
    environ = {**environ, "BRAZE_REST_KEY": "wrong"}
    wrong = findings()["Braze canvas.trigger.send"]
    assert not wrong["ok"]
    assert "BRAZE_REST_KEY" in wrong["remedy"]
    for fault, remedy in (
        ({"status": 429}, "Braze limits our calls: wait"),
        ({"status": 503}, "Braze is down"),
        ({"garbage": True}, "something else than Braze answers: check BRAZE_REST_URL, proxies"),
        ({"garbage": True, "status": 400}, "something else than Braze answers"),
    ):
        sandbox.sandbox.set_faults({**fault, "match": "trigger/send"})
        assert findings()["Braze canvas.trigger.send"]["remedy"].startswith(remedy)


def test_check_does_not_blame_the_settings_for_a_sessionm_that_is_down(
    tmp_path: Path, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 503})
    ended = bridge(tmp_path, "check", **environment(sandbox.url, tmp_path))
    assert ended.returncode == 1
    assert ended.stdout.count("-> SessionM is down or overloaded") == 2
    assert "check SESSIONM" not in ended.stdout


def test_check_calls_all_systems_at_once(tmp_path: Path) -> None:
    together = Barrier(4)

    def answer(visitor: Visitor) -> bool:
        # One call after the other would break it.
        together.wait(5)
        return unwell(visitor)

    with Listener(answer) as server:
        bridge(tmp_path, "check", **environment(f"http://127.0.0.1:{server.port}", tmp_path))
    assert (len(server.requests), together.broken) == (4, False)


@pytest.mark.parametrize(
    ("faults", "system", "remedy"),
    [
        ({"status": 422, "code": "validation"}, "Core", "refuses this call: ask SessionM whether"),
        ({"ok_error": True, "code": "argument_error"}, "Connect", "check SESSIONM_RETAILER_ID"),
        ({"status": 429}, "Core", "limits our calls: wait, and lower BRIDGE_SESSIONM_RPS"),
        ({"status": 404, "garbage": True}, "Core", "nothing at this address: check host and path"),
        ({"status": 403, "garbage": True}, "Connect", "have this machine's address allowed"),
        ({"garbage": True}, "Core", "something else than SessionM answers: check SESSIONM_CORE"),
    ],
)
def test_check_says_what_to_do_about_each_kind_of_answer(
    tmp_path: Path, sandbox: SandboxServer, faults: dict[str, Any], system: str, remedy: str
) -> None:
    sandbox.sandbox.set_faults(faults)
    ended = bridge(tmp_path, "check", **environment(sandbox.url, tmp_path))
    failed = re.search(rf"FAIL SessionM {system}: .*\n.*", ended.stdout)
    assert failed, ended.stdout
    assert remedy in failed[0]


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


def test_render_names_the_place_of_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "broken.liquid"
    broken.write_text("fine\n {% if %}{% endif %}\n")
    ended = bridge(tmp_path, "render", str(broken), "--user-id", "u1", "--key", "a:b")
    assert ended.returncode == 1
    assert "line 2, column 2: a condition is missing" in ended.stderr


def test_render_takes_attributes_with_types_from_a_file(tmp_path: Path) -> None:
    template, attributes = tmp_path / "typed.liquid", tmp_path / "ann.json"
    template.write_text(
        "{% if custom_attribute.${points} >= 500 %}gold{% else %}silver{% endif %}"
        " {{event_properties.${sku}}} {{context.${n}}} {{${first_name}}} {{content_blocks.${hi}}}"
        " {{custom_attribute.${vip}}} {{wallet.frist}}"
    )
    attributes.write_text(
        '{"first_name": "Ann", "custom_attribute": {"points": 600}, "context": {"n": 1.50},'
        ' "event_properties": {"sku": "A1"}, "content_blocks": {"hi": "Hi {{${first_name}}}"}}'
    )
    command = ("render", str(template), "--user-id", "u1", "--attributes", str(attributes))
    ended = bridge(tmp_path, *command, "-a", "vip=true", "-v", 'wallet={"first": 1}')
    assert (ended.returncode, ended.stdout.strip()) == (0, "gold A1 1.5 Ann Hi Ann true")
    assert ": wallet.frist does not exist; did you mean first?" in ended.stderr
    attributes.write_text('{"context": 5}')
    ended = bridge(tmp_path, *command)
    assert ended.returncode == 1
    assert f'{attributes} needs an object for "context"' in ended.stderr


CALL = "{% connected_content http://127.0.0.1:1/x :basic_auth NAME :save r %}[{{r.a}}]"


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (CALL.replace("NAME", "bridge"), 1),
        (CALL.replace("NAME", "other"), 1),
        ("{% if false %}" + CALL.replace("NAME", "bridge") + "{% endif %}[]", 0),
        ("<!-- " + CALL + " -->[]", 0),
    ],
)
def test_render_fails_when_a_call_failed_and_needs_no_settings(
    tmp_path: Path, source: str, status: int
) -> None:
    template = tmp_path / "call.liquid"
    template.write_text(source)
    ended = bridge(
        tmp_path, "render", str(template), "--user-id", "u1", "--url", "http://x", "--key", "a:b"
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stdout.strip() == "[]"
    assert ("bridge: a call of the template failed" in ended.stderr) == bool(status)


def test_render_of_a_template_without_calls_needs_no_key(tmp_path: Path) -> None:
    template = tmp_path / "plain.liquid"
    template.write_text("Hi {{${user_id}}}")
    ended = bridge(tmp_path, "render", str(template), "--user-id", "u1")
    assert (ended.returncode, ended.stdout.strip()) == (0, "Hi u1")


def test_a_taken_port_is_named_in_one_line(tmp_path: Path, sandbox: SandboxServer) -> None:
    for command in ("demo", "sandbox"):
        ended = bridge(tmp_path, command, "--port", str(sandbox.port))
        assert ended.returncode == 1
        [line] = ended.stderr.strip().splitlines()
        assert str(sandbox.port) in line


def test_output_that_cannot_be_written_ends_in_one_line(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    for descriptor, line in (
        (os.open("/dev/full", os.O_WRONLY), "bridge: the output cannot be written: No space left"),
        (writable, ""),
    ):
        with (
            os.fdopen(descriptor, "wb") as unwritable,
            (tmp_path / "stderr").open("w+b") as stderr,
            (tmp_path / "stdin").open("w+b") as stdin,
        ):
            assert (
                Command(
                    "queue",
                    "--help",
                    env={"PATH": ""},
                    cwd=tmp_path,
                    stdin=stdin,
                    stdout=unwritable,
                    stderr=stderr,
                ).wait(60)
                == 1
            )
            stderr.seek(0)
            written = stderr.read().decode()
        assert written.startswith(line)
        assert written.count("\n") == bool(line)
