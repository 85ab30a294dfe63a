"""Webhooks into huey's queue on SQLite, with fsync, by Flask."""

import hmac
import os
from pathlib import Path
from typing import Any

from flask import Flask, abort, request
from huey import SqliteHuey

EXPECTED = f"Bearer {os.environ['SECRET']}"

app = Flask(__name__)
huey = SqliteHuey(filename=str(Path(os.environ["DATA"]) / "huey.db"), fsync=True)


@huey.task(retries=12, retry_delay=10)
def deliver(event: dict[str, Any]) -> None:
    raise NotImplementedError("a consumer would run elsewhere; here only the queue is measured")


@app.post("/webhooks/braze")
def webhook() -> tuple[dict[str, Any], int]:
    if not hmac.compare_digest(request.headers.get("Authorization", ""), EXPECTED):
        abort(401)
    event = request.get_json()
    task = deliver(event)
    return {"status": "accepted", "id": task.id}, 202
