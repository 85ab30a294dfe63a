"""Pictures of what the snippets become: rendered with a wallet of the bridge's own making.

They are made of the snippets as they are, so that no picture shows an older one.
"""

from functools import lru_cache

from markupsafe import Markup

from bridge import clock
from bridge.customer import Customer
from bridge.liquid.connected_content import ContentAnswer, ContentRequest
from bridge.liquid.render import render
from bridge.liquid.snippets import Snippet, snippets
from bridge.lookups.query import Query
from bridge.lookups.shape import OwnWrites, Part, encode, offers_answer, tags_answer
from bridge.web.preview import CAMPAIGN, CANVAS, CREDENTIAL, STAND_IN

_DAY = 86400
_CUSTOMER = Customer("user_id", "example")
# Title -> days until the offer expires.
_OFFERS = {"Free barista coffee": 2, "20 % off your next lunch": 5, "Double points on Sunday": 9}


def pictures() -> dict[str, Markup]:
    """Return what each snippet becomes for a customer with three offers, as HTML."""
    return _pictures(int(clock.wall() // _DAY))


@lru_cache(maxsize=1)
def _pictures(day: int) -> dict[str, Markup]:
    now = day * _DAY + _DAY / 2
    return {
        snippet.name: _picture(snippet, now) for snippet in snippets().values() if snippet.where
    }


def _picture(snippet: Snippet, now: float) -> Markup:
    done = render(
        snippet.code,
        attributes={
            "user_id": _CUSTOMER.id,
            "first_name": "Alex",
            **snippet.examples,
        },
        campaign=CAMPAIGN,
        canvas=CANVAS,
        credentials={CREDENTIAL: (CREDENTIAL, STAND_IN)},
        send=lambda asked: _answer(asked, now),
        now=lambda: now,
    )
    text = done.text.strip()
    if text.startswith("{"):
        # The value of a variable: its beginning says enough.
        return Markup("<p><code>{}</code></p>").format(f"{text[:90]} …")
    # Both the snippet and the wallet come with the bridge: no text of a stranger is in it.
    return Markup(text)  # noqa: S704


def _answer(asked: ContentRequest, now: float) -> ContentAnswer:
    if "/tags" in asked.url:
        part = Part("ok", {"tags": {"vip": 1, "newsletter": 3}}, now)
        answer = tags_answer(_CUSTOMER, part, OwnWrites(), lambda _tag: None, now)
    else:
        answer = offers_answer(Query(_CUSTOMER, limit=3), _CUSTOMER.id, _wallet(now), now)
    return ContentAnswer(200, encode(answer))


def _wallet(now: float) -> Part:
    offers = [
        {"offer_id": title, "title": title, "expiration_date": now + days * _DAY}
        for title, days in _OFFERS.items()
    ]
    payload = {"available_points": 1240, "total_points": 4820, "user_offers": offers}
    return Part("ok", {"payload": payload}, now)
