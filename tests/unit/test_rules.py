"""rules.toml, and what it makes of an event."""

from pathlib import Path
from typing import Any

import pytest

from bridge.customer import Customer
from bridge.fields import MAX_TTL, FieldError
from bridge.intake.payload import MAX_TAGS, Event, RefusedError
from bridge.intake.rules import Rules, RulesError, TagWrite, Template, parse_rules, read_rules

DAY = 86_400
SUMMER = "0d2f6f5e-1"
SAMPLE = """
[defaults]
campaign_tag = "braze_campaign_{id}"   # "" writes none
canvas_tag   = "braze_canvas_{id}"
ttl          = "30d"                   # campaign-scoped tags always expire
unknown      = "default"               # or "reject": only campaigns listed below

[campaigns."0d2f6f5e-1"]
name     = "Summer promotion"          # shown on the dashboard
tags     = ["summer_promo"]            # expiring, in place of campaign_tag
ttl      = "14d"
counters = ["summer_promo_touches"]    # counted, never expiring

[canvases."7a-2"]
"""


def rules_of(text: str, folder: Path) -> Rules:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return read_rules(path, 99)


@pytest.fixture
def sample(tmp_path: Path) -> Rules:
    return rules_of(SAMPLE, tmp_path)


def event(
    campaign: str | None = None, canvas: str | None = None, tags: str = "", ttl: int | None = None
) -> Event:
    return Event(Customer("user_id", "u"), campaign, canvas, tuple(tags.split()), ttl)


def writes(rules: Rules, given: Event) -> list[tuple[str, int | None]]:
    """What *given* writes: the tags of each write as one text, and its TTL."""
    return [(" ".join(write.tags), write.ttl) for write in rules.writes(given)]


COUNTED = ("summer_promo_touches", None)
WRITES: dict[str, tuple[Event, list[tuple[str, int | None]]]] = {
    "listed campaign": (event(SUMMER), [("summer_promo", 14 * DAY), COUNTED]),
    "unlisted campaign": (event("x"), [("braze_campaign_x", 30 * DAY)]),
    "listed Canvas without a word": (event(None, "7a-2"), [("braze_canvas_7a-2", 30 * DAY)]),
    "both share a write": (event("x", "y"), [("braze_campaign_x braze_canvas_y", 30 * DAY)]),
    "both with their own TTLs": (
        event(SUMMER, "y"),
        [("summer_promo", 14 * DAY), ("braze_canvas_y", 30 * DAY), COUNTED],
    ),
    "the event's TTL wins": (event(SUMMER, None, "a", 60), [("summer_promo a", 60), COUNTED]),
    "tags are counted": (event("x", None, "a b"), [("braze_campaign_x", 30 * DAY), ("a b", None)]),
    "a rule's counter": (event(None, None, "summer_promo_touches"), [COUNTED]),
    "only tags with TTL": (event(None, None, "a", 5), [("a", 5)]),
}


def test_a_file_may_begin_with_a_byte_order_mark_and_say_whole_numbers_with_a_point(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(b"\xef\xbb\xbf[defaults]\r\nttl = 86400.0\r\n")
    assert read_rules(path, 99).ttl == 86400


@pytest.mark.parametrize(("given", "expected"), WRITES.values(), ids=WRITES)
def test_an_event_writes_what_the_rules_say(sample: Rules, given: Event, expected: Any) -> None:
    assert writes(sample, given) == expected


def test_what_the_rules_do_not_say_follows_from_the_settings(tmp_path: Path) -> None:
    assert writes(read_rules(None, 77), event("c", "v")) == [
        ("braze_campaign_c braze_canvas_v", 77)
    ]
    assert writes(rules_of('[campaigns.c]\ntags = ["t"]', tmp_path), event("c")) == [("t", 99)]


def test_a_campaign_or_canvas_has_the_name_of_its_rule(sample: Rules) -> None:
    assert sample.name_of(SUMMER) == sample.name_of(SUMMER, "campaign") == "Summer promotion"
    assert sample.name_of(SUMMER, "canvas") == sample.name_of("7a-2") == sample.name_of("x") == ""


@pytest.mark.parametrize(
    "given",
    [
        event(None, None, "summer_promo_touches", 5),
        event(None, None, "summer_promo"),
        event(None, None, "braze_campaign_anything"),
        event("x", None, "braze_canvas_y"),
    ],
    ids=lambda given: f"{given.tags[0]} for {given.ttl}",
)
def test_a_tag_is_never_both_counter_and_expiring(sample: Rules, given: Event) -> None:
    with pytest.raises(RefusedError, match=given.tags[0]) as caught:
        sample.writes(given)
    assert caught.value.status == 422


def test_an_unlisted_id_is_refused_where_the_rules_say_so(tmp_path: Path) -> None:
    rules = rules_of(SAMPLE.replace('"default" ', '"reject" '), tmp_path)
    assert rules.writes(event(SUMMER, "7a-2", "more"))
    for unlisted in (event("x"), event(SUMMER, "x")):
        with pytest.raises(RefusedError, match=r"x is not listed in rules\.toml"):
            rules.writes(unlisted)


def test_an_event_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    rules = rules_of('[defaults]\ncampaign_tag = ""\n[canvases.v]\ntags = []', tmp_path)
    with pytest.raises(RefusedError, match="the rules give this campaign or Canvas no tag"):
        rules.writes(event("c", "v"))
    assert writes(rules, event("c", "w")) == [("braze_canvas_w", 99)]


def test_an_id_too_long_for_a_tag_is_refused() -> None:
    with pytest.raises(RefusedError, match="longer than 255"):
        Rules(ttl=1).writes(event("x" * 250))


def test_no_write_has_more_tags_than_a_call_may_carry(tmp_path: Path) -> None:
    listed = ",".join(f'"r{i}"' for i in range(MAX_TAGS + 50))
    rules = rules_of(f'[campaigns.c]\ntags = [{listed}]\nttl = "5s"', tmp_path)
    made = rules.writes(event("c", None, " ".join(f"e{i}" for i in range(MAX_TAGS)), 5))
    assert sum(len(write.tags) for write in made) == 2 * MAX_TAGS + 50
    assert max(len(write.tags) for write in made) <= MAX_TAGS
    assert {write.ttl for write in made} == {5}


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("braze_campaign_a_b", ("campaigns", "a_b")),
        ("braze_canvas_7", ("canvases", "7")),
        ("braze_campaign_", None),
        ("summer_promo", None),
    ],
)
def test_ids_are_read_back_out_of_default_tags(sample: Rules, tag: str, found: Any) -> None:
    assert sample.braze_id(tag) == found


def test_a_template_finds_only_what_it_has_made() -> None:
    assert Template("{id}_seen").id_in("c_seen") == "c"
    assert Template("ab{id}ba").id_in("aba") is None
    assert Template("constant").id_in("constant") is Template("").id_in("any") is None


COUNTER = '[canvases.y]\ncounters = ["t"]\n'
WRONG = [
    ("[defaults", "TOML"),
    ("[campaign.x]", '"campaign"'),
    ("[defaults]\ntll = 5", '"tll"'),
    ('[campaigns.x]\ntag = ["a"]', '"tag"'),
    ("campaigns = 5", "campaigns must be"),
    ("[campaigns]\nx = 5", 'campaigns."x" must be'),
    *((f"[defaults]\nunknown = {value}", "unknown") for value in ('"drop"', '["reject"]', "{}")),
    *((f"[defaults]\nttl = {value}", "defaults.ttl") for value in ("0", "true", "2026-01-01")),
    (f"[campaigns.x]\nttl = {MAX_TTL + 1}", 'campaigns."x".ttl'),
    ("[campaigns.x]\nttl = " + "9" * 5000, "rules.toml"),
    ('[campaigns.x]\ntags = "a"', 'campaigns."x".tags'),
    ('[campaigns.x]\ntags = ["a", " "]', 'campaigns."x".tags[1]'),
    ("[canvases.x]\ncounters = [5]", 'canvases."x".counters[0]'),
    ('[canvases.x]\ntags = ["{{a}}"]', 'canvases."x".tags[0]'),
    ("[canvases.x]\nname = 5", 'canvases."x".name'),
    *((f"[defaults]\ncanvas_tag = {tag}", "canvas_tag") for tag in ('"{id}{id}"', '"{a}"', "5")),
    ('[campaigns.x]\ntags = ["t"]\ncounters = ["t"]', '"t" is a counter'),
    (COUNTER + '[campaigns.x]\ntags = ["t"]', '"t" is a counter'),
    (COUNTER + '[defaults]\ncampaign_tag = "t"', '"t" is a counter'),
    (COUNTER + '[defaults]\ncanvas_tag = "{id}"', '"t" is a counter'),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[ascii(text)[:50] for text, _ in WRONG])
def test_a_wrong_rules_file_stops_the_start_with_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(RulesError) as caught:
        rules_of(text, tmp_path)
    assert says in str(caught.value)
    assert "rules.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rules_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RulesError, match="BRIDGE_RULES"):
            read_rules(path, 1)
    (tmp_path / "latin.toml").write_bytes(b'[campaigns."\xe4"]')
    with pytest.raises(RulesError, match=r"latin\.toml"):
        read_rules(tmp_path / "latin.toml", 1)


@pytest.mark.parametrize("value", [1, 1.5, "x", [], {}, [[]], {"a": {}}, True], ids=str)
@pytest.mark.parametrize("place", ["defaults", "campaigns", "canvas_tag", "unknown", "tags", "ttl"])
def test_rules_of_any_shape_are_read_or_refused(place: str, value: Any) -> None:
    for document in (
        {place: value},
        {"defaults": {place: value}},
        {"campaigns": {"x": {place: value}}},
    ):
        try:
            assert parse_rules(document, 5).writes(event(None, None, "a")) == (
                TagWrite(("a",), None),
            )
        except FieldError as refused:
            assert refused.field  # noqa: PT017 - either is right
