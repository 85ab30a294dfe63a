"""Who may call what: three scopes, each with its own keys."""

import base64
import binascii
import hmac
import ipaddress
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from flask import Flask, Response, current_app, g, request

from bridge import chance
from bridge.parts import parts_of
from bridge.settings import Key, Network, Settings
from bridge.web.errors import error

Scope = Literal["webhook", "content", "admin", "open"]
View = TypeVar("View", bound=Callable[..., object])

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Where a server says that it lets answers wait by itself, and finds for how many seconds.
DELAY = "bridge.delay"
# An answer that waits here holds a thread, and a server may have as few as two.
_waiting = threading.BoundedSemaphore(1)


def scope(name: Scope) -> Callable[[View], View]:
    """Mark a view with the scope whose keys may call it; ``open`` needs none."""

    def mark(view: View) -> View:
        view.__dict__["scope"] = name
        return view

    return mark


class Keyring:
    """The keys of all scopes, and the addresses that may call."""

    def __init__(self, settings: Settings) -> None:
        self._keys: Mapping[str, tuple[Key, ...]] = {
            "webhook": settings.bridge_webhook_keys,
            "content": settings.bridge_content_keys,
            "admin": settings.bridge_admin_keys,
        }
        self._insecure = settings.bridge_insecure_no_auth
        self._networks: tuple[Network, ...] = settings.bridge_allowed_ips

    def needs_key(self, wanted: Scope) -> bool:
        return wanted != "open" and not (self._insecure and not self._keys[wanted])

    def find(self, authorization: str) -> tuple[set[str], str]:
        """The scopes that *authorization* opens, and the name of its key."""
        secret, name = _credential(authorization)
        scopes = set()
        matched = ""
        # Every key is compared, so that time tells nothing about them.
        for key_scope, keys in self._keys.items():
            for key in keys:
                same = hmac.compare_digest(key.secret.get_secret_value().encode(), secret)
                if same and name in {None, key.name}:
                    scopes.add(key_scope)
                    matched = key.name
        return scopes, matched

    def allows(self, address: str | None) -> bool:
        """Whether Braze may call from *address*."""
        if not self._networks:
            return True
        try:
            parsed = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)


def _credential(authorization: str) -> tuple[bytes, str | None]:
    """The secret of a Bearer or Basic header, and the name that Basic gives."""
    kind, _, value = authorization.partition(" ")
    value = value.strip()
    if kind.lower() == "bearer":
        return value.encode(errors="surrogateescape"), None
    if kind.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(value, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return b"", None
        return secret, name.decode(errors="replace")
    return b"", None


def request_id(given: str) -> str:
    """The name of a request: the *given* one if it is sane, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else chance.digits(32)


def install(app: Flask, keyring: Keyring) -> None:
    """Let *keyring* guard every route of *app*. A view without a scope answers nobody."""

    @app.before_request
    def check() -> Response | None:
        g.request_id = request_id(request.headers.get("X-Request-Id", ""))
        g.key_name = ""
        if request.endpoint is None:
            return None
        wanted = scope_of(request.endpoint)
        if not keyring.needs_key(wanted):
            return _check_address(keyring, wanted)
        scopes, g.key_name = keyring.find(request.headers.get("Authorization", ""))
        if not scopes:
            _wait(parts_of(current_app).auth_failures.saw(request.remote_addr))
            return _unauthorized(wanted)
        if wanted not in scopes:
            opened = " and ".join(sorted(scopes))
            return error(
                403,
                "wrong_scope",
                f"The key {g.key_name} is for {opened}: here a key for {wanted} is needed.",
            )
        return _check_address(keyring, wanted)

    @app.after_request
    def name_request(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.get("request_id") or request_id("")
        return response


def scope_of(endpoint: str) -> Scope:
    """The scope of a view of the current application."""
    view = current_app.view_functions[endpoint]
    found: Scope | None = getattr(view, "scope", None)
    if found is None:
        raise LookupError(f"the view {endpoint} has no scope")
    return found


def _check_address(keyring: Keyring, wanted: Scope) -> Response | None:
    if wanted in {"webhook", "content"} and not keyring.allows(request.remote_addr):
        return error(403, "address_not_allowed", "Calls from this address are not allowed here.")
    return None


def _wait(seconds: float) -> None:
    """Let the current request's answer wait, as far as nobody else waits for it."""
    if DELAY in request.environ:
        request.environ[DELAY] = seconds
    elif seconds and request.environ.get("wsgi.multithread") and _waiting.acquire(blocking=False):
        try:
            time.sleep(seconds)
        finally:
            _waiting.release()


def _what_is_wrong(authorization: str, wanted: Scope) -> str:
    kind, _, value = authorization.partition(" ")
    if not authorization:
        one = "an admin" if wanted == "admin" else f"a {wanted}"
        return f'The header Authorization is missing: send "Bearer " and {one} key\'s secret.'
    if kind.lower() not in {"bearer", "basic"}:
        return 'The header Authorization must begin with "Bearer " or "Basic ", then the key.'
    if kind.lower() == "bearer" and ":" in value:
        return "The header Authorization must be Bearer and the secret alone, without its name."
    return f"The header Authorization holds no {wanted} key of the bridge: wrong, or withdrawn."


def _unauthorized(wanted: Scope) -> Response:
    asked = (
        'Basic realm="bridge", charset="UTF-8"'
        if wanted == "admin"
        else 'Bearer, Basic realm="bridge"'
    )
    return error(
        401,
        "unauthorized",
        _what_is_wrong(request.headers.get("Authorization", ""), wanted),
        **{"WWW-Authenticate": asked},
    )
