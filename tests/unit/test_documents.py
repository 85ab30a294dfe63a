"""The documents name what there is, and nothing else."""

import re
from pathlib import Path

import pytest

from bridge.ops.incidents import CODES
from bridge.settings import Settings

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
