"""A PostgreSQL server: its URL, and connections on which every wait is bounded.

libpq has no time-out for an answer that never comes, nor for name look-ups. Here a statement takes
at most `time_limit` seconds, and no wait passes the deadline of the thread
(`bridge.storage.database.in_time`).
"""

import logging
import os
import socket
from contextlib import suppress
from itertools import zip_longest
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bridge.storage.database import UnsuitableDatabaseError, time_left

log = logging.getLogger(__name__)

ENCODING = "UTF8"
T = TypeVar("T")

# libpq's parameters unless the URL sets them.
_DEFAULTS = {
    "connect_timeout": "3",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "6000",
    # After a failover, connect to the new primary only.
    "target_session_attrs": "read-write",
}


def conninfo(url: str) -> str:
    """Return libpq's connection string for ``postgresql://…`` (or ``postgres://…``), with defaults.

    Raises:
        ValueError: the URL is not valid, or is ambiguous.
    """
    scheme, _, rest = url.partition("://")
    # libpq ends the password at the first @ or /, other programs at the last: refuse both.
    if not {*"@/?#"}.isdisjoint(rest.rpartition("@")[0]):
        raise ValueError(
            "must have each @ / ? # in user and password percent-encoded, as %40 %2F %3F %23"
        )
    try:
        given = conninfo_to_dict(f"{scheme.partition('+')[0]}://{rest}")
    except psycopg.ProgrammingError:
        # No "from error": its text would repeat the URL with the password.
        raise ValueError("must be postgresql://user:password@host:5432/database") from None
    return make_conninfo("", **{**_DEFAULTS, **given})


def shown(conninfo: str) -> str:
    """Return the database's URL without user and password, for messages and logs."""
    given = {name: str(value or "") for name, value in conninfo_to_dict(conninfo).items()}
    hosts = [f"[{one}]" if ":" in one else one for one in given.get("host", "").split(",")]
    ports = given.get("port", "").split(",")
    if len(ports) == 1:
        # libpq uses a single port for all hosts.
        ports *= len(hosts)
    places = [f"{host}:{port}" if port else host for host, port in zip_longest(hosts, ports)]
    return f"postgresql://{','.join(places)}/{given.get('dbname', '')}"


class NoTimeLeftError(psycopg.OperationalError):
    """The thread's deadline ended a wait before the database's own time limit."""


def no_answer(time_limit: float, left: float, message: str) -> psycopg.OperationalError:
    """Return the error for a wait that ended.

    Args:
        time_limit: seconds that the wait could have taken.
        left: seconds that the thread had left when the wait began.
        message: the text of the error.
    """
    return (NoTimeLeftError if left < time_limit else psycopg.OperationalError)(message)


class TimedConnection(psycopg.Connection[Any]):
    """A connection whose waits end after `time_limit` seconds or at the thread's deadline."""

    time_limit = 5.0

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        left = time_left()
        try:
            return super().wait(gen, interval, min(self.time_limit, left))
        except psycopg.OperationalError:
            if self.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                # The statement is still active, so the connection cannot be used again.
                with suppress(RuntimeError, psycopg.Error):
                    # Close the generator first: a closed pipeline reads its results once more,
                    # which must not happen on a closed connection.
                    gen.close()
                self.pgconn.finish()
                raise no_answer(self.time_limit, left, "no answer in time") from None
            raise


class DatabaseServer:
    """The server at a URL. New connections go to the address that answered last.

    A slow name look-up or a dead address thus delays one connection, not each of them.

    Attributes:
        name: the URL without user and password, for messages and logs.

    Raises:
        ValueError: the URL is not valid, or is ambiguous.
    """

    def __init__(self, url: str) -> None:
        self._conninfo = conninfo(url)
        self.name = shown(self._conninfo)
        given = conninfo_to_dict(self._conninfo)
        secrets = (given.get(name) for name in ("password", "sslpassword"))
        self._secrets = [str(secret) for secret in secrets if secret]
        # The address that answered last, by libpq's parameters.
        self._address: dict[str, str] = {}

    def connect(self, time_limit: float, **settings: str) -> TimedConnection:
        """Open a connection in autocommit mode.

        Args:
            time_limit: seconds that a statement may take.
            **settings: the server's run-time parameters, by name.

        Raises:
            psycopg.Error: the server cannot be reached, or refuses the connection.
            UnsuitableDatabaseError: the database is in another encoding than UTF-8.
        """
        connection = self._reach()
        try:
            self._check_encoding(connection)
            connection.time_limit = time_limit
            chosen = ", ".join(f"set_config('{name}', %s, false)" for name in settings)
            connection.execute(f"SELECT {chosen}".encode(), [*settings.values()], prepare=False)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_encoding(self, connection: TimedConnection) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != ENCODING:
            raise UnsuitableDatabaseError(
                f"{self.name} is in the encoding {encoding}; UTF8 is needed: make it with "
                "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )

    def _reach(self) -> TimedConnection:
        if self._address:
            # It is kept if it fails: the name may not resolve when the server is back.
            with suppress(psycopg.OperationalError):
                return self._connect_to(self._address)
        connection = self._connect_to({})
        info = connection.info
        found = {"host": info.host, "port": str(info.port), "hostaddr": info.hostaddr}
        self._address = {name: value for name, value in found.items() if value}
        return connection

    def _connect_to(self, address: dict[str, str]) -> TimedConnection:
        # `Postgres.end_orphaned_transactions` recognizes a bridge's connections by this name.
        me = f"bridge {socket.gethostname()} {os.getpid()}"
        place = make_conninfo(self._conninfo, **address)
        return TimedConnection.connect(
            place, autocommit=True, application_name=me, client_encoding=ENCODING
        )

    def first_line(self, error: BaseException) -> str:
        """Return the first line of *error* without secrets; PostgreSQL's other lines quote rows."""
        diagnosis = getattr(error, "diag", None)
        message = (diagnosis.message_primary if diagnosis else "") or str(error)
        for secret in self._secrets:
            message = message.replace(secret, "…")
        return (message.strip() or type(error).__name__).splitlines()[0]
