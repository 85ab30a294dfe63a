"""Webhooks stored in SQLite with Flask: one durable commit per webhook."""

import fcntl
import hmac
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from flask import Flask, abort, request

EXPECTED = f"Bearer {os.environ['SECRET']}"
DATABASE = Path(os.environ["DATA"]) / "events.db"

app = Flask(__name__)
local = threading.local()


def connection() -> sqlite3.Connection:
    """Return the connection of this thread."""
    if not hasattr(local, "connection"):
        local.connection = sqlite3.connect(DATABASE, timeout=30)
        local.connection.execute("PRAGMA journal_mode=WAL")
        local.connection.execute("PRAGMA synchronous=FULL")
    found: sqlite3.Connection = local.connection
    return found


with (DATABASE.parent / "lock").open("w") as lock:
    # Workers start at the same time, and SQLite's busy timeout does not cover journal_mode.
    fcntl.flock(lock, fcntl.LOCK_EX)
    with connection() as first:
        first.execute(
            "CREATE TABLE IF NOT EXISTS events"
            " (dispatch_id TEXT PRIMARY KEY, user_id TEXT, body BLOB, received_at REAL)"
        )


@app.post("/webhooks/braze")
def webhook() -> tuple[dict[str, Any], int]:
    if not hmac.compare_digest(request.headers.get("Authorization", ""), EXPECTED):
        abort(401)
    event = request.get_json()
    with connection() as writing:
        writing.execute(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)",
            (event["dispatch_id"], event["user_id"], request.get_data(), time.time()),
        )
    return {"status": "accepted", "id": event["dispatch_id"]}, 202
