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
    """Why there is no server; "" if there is one."""
    try:
        psycopg.connect(SERVER, connect_timeout=5).close()
    except psycopg.OperationalError:
        return "no PostgreSQL at BRIDGE_BENCH_POSTGRES_URL"
    return ""


@contextmanager
def fresh_database() -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    name = f"bridge_bench_{secrets.token_hex(6)}"
    with psycopg.connect(SERVER, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        try:
            yield urlsplit(SERVER)._replace(path=f"/{name}").geturl()
        finally:
            administrator.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def size(url: str) -> int:
    """Bytes on disk, its log apart."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


def most_connections() -> int:
    with psycopg.connect(SERVER) as connection:
        row = connection.execute("SHOW max_connections").fetchone()
    return int(row[0]) if row else 0
