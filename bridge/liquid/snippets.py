"""The folder of page templates, and the Liquid snippets to paste into Braze."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
# In a wheel, the folder is inside the package; in a clone, beside it.
TEMPLATES = next(
    folder for folder in (_PACKAGE / "templates", _PACKAGE.parent / "templates") if folder.is_dir()
)

_COMMENT = re.compile(r"\{% comment %\}(.*?)\{% endcomment %\}\n?", re.DOTALL)
# The bridge's address in the snippets.
PLACEHOLDER = "https://YOUR-BRIDGE"
# Snippet -> field of Braze's side -> values without which a preview shows a gap.
_EXAMPLES = {
    "offer_awarded": {
        "api_trigger_properties": {"title": "Free barista coffee", "bridge_event": "example-event"}
    }
}
# A credential in Braze's guide to SessionM.
BASIC_PLACEHOLDER = "YOUR-BASE64-ENCODED-KEY"


@dataclass(frozen=True)
class Snippet:
    """One snippet.

    Attributes:
        name: the file's name without ``.liquid``.
        about: its purpose, from its comment.
        where: the field of Braze to paste it into, from its comment; "" for webhooks.
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
    def examples(self) -> dict[str, dict[str, str]]:
        """Field of Braze's side -> example values that the snippet needs."""
        return _EXAMPLES.get(self.name, {})

    @property
    def is_webhook(self) -> bool:
        return self.name.startswith("webhook_")

    def filled(self, base_url: str, kind: str) -> str:
        """Return the code for the bridge at *base_url*.

        *kind* says which of SessionM's identifiers equals Braze's user id.
        """
        code = self.code.replace(PLACEHOLDER, base_url)
        if kind == "user_id":
            return code
        # ${user_id} is not replaced: it is Braze's name for its own id.
        return code.replace("user_id={{", f"{kind}={{{{").replace('"user_id":', f'"{kind}":')


@cache
def snippets() -> dict[str, Snippet]:
    return {
        path.stem: _read(path.stem, path.read_text(encoding="utf-8"))
        for path in sorted((TEMPLATES / "liquid").glob("*.liquid"))
    }


def _read(name: str, source: str) -> Snippet:
    comment = _COMMENT.match(source)
    text = comment[1] if comment else ""
    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    where = next((part for part in paragraphs if part.startswith("Where:")), "")
    return Snippet(
        name=name,
        about=paragraphs[0],
        where="" if name.startswith("webhook_") else where.removeprefix("Where:").strip(),
        code=source[comment.end() :] if comment else source,
    )
