"""Webhooks passed on to SessionM while Braze waits: no store at all."""

import hmac
import os
from typing import Any

import requests
from flask import Flask, abort, request
from requests.adapters import HTTPAdapter

UPSTREAM = f"{os.environ['UPSTREAM']}/priv/v1/apps/{os.environ['UPSTREAM_KEY']}"
EXPECTED = f"Bearer {os.environ['SECRET']}"

app = Flask(__name__)
session = requests.Session()
session.headers["Authorization"] = os.environ["UPSTREAM_AUTH"]
session.mount("http://", HTTPAdapter(pool_maxsize=64))


@app.post("/webhooks/braze")
def webhook() -> tuple[dict[str, Any], int]:
    if not hmac.compare_digest(request.headers.get("Authorization", ""), EXPECTED):
        abort(401)
    event = request.get_json()
    tag = f"braze_campaign_{event['braze_campaign_id']}"
    answer = session.post(
        f"{UPSTREAM}/users/{event['user_id']}/tags",
        json={"tags": [tag], "ttl": 2592000},
        timeout=10,
    )
    answer.raise_for_status()
    return {"status": "accepted", "id": event["dispatch_id"]}, 202
