"""Lookups with Flask and Flask-Caching."""

import hmac
import os
from typing import Any

import requests
from flask import Flask, abort, request
from flask_caching import Cache

UPSTREAM = f"{os.environ['UPSTREAM']}/priv/v1/apps/{os.environ['UPSTREAM_KEY']}"
EXPECTED = f"Bearer {os.environ['SECRET']}"

app = Flask(__name__)
cache = Cache(app, config={"CACHE_TYPE": "SimpleCache", "CACHE_THRESHOLD": 100_000})
session = requests.Session()
session.headers["Authorization"] = os.environ["UPSTREAM_AUTH"]


@app.before_request
def authorize() -> None:
    if not hmac.compare_digest(request.headers.get("Authorization", ""), EXPECTED):
        abort(401)


@app.get("/connected-content/tags")
@cache.cached(timeout=300, query_string=True)
def tags() -> dict[str, Any]:
    user_id = request.args["user_id"]
    answer = session.get(f"{UPSTREAM}/users/{user_id}/tags", timeout=10)
    answer.raise_for_status()
    found = answer.json()["tags"]
    return {
        "status": "ok",
        "user_id": user_id,
        "tags": found,
        "names": list(found),
        "count": len(found),
    }
