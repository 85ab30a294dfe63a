"""Databases on a real PostgreSQL server."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

SERVER = os.environ.get(
    "BRIDGE_BENCH_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres"
)


def missing() -> str:
    """Return why there is no server; "" if there is one."""
    try:
        psycopg.connect(SERVER, connect_timeout=5).close()
    except psycopg.OperationalError:
        return "no PostgreSQL at BRIDGE_BENCH_POSTGRES_URL"
    return ""


@contextmanager
def fresh_database() -> Iterator[str]:
    """Create an empty database, yield its URL, and drop it."""
    name = f"bridge_bench_{secrets.token_hex(6)}"
    with psycopg.connect(SERVER, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        try:
            yield urlsplit(SERVER)._replace(path=f"/{name}").geturl()
        finally:
            administrator.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
