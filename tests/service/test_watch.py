"""Alerts of a whole service: several processes, one alert for each change, in time."""

import time
from pathlib import Path

import requests

from tests.app.test_alerts import Inbox
from tests.app.test_alerts import inbox as inbox  # noqa: PLC0414 - a fixture
from tests.conftest import MakeService, bearer, eventually, rows


def test_several_workers_post_one_alert_for_each_change(
    make_service: MakeService, inbox: Inbox, tmp_path: Path
) -> None:
    service = make_service("--workers", "3", BRIDGE_ALERT_URL=inbox.url)
    eventually(lambda: service.health()["status"] == "ok")
    began = time.monotonic()
    requests.post(f"{service.url}/api/delivery/pause", headers=bearer("admin"), timeout=9)
    eventually(lambda: inbox.bodies, 45)
    assert time.monotonic() - began > 15
    figures = f"sqlite:///{tmp_path}/bridge.db.cache"
    eventually(
        lambda: '"posted_status": "degraded"' in str(rows(figures, "SELECT alert FROM watchers"))
    )
    # The one that posts may be among those that are killed.
    service.kill()
    service.start()
    requests.post(f"{service.url}/api/delivery/resume", headers=bearer("admin"), timeout=9)
    eventually(lambda: len(inbox.bodies) > 1, 60)
    assert [(body["was"], body["status"]) for body in inbox.bodies] == [
        ("ok", "degraded"),
        ("degraded", "ok"),
    ]
    assert [one["code"] for one in inbox.bodies[0]["incidents"]] == ["delivery_paused"]
    assert inbox.url not in service.log.read_text()
