"""What a deployment installs is what pyproject.toml asks for, to the byte."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "deploy" / "requirements.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = {
    canonicalize_name(pin.name): pin
    for line in re.findall(r"^[\w.-]+==[^\\\n]+", LOCK, re.MULTILINE)
    if (pin := Requirement(line.strip()))
}


def test_every_dependency_is_locked_within_its_bounds() -> None:
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        pin = PINNED[canonicalize_name(wanted.name)]
        [exact] = pin.specifier
        assert wanted.specifier.contains(exact.version), text


def test_every_locked_version_has_its_hashes_and_no_place_of_its_own() -> None:
    blocks = re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE).strip())
    assert len(blocks) == len(PINNED)
    for block in blocks:
        assert "--hash=sha256:" in block, block
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", LOCK)


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    for text in PROJECT["dependencies"]:
        operators = {one.operator for one in Requirement(text).specifier}
        assert operators == {">=", "<"}, text
