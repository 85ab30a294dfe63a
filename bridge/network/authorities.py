"""The trusted certificate authorities, and TLS contexts for them."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH

# In order of precedence. OpenSSL itself reads the last two.
VARIABLES = ("requests_ca_bundle", "curl_ca_bundle", "ssl_cert_file", "ssl_cert_dir")
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl module lacks.
_IGNORE_DATES = 0x200000


@dataclass(frozen=True)
class Authorities:
    """A file or folder of certificates, and its origin: a variable or a list."""

    path: Path
    source: str

    def __str__(self) -> str:
        return f"{self.path} ({self.source})"


def authorities(variables: Mapping[str, str]) -> Authorities:
    """Return the authorities of *variables*, or the operating system's, or certifi's.

    Raises:
        ValueError: a variable names an unusable file or folder; the text names the variable.
    """
    for name in VARIABLES:
        if value := variables.get(name, ""):
            found = Authorities(Path(value), name.upper())
            _check(found)
            return found
    system = ssl.get_default_verify_paths()
    for place in (system.openssl_cafile, system.openssl_capath):
        path = Path(place)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            return Authorities(path, "the system's")
    return Authorities(Path(DEFAULT_CA_BUNDLE_PATH), "certifi's, since the system has none")


@cache
def client_context(trusted: Authorities) -> ssl.SSLContext:
    """Return the TLS context for calls. Cached, since reading the authorities takes 20 ms."""
    return _context(trusted)


@cache
def lenient_context(trusted: Authorities) -> ssl.SSLContext:
    """Return a TLS context that ignores dates and names, to read a refused certificate."""
    context = _context(trusted)
    context.check_hostname = False
    context.verify_flags |= _IGNORE_DATES
    return context


def _context(trusted: Authorities) -> ssl.SSLContext:
    if trusted.path.is_dir():
        return ssl.create_default_context(capath=str(trusted.path))
    return ssl.create_default_context(cafile=str(trusted.path))


def _check(found: Authorities) -> None:
    what = f"{found.source} names {found.path}"
    try:
        if found.path.is_dir():
            return
        client_context(found)
    except ssl.SSLError:
        raise ValueError(f"{what}, which holds no certificates (PEM)") from None
    except OSError as error:
        raise ValueError(f"{what}, which cannot be read: {error.strerror}") from None
