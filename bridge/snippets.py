"""The files that come with the bridge: its pages, and the Liquid snippets to paste into Braze."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent
# In a wheel they lie within the package, in a clone beside it.
TEMPLATES = next(
    folder for folder in (_PACKAGE / "templates", _PACKAGE.parent / "templates") if folder.is_dir()
)

_COMMENT = re.compile(r"\{% comment %\}(.*?)\{% endcomment %\}\n?", re.DOTALL)
# As the snippets write the bridge's address.
PLACEHOLDER = "https://YOUR-BRIDGE"
# As Braze's guide to SessionM writes a credential.
BASIC_PLACEHOLDER = "YOUR-BASE64-ENCODED-KEY"


@dataclass(frozen=True)
class Snippet:
    """One snippet.

    Attributes:
        name: its file's, without ``.liquid``.
        about: what it does, from its comment.
        where: the field of Braze it belongs in, likewise; "" for webhooks.
        code: the template without the comment.
    """

    name: str
    about: str
    where: str
    code: str

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()

    @property
    def is_webhook(self) -> bool:
        return self.name.startswith("webhook_")

    def filled(self, base_url: str, kind: str) -> str:
        """The code for the bridge at *base_url*, where Braze's user id is SessionM's *kind*."""
        code = self.code.replace(PLACEHOLDER, base_url)
        if kind == "user_id":
            return code
        # ${user_id} stays: that is Braze's name for its own id.
        return code.replace("user_id={{", f"{kind}={{{{").replace('"user_id":', f'"{kind}":')


@cache
def snippets() -> dict[str, Snippet]:
    """All snippets by name."""
    return {
        path.stem: _read(path.stem, path.read_text(encoding="utf-8"))
        for path in sorted((TEMPLATES / "liquid").glob("*.liquid"))
    }


def _read(name: str, source: str) -> Snippet:
    comment = _COMMENT.match(source)
    told = comment[1] if comment else ""
    paragraphs = [" ".join(part.split()) for part in told.strip().split("\n\n")]
    where = next((part for part in paragraphs if part.startswith("Where:")), "")
    return Snippet(
        name=name,
        about=paragraphs[0],
        where="" if name.startswith("webhook_") else where.removeprefix("Where:").strip(),
        code=source[comment.end() :] if comment else source,
    )
