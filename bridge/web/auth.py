"""Authorisation: each scope has its own keys."""

import hmac
import ipaddress
import logging
import random
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

from flask import Flask, Response, current_app, g, request

from bridge.parts import parts_of
from bridge.settings import Key, Network, Settings
from bridge.web.credential import malformed, misplaced, read_credential
from bridge.web.errors import error
from bridge.web.threads import exchange_of

log = logging.getLogger(__name__)

Scope = Literal["webhook", "content", "trigger", "viewer", "admin", "open"]
View = TypeVar("View", bound=Callable[..., object])

# Required scope -> scopes of the keys that are accepted; by default the scope itself.
_ACCEPTED: dict[str, frozenset[str]] = {"viewer": frozenset({"viewer", "admin"})}
# Scopes that people use: a browser asks for name and password.
_FOR_PEOPLE = {"viewer", "admin"}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Results of `authorise` that are cached.
CALLERS = 1024
# Characters: results for longer headers are not cached.
LONGEST_CREDENTIAL = 4096
# An address in X-Forwarded-For with a port: IPv6 in brackets, or anything with one colon.
_WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?|([^:]+):\d+")


BRAZE_OFF = (
    "Messages to Braze are switched off here: they need BRAZE_REST_URL, BRAZE_REST_KEY and "
    "BRIDGE_TRIGGER_KEYS where the bridge runs."
)


def scope(name: Scope) -> Callable[[View], View]:
    """Return a decorator that sets the scope of a view; ``open`` needs no key."""

    def mark(view: View) -> View:
        view.__dict__["scope"] = name
        return view

    return mark


class Caller(NamedTuple):
    """An authorised caller. *key_name* is "" if no key is needed."""

    key_name: str


class Refusal(NamedTuple):
    """The error answer for a caller.

    Attributes:
        challenge: the header WWW-Authenticate of a 401.
        mismatch: which part of the credential is wrong; for pages only, since an unauthorised
            caller must not learn which names of keys exist.
    """

    status: int
    code: str
    message: str
    challenge: str = ""
    key_name: str = ""
    mismatch: str = ""


class Keyring:
    """The keys of all scopes, and the allowed addresses.

    The result of `authorise` depends only on its arguments, and is cached.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys: Mapping[str, tuple[Key, ...]] = {
            "webhook": settings.bridge_webhook_keys,
            "content": settings.bridge_content_keys,
            "trigger": settings.bridge_trigger_keys,
            "viewer": settings.bridge_viewer_keys,
            "admin": settings.bridge_admin_keys,
        }
        self._insecure = settings.bridge_insecure_no_auth
        self._networks: tuple[Network, ...] = settings.bridge_allowed_ips
        self._hops = settings.bridge_trusted_proxies
        self._cached = lru_cache(CALLERS)(self._authorise)

    def authorise(self, required: Scope, authorization: str, address: str) -> Caller | Refusal:
        """Return the caller of a request, or a refusal.

        Args:
            required: the scope of the view.
            authorization: the header Authorization; several values joined by commas are refused.
            address: the result of `address_of`.
        """
        if len(authorization) > LONGEST_CREDENTIAL:
            return self._authorise(required, authorization, address)
        return self._cached(required, authorization, address)

    def address_of(self, peer: str, forwarded: str) -> str:
        """Return the client's address; "" if a trusted proxy sent something else.

        Args:
            peer: the address of the connection's other end.
            forwarded: the header X-Forwarded-For; several values joined by commas.
        """
        elements = forwarded.split(",") if self._hops and forwarded.strip() else []
        return peer if len(elements) < max(1, self._hops) else plain_address(elements[-self._hops])

    def accepts(self, required: Scope, authorization: str) -> bool:
        """Return whether a key is valid for a scope, from any address."""
        return not self._needs_key(required) or bool(
            _accepted(required) & self._find(authorization)[0]
        )

    def _authorise(self, required: Scope, authorization: str, address: str) -> Caller | Refusal:
        key_name = ""
        if self._needs_key(required):
            if required == "trigger" and not self._keys["trigger"]:
                return Refusal(404, "braze_off", BRAZE_OFF)
            scopes, key_name = self._find(authorization)
            if not scopes:
                return _unauthorized(
                    required, authorization, self._mismatch(required, authorization)
                )
            if not _accepted(required) & scopes:
                own = " and ".join(sorted(scopes))
                message = f"The key {key_name} is for {own}: here a key for {required} is needed."
                return Refusal(403, "wrong_scope", message, key_name=key_name)
        if required in {"webhook", "content"} and not self._allows(address):
            message = "This address may not call: the person who runs the bridge can allow it."
            return Refusal(403, "address_not_allowed", message, key_name=key_name)
        return Caller(key_name)

    def _needs_key(self, required: Scope) -> bool:
        if required == "open":
            return False
        return not self._insecure or any(self._keys[one] for one in _accepted(required))

    def _find(self, authorization: str) -> tuple[set[str], str]:
        """Return the scopes and the name of the key in *authorization*."""
        secret, name = read_credential(authorization)
        scopes = set()
        matched = ""
        # Every key is compared, so that the time does not depend on the keys.
        for key_scope, keys in self._keys.items():
            for key in keys:
                same = hmac.compare_digest(key.secret.get_secret_value().encode(), secret)
                if same and name in {None, key.name}:
                    scopes.add(key_scope)
                    matched = key.name
        return scopes, matched

    def _mismatch(self, required: Scope, authorization: str) -> str:
        """Return which part of a Basic credential without a key is wrong; "" for another one."""
        _, name = read_credential(authorization)
        names = {key.name for one in _accepted(required) for key in self._keys[one]}
        if name is None:
            return ""
        if name in names:
            return f"The user name {name} is right, but the password is not the secret of that key."
        return f"The user name is not the name of a {required} key."

    def _allows(self, address: str) -> bool:
        """Return whether *address* is in the allowed networks."""
        if not self._networks:
            return True
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)


def _accepted(required: Scope) -> frozenset[str]:
    return _ACCEPTED.get(required, frozenset({required}))


def may_change() -> bool:
    """Return whether the caller has an admin key: pages show buttons for changes only then."""
    return bool(g.get("may_change", False))


def record_change(action: str, **fields: str) -> None:
    """Log a change that the caller of this request made, with the name of its key.

    `bridge.ops.operator` logs changes of events.
    """
    extra = {"action": action, "by": g.key_name, **fields}
    log.info("%s by %s", action, g.key_name or "anybody", extra=extra)


def plain_address(element: str) -> str:
    """Return the address in an element of X-Forwarded-For, without port and brackets.

    Returns "" if the element is not an address.
    """
    text = element.strip().strip('"')
    if found := _WITH_PORT.fullmatch(text):
        text = found[1] or found[2]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def request_id(given: str) -> str:
    """Return the *given* request id if it is valid, otherwise a new one."""
    # Not os.urandom, which releases the GIL. Such an id is no secret.
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def install(app: Flask, keyring: Keyring) -> None:
    """Authorise every request of *app* by *keyring*. Requests to a view without a scope fail."""

    @app.before_request
    def check() -> Response | None:
        headers = request.headers
        g.request_id = request_id(headers.get("X-Request-Id", ""))
        g.key_name = ""
        if request.endpoint is None:
            return None
        peer = request.environ.get("REMOTE_ADDR", "")
        address = keyring.address_of(peer, headers.get("X-Forwarded-For", ""))
        required, authorization = scope_of(request.endpoint), headers.get("Authorization", "")
        outcome = keyring.authorise(required, authorization, address)
        g.key_name = outcome.key_name
        if isinstance(outcome, Caller):
            g.may_change = required in _FOR_PEOPLE and keyring.accepts("admin", authorization)
            return None
        if outcome.status == 401:
            delay = parts_of(current_app).auth_failures.failed(address)
            exchange_of(request.environ).delay = delay
        challenge = {"WWW-Authenticate": outcome.challenge} if outcome.challenge else {}
        elsewhere = "" if authorization else misplaced(headers.keys(), _keys(required))
        message = elsewhere or outcome.message
        answer = error(outcome.status, outcome.code, message, **challenge)
        g.problem = outcome.mismatch or message
        return answer

    @app.after_request
    def name_request(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.get("request_id") or request_id("")
        return response


def scope_of(endpoint: str) -> Scope:
    """Return the scope of a view of the current application.

    Raises:
        LookupError: the view has no scope.
    """
    view = current_app.view_functions[endpoint]
    found: Scope | None = getattr(view, "scope", None)
    if found is None:
        raise LookupError(f"the view {endpoint} has no scope")
    return found


def _unauthorized(required: Scope, authorization: str, mismatch: str) -> Refusal:
    challenge = (
        'Basic realm="bridge", charset="UTF-8"'
        if required in _FOR_PEOPLE
        else 'Bearer, Basic realm="bridge"'
    )
    also = _IN_A_TAG if required == "content" else ""
    if problem := malformed(authorization, _keys(required), also):
        return Refusal(401, "unauthorized", problem, challenge)
    message = (
        f"The header Authorization holds no {required} key of the bridge: the secret is mistyped, "
        "withdrawn, or of another bridge."
    )
    return Refusal(401, "unauthorized", message, challenge, mismatch=mismatch)


def _keys(required: Scope) -> str:
    """Return the scopes of the keys for *required*, with an article."""
    return {"admin": "an admin", "viewer": "a viewer or admin"}.get(required, f"a {required}")


_IN_A_TAG = "add :basic_auth and the credential's name to the tag, or "
