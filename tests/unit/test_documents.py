"""The documents name what there is, and nothing else."""

import re
from pathlib import Path

import pytest

from bridge.fields import duration
from bridge.ops.incidents import CODES
from bridge.settings import Settings, SettingsError, load

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#]*)(#[^)]*)?\)")


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_page_of_settings_names_every_setting_and_no_other() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    settings = {name.upper() for name in Settings.model_fields}
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", text))
    assert settings - named == set()
    assert named - settings - {f"{name}_FILE" for name in settings} == set()


def test_the_ranges_of_settings_are_those_that_are_read(tmp_path: Path) -> None:
    def is_read(name: str, value: float) -> bool:
        shown = f"{value:g}" if value < 1e5 else f"{value:.0f}"
        needed = {f"SESSIONM_CORE_{one}": "https://a" for one in ("URL", "KEY", "SECRET")}
        try:
            load({**needed, "BRIDGE_INSECURE_NO_AUTH": "1", name: shown}, tmp_path / "none")
        except SettingsError:
            return False
        return True

    def number(limit: str) -> float:
        return duration(limit) if limit[-1] in "sd" else float(limit)

    ranges = {
        name: cells[2].replace(",", "")
        for row in re.findall(r"^\| `.*$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
        for cells in [[cell.strip() for cell in row.strip("|").split("|")]]
        for name in re.findall(r"`(\w+)`", cells[0])
    }
    numeric = {
        name.upper()
        for name, one in Settings.model_fields.items()
        if one.annotation in {int, float}
    }
    assert {name for name, limits in ranges.items() if limits} == numeric
    for name in numeric:
        is_open, low, high = re.findall(r"(over )?([^ ]+)(?: to ([^ ]+))?$", ranges[name])[0]
        assert is_read(name, number(low)) == (not is_open), name
        assert not is_read(name, number(low) - (0.01 if "." in low else 1)), name
        if high:
            assert is_read(name, number(high)), name
            assert not is_read(name, number(high) + 1), name


def test_the_table_of_incidents_has_every_code_and_no_other() -> None:
    text = (ROOT / "docs/operating.md").read_text()
    [table] = re.findall(r"^\| code \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines()))
    assert sorted(named) == sorted(CODES)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {path}"
        if anchor:
            assert anchor[1:] in anchors(target), f"{page.name}: {path}{anchor}"
