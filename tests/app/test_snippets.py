"""Every snippet for Braze, rendered by a real Liquid engine against the running bridge."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.liquid.render import Rendered, render
from bridge.sandbox import Sandbox, SandboxServer, serve
from tests.conftest import ALICE, KEYS, Service, bearer, environment, eventually

FOLDER = Path(__file__).parents[2] / "templates" / "liquid"
SNIPPETS = sorted(path.name for path in FOLDER.glob("*.liquid"))
WEBHOOKS = [name for name in SNIPPETS if name.startswith("webhook_")]


class Stage:
    """One bridge and its sandbox for the whole module."""

    def __init__(self, service: Service, sandbox: SandboxServer) -> None:
        self.service = service
        self.sandbox = sandbox

    def render(self, name: str, user_id: str, **attributes: Any) -> Rendered:
        return render(
            (FOLDER / name).read_text(),
            attributes={"user_id": user_id, **attributes},
            campaign={"api_id": "summer", "dispatch_id": f"d-{name}"},
            canvas={"api_id": "welcome"},
            credentials={"bridge": ("test", KEYS["content"])},
            rewrite=lambda url: url.replace("https://YOUR-BRIDGE", self.service.url),
            pause=lambda _seconds: None,
            # A busy machine may take longer than Braze would wait.
            timeout=60,
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    with serve(Sandbox(), port=0) as sandbox:
        # On a busy machine the first lookup of a customer may take longer than its deadline.
        environ = environment(sandbox.url, folder, BRIDGE_LOOKUP_DEADLINE="30")
        service = Service(environ, folder).start()
        yield Stage(service, sandbox)
        service.kill()


@pytest.mark.parametrize("name", WEBHOOKS)
def test_a_webhook_body_is_accepted_and_becomes_a_tag(stage: Stage, name: str) -> None:
    body = stage.render(name, ALICE).text
    answer = requests.post(
        f"{stage.service.url}/webhooks/braze",
        data=body.encode(),
        headers={**bearer("webhook"), "Content-Type": "application/json"},
        timeout=10,
    )
    assert answer.status_code == 202, answer.text
    [tag] = answer.json()["writes"][0]["tags"]
    assert tag in {"braze_campaign_summer", "braze_canvas_welcome"}
    eventually(lambda: tag in stage.sandbox.sandbox.tags(ALICE))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tag_check.liquid", "Your VIP lounge is open."),
        ("points_balance.liquid", "1,240"),
        ("best_offer.liquid", "Free barista coffee"),
        ("offer_list.liquid", "Free barista coffee"),
        ("offers_expiring_soon.liquid", " left</li>"),
        ("abort_when_no_offer.liquid", "Free barista coffee"),
        ("fallback_when_unavailable.liquid", "1,240"),
        ("retry_until_available.liquid", "Free barista coffee"),
    ],
)
def test_a_message_shows_what_sessionm_knows(stage: Stage, name: str, said: str) -> None:
    text = stage.render(name, ALICE, first_name="Ann").text
    assert said in text
