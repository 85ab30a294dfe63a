"""The settings: one typed, frozen record, read once from the environment and `.env`."""

import base64
import binascii
import codecs
import difflib
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from bridge.fields import duration, trim
from bridge.network import authorities, proxy

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class SettingsError(Exception):
    """A wrong setting; ``str()`` is one line that names the variable."""


@dataclass(frozen=True)
class Key:
    """One of the bridge's own credentials. The name may be logged, but not the secret."""

    name: str
    secret: SecretStr


def _keys(value: object) -> object:
    """Read ``a:secret1,b:secret2`` as keys. In files, line ends separate keys too."""
    if not isinstance(value, str):
        return value
    keys = []
    for item in filter(None, (trim(part) for part in re.split(r"[,\r\n]", value))):
        name, colon, secret = (trim(part) for part in item.partition(":"))
        if not colon or not _KEY_NAME.fullmatch(name):
            raise ValueError("must be name:secret, where the name is letters, digits, . _ -")
        if not secret:
            raise ValueError(f'has no secret after the name "{name}"')
        keys.append(Key(name, SecretStr(secret)))
    if not keys:
        raise ValueError("names no key")
    return tuple(keys)


def _networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    words = [word for word in (part.strip() for part in value.split(",")) if word]
    if not words:
        raise ValueError("names no network")
    return tuple(network for word in words for network in _network(word))


def _network(word: str) -> list[Network]:
    """Return the networks of *word*: the name of one of Braze's published lists, or a network."""
    published = _braze_addresses()
    if word.startswith("braze") and word not in published:
        raise ValueError(f'knows no list "{word}", but {", ".join(published)}')
    try:
        return [ipaddress.ip_network(one, strict=False) for one in published.get(word, [word])]
    except ValueError as error:
        raise ValueError(str(error)) from None


@cache
def _braze_addresses() -> dict[str, list[str]]:
    """Return Braze's published addresses by list name; the file says as of when."""
    text = Path(__file__).with_name("braze-addresses.toml").read_text(encoding="utf-8")
    return {name: entry["addresses"] for name, entry in tomllib.loads(text).items()}


def _alert_url(value: object) -> object:
    """Check an HTTP URL, which may have a query: those of Slack and Teams are secret."""
    if isinstance(value, str):
        parts = urlsplit(value)
        _ = parts.port  # raises ValueError
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an http:// or https:// URL")
        if re.search(r"\s", value) or not value.isascii() or parts.username is not None:
            raise ValueError("must be ASCII without spaces, and without user and password")
    return value


def _base_url(value: object) -> object:
    if not isinstance(value, str):
        return value
    if re.search(r"\s", value):
        raise ValueError("must not hold spaces")
    if not value.isascii():
        raise ValueError("must be ASCII: write the host in its xn-- form")
    parts = urlsplit(value)
    _ = parts.port  # raises ValueError
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    if re.search(r"[@?#]", value):
        raise ValueError("must be a bare URL, without credentials, query or fragment")
    return value.rstrip("/")


def _connect_auth(value: object) -> object:
    """Read ``user:password``, or its Base64 text with or without ``Basic``."""
    if not isinstance(value, str):
        return value
    plain = value.removeprefix("Basic ").strip()
    if ":" in plain:
        return SecretStr(base64.b64encode(plain.encode()).decode())
    try:
        decoded = base64.b64decode(plain, validate=True)
    except binascii.Error:
        decoded = b""
    if b":" not in decoded:
        raise ValueError("must be user:password, or the Base64 text of that")
    return SecretStr(plain)


def _database_url(value: object) -> object:
    if isinstance(value, str) and not re.match(
        r"(sqlite:///|postgres(ql)?(\+psycopg)?://).", value
    ):
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return value


def _names(value: object) -> object:
    """Read names that are separated by commas."""
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(filter(None, (trim(part) for part in value.split(",")))))
    if not all(re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) for name in names):
        raise ValueError("must be names of fields: letters, digits, _ . -, separated by commas")
    return names


def _flag(value: object) -> object:
    if value not in {"0", "1", 0, 1}:
        raise ValueError("must be 0 or 1")
    return value in {"1", 1}


def _number(value: object) -> object:
    """Read a finite number."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("is not a number") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is not a number")
    return value


Seconds = Annotated[int, BeforeValidator(duration)]
Number = Annotated[float, BeforeValidator(_number)]
BaseUrl = Annotated[str, BeforeValidator(_base_url)]
Keys = Annotated[tuple[Key, ...], BeforeValidator(_keys)]
# Seconds for which Braze waits for a lookup.
BRAZE_WAITS = 2.0
# Each scope has its own keys, in the setting ``bridge_{scope}_keys``.
SCOPES = ("webhook", "content", "trigger", "viewer", "admin")


# Proxies and authorities, by the variables that HTTP clients commonly read. A variable may be in
# either case; lower case takes precedence.
NETWORK = (*proxy.VARIABLES, "no_proxy", *authorities.VARIABLES)


class Settings(BaseModel):
    """What an operator can set. Each field is the variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    sessionm_core_url: BaseUrl = Field(examples=["https://api-acme.ent-sessionm.com"])
    sessionm_core_key: SecretStr = Field(min_length=1, examples=["<api key>"])
    sessionm_core_secret: SecretStr = Field(min_length=1, examples=["<api secret>"])
    sessionm_connect_url: BaseUrl | None = Field(
        None, examples=["https://connect-acme.ent-sessionm.com"]
    )
    sessionm_connect_auth: Annotated[SecretStr, BeforeValidator(_connect_auth)] | None = Field(
        None, examples=["user:password"]
    )
    sessionm_retailer_id: str | None = Field(
        None, examples=["11111111-1111-4111-8111-111111111111"]
    )

    bridge_webhook_keys: Keys = Field((), examples=["braze:<secret>"])
    bridge_content_keys: Keys = Field((), examples=["braze:<secret>"])
    bridge_viewer_keys: Keys = Field((), examples=["wall:<secret>"])
    bridge_admin_keys: Keys = Field((), examples=["ops:<secret>"])
    bridge_trigger_keys: Keys = Field((), examples=["sessionm:<secret>"])
    bridge_insecure_no_auth: Annotated[bool, BeforeValidator(_flag)] = Field(
        default=False, examples=["1"]
    )
    bridge_allowed_ips: Annotated[tuple[Network, ...], BeforeValidator(_networks)] = Field(
        (), examples=["braze-eu,10.0.0.0/8"]
    )
    bridge_trusted_proxies: int = Field(0, ge=0, le=10, examples=["1"])

    braze_rest_url: BaseUrl | None = Field(None, examples=["https://rest.iad-01.braze.com"])
    braze_rest_key: SecretStr | None = Field(None, min_length=1, examples=["<REST API key>"])
    braze_external_id: Literal["user_id", "external_id"] = Field("user_id", examples=["user_id"])
    braze_canvas_properties: Literal["context", "canvas_entry_properties"] = Field(
        "context", examples=["context"]
    )
    braze_rps: Number = Field(20, gt=0, le=100_000, examples=["20"])
    braze_on_unknown: Literal["drop", "resend"] = Field("drop", examples=["drop"])
    bridge_trigger_max_age: Seconds = Field(3600, gt=0, le=30 * 86400, examples=["1h"])

    bridge_database_url: Annotated[SecretStr, BeforeValidator(_database_url)] = Field(
        SecretStr("sqlite:///var/bridge.db"), examples=["sqlite:///var/bridge.db"]
    )
    bridge_rules: Path | None = Field(None, examples=["rules.toml"])
    bridge_campaign_ttl: Seconds = Field(30 * 86400, gt=0, le=3650 * 86400, examples=["30d"])
    bridge_tags_max_age: Seconds = Field(60, le=86400, examples=["60"])
    bridge_offers_max_age: Seconds = Field(60, le=86400, examples=["60"])
    bridge_stale_while_revalidate: Seconds = Field(300, le=30 * 86400, examples=["300"])
    bridge_stale_if_error: Seconds = Field(86400, le=30 * 86400, examples=["1d"])
    bridge_cache_entries: int = Field(100_000, gt=0, examples=["100000"])
    bridge_lookup_deadline: Number = Field(1.5, ge=0.1, le=60, examples=["1.5"])
    bridge_sessionm_rps: Number = Field(20, gt=0, le=100_000, examples=["20"])
    bridge_delivery_concurrency: int = Field(16, gt=0, le=256, examples=["16"])
    bridge_max_attempts: int = Field(12, gt=0, examples=["12"])
    bridge_queue_limit: int = Field(1_000_000, gt=0, examples=["1000000"])
    bridge_retention: Seconds = Field(7 * 86400, gt=0, examples=["7d"])
    bridge_profile_fields: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), examples=["tier,first_name"]
    )
    bridge_bulk_threshold: int = Field(0, ge=0, examples=["10000"])
    bridge_public_url: BaseUrl | None = Field(None, examples=["https://bridge.acme.com"])
    bridge_alert_url: Annotated[SecretStr, BeforeValidator(_alert_url)] | None = Field(
        None, examples=["https://hooks.slack.com/services/…"]
    )
    bridge_log_format: Literal["text", "json"] | None = Field(None, examples=["json"])
    bridge_log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", examples=["info"]
    )

    https_proxy: SecretStr | None = Field(None, examples=[proxy.EXAMPLE])
    http_proxy: SecretStr | None = Field(None, examples=[proxy.EXAMPLE])
    all_proxy: SecretStr | None = Field(None, examples=[proxy.EXAMPLE])
    no_proxy: str | None = Field(None, examples=["10.0.0.0/8,.acme.com"])
    requests_ca_bundle: str | None = Field(None, examples=["/etc/ssl/certs/acme.pem"])
    curl_ca_bundle: str | None = Field(None, examples=["/etc/ssl/certs/acme.pem"])
    ssl_cert_file: str | None = Field(None, examples=["/etc/ssl/certs/acme.pem"])
    ssl_cert_dir: str | None = Field(None, examples=["/etc/ssl/certs"])

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        if not self.bridge_insecure_no_auth:
            scopes = ("bridge_webhook_keys", "bridge_content_keys", "bridge_admin_keys")
            _demand(self, scopes, "; make one with `bridge keys new NAME`")
        connect = ("sessionm_connect_url", "sessionm_connect_auth", "sessionm_retailer_id")
        if any(getattr(self, name) for name in connect):
            _demand(self, connect, ", which offers need")
        braze = ("braze_rest_url", "braze_rest_key")
        if any(getattr(self, name) for name in braze):
            _demand(self, braze, ", which messages to Braze need")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> "Settings":
        urls = (self.sessionm_core_url, self.sessionm_connect_url, self.braze_rest_url)
        for url in filter(None, urls):
            proxy.proxy_for(url, self.network)
            if url.startswith("https:"):
                authorities.authorities(self.network)
        return self

    @property
    def network(self) -> dict[str, str]:
        """The variables of `NETWORK` that are set, by their names in lower case."""
        values = {name: getattr(self, name) for name in NETWORK}
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in values.items()
            if value is not None
        }

    @property
    def offers_on(self) -> bool:
        """Whether the Offers API is configured."""
        return self.sessionm_connect_url is not None

    @property
    def braze_on(self) -> bool:
        """Whether messages go to Braze."""
        return self.braze_rest_url is not None

    @property
    def rules_file(self) -> Path | None:
        """The rules file to read: BRIDGE_RULES, or `rules.toml` if that file exists."""
        default = Path("rules.toml")
        return self.bridge_rules or (default if default.exists() else None)


def _demand(settings: Settings, names: tuple[str, ...], remedy: str) -> None:
    missing = [name.upper() for name in names if not getattr(settings, name)]
    if missing:
        raise ValueError(_not_set(missing) + remedy)


def _not_set(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not set"


# Settings that may be in a file, whose path is in NAME_FILE.
SECRETS = (
    *("sessionm_core_key", "sessionm_core_secret", "sessionm_connect_auth", "bridge_webhook_keys"),
    *("bridge_content_keys", "bridge_viewer_keys", "bridge_admin_keys", "bridge_alert_url"),
    *("bridge_trigger_keys", "braze_rest_key", "bridge_database_url"),
)
# Values in the documentation that must be replaced.
PLACEHOLDERS = {"…", "..."}


def load(environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> Settings:
    """Read the settings from *environ* (by default the process's), which overrides the `.env` file.

    Raises:
        SettingsError: with one line that names the variable, the problem and an example.
    """
    known = _read(os.environ if environ is None else environ, dotenv)
    values: dict[str, Any] = {}
    for name in Settings.model_fields:
        value = trim(known.get(name.upper(), ""))
        if name in NETWORK:
            value = trim(known.get(name, value))
        path = trim(known.get(f"{name.upper()}_FILE", "")) if name in SECRETS else ""
        if value and path:
            raise SettingsError(f"{name.upper()} and {name.upper()}_FILE are both set: keep one")
        if path:
            value = _secret_file(f"{name.upper()}_FILE", Path(path))
        if value.rpartition(":")[2] in PLACEHOLDERS:
            raise SettingsError(f"{name.upper()} is still the placeholder of the documentation")
        if value:
            values[name] = value
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None


def unknown_names(environ: Mapping[str, str], dotenv: Path = Path(".env")) -> list[str]:
    """Return a sentence about each ``BRIDGE_…`` variable that is no setting.

    Of the ``SESSIONM_…`` and ``BRAZE_…`` variables, only misspelt settings are named, since other
    programs have such variables too.

    Raises:
        SettingsError: the `.env` file cannot be read.
    """
    names = {name.upper() for name in Settings.model_fields}
    names |= {f"{name.upper()}_FILE" for name in SECRETS}
    found = []
    for name in sorted(_read(environ, dotenv)):
        if name in names or not name.startswith(("BRIDGE_", "SESSIONM_", "BRAZE_")):
            continue
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
        if close or name.startswith("BRIDGE_"):
            hint = f"; did you mean {close[0]}?" if close else ""
            found.append(f"{name} is not a setting{hint}")
    return found


def _read(environ: Mapping[str, str], dotenv: Path) -> dict[str, str]:
    try:
        # Without interpolation: a $ in a secret is literal.
        filed = _dotenv(dotenv) if dotenv.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{dotenv} cannot be read: {error}") from None
    return {**{name: value or "" for name, value in filed.items()}, **environ}


# A byte order mark, as Windows editors write it, is not part of the first name.
_DOTENV_ENCODING = "utf-8-sig"


def _dotenv(path: Path) -> dict[str, str | None]:
    with path.open(encoding=_DOTENV_ENCODING) as stream:
        for binding in parse_stream(stream):
            if binding.error:
                raise SettingsError(
                    f"{path} line {binding.original.line} is not NAME=value, a comment or blank"
                )
    return dotenv_values(path, interpolate=False, encoding=_DOTENV_ENCODING)


def _secret_file(variable: str, path: Path) -> str:
    """Read a secret from a file, without a byte order mark and surrounding line ends.

    Raises:
        SettingsError: the file cannot be read, is not text, or is empty.
    """
    try:
        content = path.read_bytes()
        # PowerShell's > writes UTF-16 with a byte order mark.
        in_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        value = trim(content.decode("utf-16" if in_utf16 else "utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        # Without the path, which may be the secret itself, set by mistake.
        raise SettingsError(f"{variable} names a file that cannot be read: {reason}") from None
    if not value:
        raise SettingsError(f"{variable} names a file that is empty")
    return value


def _one_line(error: ValidationError) -> str:
    """Describe the first problem in one sentence, without the value, which may be secret."""
    problems = error.errors(include_input=False, include_url=False)
    missing = [str(p["loc"][0]).upper() for p in problems if p["type"] == "missing"]
    if missing:
        example = (Settings.model_fields[missing[0].lower()].examples or ["…"])[0]
        return f"{_not_set(missing)}; for example {missing[0]}={example}"
    first = problems[0]
    problem = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return problem
    name = str(first["loc"][0])
    example = (Settings.model_fields[name].examples or ["…"])[0]
    problem = _WORDS.get(first["type"], "is wrong: {problem}").format(
        problem=problem, **first.get("ctx", {})
    )
    return f"{name.upper()} {problem}; for example {name.upper()}={example}"


# Pydantic's error types in words for an operator. ValueErrors of this module are value_error.
_WORDS = {
    "value_error": "{problem}",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_too_short": "is blank",
    "too_short": "is blank",
}
