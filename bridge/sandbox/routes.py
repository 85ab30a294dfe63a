"""Routes: handlers by method and path."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from werkzeug.wrappers import Request, Response

from bridge.sandbox.messages import Json, SandboxRefusedError

Names = Mapping[str, str]
Action = Callable[[Request, Names], Json | Response | None]


class SandboxRoute(NamedTuple):
    """`path` may have `:names`; `side`: core, connect, braze or sandbox; `kind` is counted."""

    method: str
    path: str
    action: Action
    side: str = "sandbox"
    kind: str = ""

    @property
    def writes(self) -> bool:
        return self.side in {"core", "braze"} and self.method == "POST"


class Routes:
    def __init__(self, routes: Sequence[SandboxRoute]) -> None:
        self._routes = [
            (re.compile(re.sub(r":(\w+)", r"(?P<\1>[^/]+)", r.path)), r) for r in routes
        ]

    def find(self, method: str, path: str) -> tuple[SandboxRoute, dict[str, str]]:
        """Find a route by the undecoded path, in which `a%2Fb` is one segment.

        Raises SandboxRefusedError 404 for an unknown path, 405 for an unknown method.
        """
        found = {r.method: (r, m) for pattern, r in self._routes if (m := pattern.fullmatch(path))}
        if not found:
            raise SandboxRefusedError(404, "not_found", f"There is no {path}.")
        if method not in found:
            allowed = ", ".join(sorted(found))
            raise SandboxRefusedError(
                405, "not_available", f"{method} is not possible here: {allowed}."
            )
        route, match = found[method]
        return route, {name: unquote(value) for name, value in match.groupdict().items()}

    def listing(self) -> list[str]:
        return [f"{route.method} {route.path}" for _, route in self._routes]
