"""`bridge batch submit` and `bridge warm` with files and paths that users get wrong."""

import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from bridge.sandbox import SandboxServer
from tests.commands import run_bridge
from tests.conftest import Provide, environment

SEGMENT = "Braze ID,user_id\n1,one\n2,\n"
LIST = "line,reason\n7,It was another run's.\n"


class Command:
    """The command in a folder of its own, with a file ``segment.csv``."""

    def __init__(self, sandbox: SandboxServer, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "segment.csv"
        self.file.write_text(SEGMENT)
        self._environment = {
            **os.environ,
            **environment(sandbox.url, folder, BRIDGE_PUBLIC_URL="http://127.0.0.1:9"),
        }

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return run_bridge(*map(str, arguments), env=self._environment, cwd=self.folder)

    def submit(self, *options: str | Path, file: Path | None = None) -> str:
        """What is written on stderr; "" if the file is taken."""
        done = self.run("batch", "submit", file or self.file, "--tag", "t", *options)
        return done.stderr if done.returncode else ""

    def fails(self, *arguments: str | Path) -> str:
        """The one line on stderr of a command that must fail."""
        done = self.run(*arguments)
        assert done.returncode == 1, done.stderr
        [line] = done.stderr.splitlines()
        return line


@pytest.fixture
def command(sandbox: SandboxServer, tmp_path: Path, provide: Provide) -> Command:
    provide(f"sqlite:///{tmp_path}/bridge.db")
    return Command(sandbox, tmp_path)


def test_the_segment_itself_is_never_taken_for_the_list_of_refused_rows(command: Command) -> None:
    link = command.folder / "link.csv"
    link.symlink_to(command.file)
    for path in (command.file, link):
        for options in (["--dry-run"], []):
            assert "is the file itself" in command.submit("--refused", path, *options)
    assert command.file.read_text() == SEGMENT


@pytest.mark.parametrize("options", [["--refused", "notes.txt"], []], ids=str)
def test_only_an_earlier_list_of_refused_rows_is_replaced(
    command: Command, options: list[str]
) -> None:
    path = command.folder / (options[-1] if options else "segment.csv.refused.csv")
    path.write_text("what somebody wrote")
    assert "move it away, or give --refused another path" in command.submit(*options)
    assert path.read_text() == "what somebody wrote"
    path.write_text(LIST)
    assert command.submit(*options) == ""
    assert path.read_text().splitlines()[1].startswith("3,")


def test_what_would_mend_the_call_is_named_as_the_command_calls_it(command: Command) -> None:
    plain = ("batch", "submit", command.file)
    assert "say which tag its customers get by --tag" in command.fails(*plain, "--dry-run")
    answer = command.fails(*plain, "--tag", "t", "--id-column", "Braze ID")
    assert answer.endswith("If it does in this file, say which by --id-kind")
    command.file.write_text("customer\none\n")
    answer = command.fails(*plain, "--tag", "t")
    assert answer.endswith("Say which one holds the customer by --id-column")


def test_a_file_of_counters_is_taken_once_unless_it_is_meant_again(command: Command) -> None:
    assert command.submit() == ""
    answer = command.submit()
    assert "has the same rows" in answer
    assert "would count twice: if that is meant, say so by --again" in answer
    assert command.run("batch", "status").stdout.count("segment.csv") == 1
    assert command.submit("--again") == ""
    command.file.write_text(SEGMENT + "3,three\n")
    assert command.submit() == ""


def test_a_file_of_expiring_tags_that_comes_again_is_taken_with_a_warning(command: Command) -> None:
    submit = ("batch", "submit", command.file, "--tag", "t", "--ttl", "30d")
    first, second, other = (command.run(*submit, *more) for more in ([], [], ["--tag", "u"]))
    assert [done.returncode for done in (first, second, other)] == [0, 0, 0]
    assert "has the same rows" in second.stderr
    assert "has the same rows" not in first.stderr + other.stderr


def archive(members: dict[str, str]) -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in members.items():
            made.writestr(name, text)
    return bytearray(packed.getvalue())


def damaged() -> bytes:
    made = archive({"segment.csv": SEGMENT * 99})
    start = made.index(b"segment.csv") + len("segment.csv")
    made[start : start + 9] = b"\xff" * 9
    return bytes(made)


def marked(offset_in_local: int, offset_in_central: int, value: int) -> bytes:
    """An archive with a field of its two headers changed."""
    made = archive({"segment.csv": SEGMENT})
    made[offset_in_local] = value
    made[made.index(b"PK\x01\x02") + offset_in_central] = value
    return bytes(made)


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (damaged(), "damaged"),
        (marked(6, 8, 1), "password"),
        (marked(8, 10, 97), "unknown compression"),
    ],
    ids=["damaged", "password", "compression"],
)
def test_an_archive_that_cannot_be_unpacked_is_named_in_one_line(
    command: Command, packed: bytes, expected: str
) -> None:
    file = command.folder / "segment.zip"
    file.write_bytes(packed)
    for arguments in (["batch", "submit", str(file), "--tag", "t"], ["warm", str(file)]):
        assert expected in command.fails(*arguments)


def test_what_a_mac_adds_to_an_archive_is_no_file_of_customers(command: Command) -> None:
    file = command.folder / "segment.zip"
    file.write_bytes(archive({"segment.csv": SEGMENT, "__MACOSX/._segment.csv": "\0\5\26\7"}))
    assert command.submit(file=file) == ""


def test_a_file_whose_name_is_not_utf_8_is_taken_and_shown(command: Command) -> None:
    name = os.fsdecode(b"\xffname.csv")
    command.file.rename(command.folder / name)
    done = command.run("batch", "submit", name, "--tag", "t")
    assert done.returncode == 0, done.stderr
    assert "\N{REPLACEMENT CHARACTER}name.csv.refused.csv" in done.stderr
    assert "\N{REPLACEMENT CHARACTER}name.csv" in command.run("batch", "status").stdout
