"""Read the credential of a request, and say what is wrong with one that cannot be right. Pure."""

import base64
import binascii
import re
from collections.abc import Iterable
from difflib import get_close_matches

from bridge.fields import CURLY_QUOTES, shown

_QUOTES = {'"', "'", "`", *CURLY_QUOTES}
# As the pages and documents write it, or Liquid that Braze did not replace.
_PLACEHOLDER = re.compile(r"^YOUR-|^secret$|[<>\u2026]|\{\{|\$\{", re.IGNORECASE)
# Headers in which other services take a key, without their hyphens.
_OTHER_HEADERS = {"apikey", "xapikey", "xauthorization", "authtoken", "xauthtoken", "xaccesstoken"}


def read_credential(authorization: str) -> tuple[bytes, str | None]:
    """Return the secret in a header Authorization, and for Basic the name."""
    kind, _, value = authorization.partition(" ")
    value = value.strip()
    if kind.lower() == "bearer":
        # HTTP headers are read as Latin-1, whatever the client has written.
        return value.encode("latin-1", "replace"), None
    if kind.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(value, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return b"", None
        return secret, name.decode(errors="replace")
    return b"", None


def malformed(authorization: str, keys: str, also: str = "") -> str:
    """Return what is wrong with the form of a header Authorization, without its secret.

    Args:
        authorization: the header.
        keys: the scope of the key that is needed, with its article.
        also: another way to send it, for a missing header.

    Returns:
        "" if the header may hold a secret.
    """
    written = authorization.encode("latin-1", "replace").decode(errors="replace")
    kind, _, value = written.partition(" ")
    kind, value = kind.lower(), value.strip()
    secret, name = read_credential(authorization)
    values = {value, secret.decode(errors="replace")}
    needed = f"the secret of {keys} key"
    problems = {
        f'is missing: {also}send "Bearer " and {needed}': not authorization,
        "has quotes around its value: delete them": not _QUOTES.isdisjoint(
            {kind[:1], value[:1], value[-1:]}
        ),
        f'must be "Bearer ", with the space, and {needed}': kind not in {"bearer", "basic"},
        f"ends before the secret: add {needed}": not value,
        f"still holds a placeholder: put {needed} in its place": any(
            map(_PLACEHOLDER.search, values)
        ),
        'must be "Basic " and the Base64 form of name:secret': kind == "basic" and name is None,
        "must be Bearer and the secret alone, without its name": kind == "bearer" and ":" in value,
    }
    problem = next((words for words, is_wrong in problems.items() if is_wrong), "")
    return f"The header Authorization {problem}." if problem else ""


def misplaced(names: Iterable[str], keys: str) -> str:
    """Return what to do about a key that is in another header; "" if no header looks like one.

    Args:
        names: of all headers, without Authorization.
        keys: as for `malformed`.
    """
    for name in names:
        plain = re.sub("[^a-z]", "", name.lower())
        if plain in _OTHER_HEADERS or get_close_matches(plain, ["authorization"], cutoff=0.85):
            return (
                f"The header Authorization is missing, but there is a header {shown(name)}: name "
                f'it Authorization, with the value "Bearer " and the secret of {keys} key.'
            )
    return ""
