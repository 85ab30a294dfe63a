"""From a method and a path to what is done."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from werkzeug.wrappers import Request

from bridge.sessionm.sandbox.messages import Json, RefusedError

Names = Mapping[str, str]
Action = Callable[[Request, Names], Json | None]


class Route(NamedTuple):
    """`path` may have `:names`; `side` is core, connect or sandbox; the log counts `kind`."""

    method: str
    path: str
    action: Action
    side: str = "sandbox"
    kind: str = ""

    @property
    def writes(self) -> bool:
        return self.side == "core" and self.method == "POST"


class Routes:
    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = [
            (re.compile(re.sub(r":(\w+)", r"(?P<\1>[^/]+)", r.path)), r) for r in routes
        ]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Find by the path as it was sent: only there `a%2Fb` is one segment still.

        Raises RefusedError 404 for an unknown path, 405 for an unknown method.
        """
        found = {r.method: (r, m) for pattern, r in self._routes if (m := pattern.fullmatch(path))}
        if not found:
            raise RefusedError(404, "not_found", f"There is no {path}.")
        if method not in found:
            allowed = ", ".join(sorted(found))
            raise RefusedError(405, "not_available", f"{method} is not possible here: {allowed}.")
        route, match = found[method]
        return route, {name: unquote(value) for name, value in match.groupdict().items()}

    def listing(self) -> list[str]:
        return [f"{route.method} {route.path}" for _, route in self._routes]
