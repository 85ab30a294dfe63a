"""The proxy for a host, by the variables that HTTP clients commonly read."""

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from requests.utils import should_bypass_proxies

VARIABLES = ("https_proxy", "http_proxy", "all_proxy")
EXAMPLE = "http://proxy.acme.com:3128"

# Value for the `proxies` of `requests`: no proxy for loopback, whatever the variables say.
LOOPBACK_DIRECT = {
    f"{scheme}://{host}": ""
    for scheme in ("http", "https")
    for host in ("127.0.0.1", "localhost", "::1")
}


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy.

    *authorization* is the value of Proxy-Authorization, or "". *variable* is the name of the
    variable that set the proxy.
    """

    host: str
    port: int
    variable: str
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port} ({self.variable})"


def proxy_for(url: str, variables: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for *url*; ``None`` for a direct connection.

    Args:
        url: the URL of the call.
        variables: values of ``https_proxy``, ``http_proxy``, ``all_proxy`` and ``no_proxy``.

    Raises:
        ValueError: a variable cannot be used. The text names the variable but not its value, which
            may hold a password.
    """
    parts = urlsplit(url)
    if is_loopback(parts.hostname or ""):
        return None
    name = next(
        (one for one in (f"{parts.scheme}_proxy", "all_proxy") if variables.get(one, "")), None
    )
    if name is None or should_bypass_proxies(url, variables.get("no_proxy", "")):
        return None
    return _read(name.upper(), variables[name])


def is_loopback(host: str) -> bool:
    """Return whether *host* is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(variable: str, value: str) -> Proxy:
    full = value if "://" in value else f"http://{value}"
    wrong = f"{variable} must be the URL of an HTTP proxy; for example {variable}={EXAMPLE}"
    try:
        parts = urlsplit(full)
        port = parts.port or 80
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme.startswith("socks"):
        raise ValueError(
            f"{variable} names a SOCKS proxy, which is not supported: name an HTTP proxy, "
            f"for example {variable}={EXAMPLE}, or add the host to NO_PROXY"
        )
    if parts.scheme == "https":
        raise ValueError(
            f"{variable} must begin with http:// (calls through the proxy are still encrypted); "
            f"for example {variable}={EXAMPLE}"
        )
    if parts.scheme != "http" or not re.fullmatch(r"[A-Za-z0-9._:%-]+", parts.hostname or ""):
        raise ValueError(wrong)
    authorization = ""
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(user.encode()).decode()
    return Proxy(parts.hostname or "", port, variable, authorization)
