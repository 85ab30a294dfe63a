"""What SessionM sends for Braze: read, or refused with a message that names the field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.customer import Customer
from bridge.intake.message import (
    Message,
    MessagePath,
    MessageRules,
    customers_in_message,
    dedupe_of,
    read_message,
    read_partial_message,
    without_customer,
)
from bridge.intake.payload import RefusedError

BY_USER_ID = MessageRules()
BY_EXTERNAL_ID = MessageRules(external_id_is="external_id")


def read(
    fields: Any, rules: MessageRules = BY_USER_ID, path: MessagePath = MessagePath.MESSAGE
) -> Message:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return read_message(body, "application/json", path, rules)


def one(fields: Any, rules: MessageRules = BY_USER_ID) -> dict[str, Any]:
    """The content of the only send."""
    [send] = read(fields, rules).sends
    return dict(send.content)


def refused(fields: Any, path: MessagePath = MessagePath.MESSAGE) -> str:
    with pytest.raises(RefusedError) as caught:
        read(fields, path=path)
    assert 400 <= caught.value.status < 500
    return str(caught.value)


def test_everything_else_is_a_property() -> None:
    content = one({"braze_campaign_id": "c", "user_id": "u", "title": "10 %", "points": 12})
    assert content["recipient"] == {"external_user_id": "u"}
    assert content["properties"] == {"title": "10 %", "points": 12}
    assert content["outdate"] == "user_id:u"


def test_a_campaign_and_a_canvas_are_two_sends() -> None:
    message = read({"braze_campaign_id": "c", "braze_canvas_id": "v", "user_id": "u"})
    assert [send.target for send in message.sends] == ["campaign:c", "canvas:v"]


@pytest.mark.parametrize(
    "held",
    [
        {"braze_campaign_id": "c", "braze_canvas_id": ""},
        '{"braze_campaign_id": "c", "braze_canvas_id": " ",}',
        '\n{ "braze_campaign_id": "c",\n}\n',
    ],
)
@pytest.mark.parametrize("name", ["advanced_settings", "custom_data"])
def test_the_ids_may_stand_in_the_advanced_settings(name: str, held: Any) -> None:
    message = read({name: held, "user_id": "u", "campaign_id": 77})
    assert [send.target for send in message.sends] == ["campaign:c"]
    # SessionM's own campaign, as it came; what held the IDs and nothing else is gone.
    assert message.sends[0].content["properties"] == {"campaign_id": 77}


def test_campaign_id_is_brazes_only_where_no_field_of_brazes_stands() -> None:
    assert read({"campaign_id": "c", "user_id": "u"}).campaign_id == "c"
    both = read({"braze_canvas_id": "v", "campaign_id": "mine", "user_id": "u"})
    assert (both.campaign_id, both.canvas_id) == (None, "v")
    assert both.sends[0].content["properties"] == {"campaign_id": "mine"}
    # A blank one stands there too: the campaign in SessionM has no setting.
    assert "braze_campaign_id" in refused(
        {"braze_campaign_id": "", "campaign_id": "mine", "user_id": "u"}
    )


def test_the_customer_is_translated_by_the_setting() -> None:
    given = {"braze_campaign_id": "c", "user_id": "u", "external_id": "e"}
    assert one(given)["recipient"] == {"external_user_id": "u"}
    assert one(given, BY_EXTERNAL_ID)["recipient"] == {"external_user_id": "e"}
    other = one({"braze_campaign_id": "c", "external_id": "e"})
    assert (other["recipient"], other["translate"]) == ({}, "external_id:e")


@pytest.mark.parametrize(
    ("given", "recipient"),
    [
        ({"external_user_id": "x"}, {"external_user_id": "x"}),
        ({"braze_id": "b"}, {"braze_id": "b"}),
        ({"email": "A@b.c"}, {"email": "A@b.c", "prioritization": ["most_recently_updated"]}),
        (
            {"email": "a@b.c", "prioritization": ["unidentified"]},
            {"email": "a@b.c", "prioritization": ["unidentified"]},
        ),
        (
            {"user_alias": {"alias_name": "n", "alias_label": "l"}},
            {"user_alias": {"alias_name": "n", "alias_label": "l"}},
        ),
    ],
    ids=str,
)
def test_brazes_own_identifiers_are_passed_on(
    given: dict[str, Any], recipient: dict[str, Any]
) -> None:
    content = one({"braze_campaign_id": "c", "user_id": "u", "external_id": "e", **given})
    assert content["recipient"] == recipient
    assert content["outdate"] == "user_id:u"
    assert content["properties"] == {}


def test_one_person_has_one_key_by_whichever_field() -> None:
    by_id = read({"braze_campaign_id": "c", "user_id": "u"})
    in_braze = read({"braze_campaign_id": "c", "external_user_id": "u"})
    assert by_id.customer == in_braze.customer == "user_id:u"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"user_id": "u"}, "braze_campaign_id"),
        ({"braze_campaign_id": " ", "braze_canvas_id": "", "user_id": "u"}, "braze_canvas_id"),
        ({"braze_campaign_id": "c"}, "user_id"),
        ({"braze_campaign_id": "c", "user_id": "null"}, "user_id"),
        ({"braze_campaign_id": "c", "braze_id": "b", "email": "a@b.c"}, "braze_id and email"),
        (
            {"braze_campaign_id": "c", "user_id": "{{user.id}}"},
            "user_id still holds a placeholder ({{user.id}}): check the template in SessionM.",
        ),
        ({"braze_campaign_id": "{{x}}", "user_id": "u"}, "braze_campaign_id"),
        ({"braze_campaign_id": "c", "user_id": "u", "title": "{{offer}}"}, "title"),
        ({"braze_campaign_id": "c", "user_id": "u", "a": {"b": ["${c}"]}}, "a "),
        ({"braze_campaign_id": "c", "user_id": "u", "custom_data": '{"a": {{b}}}'}, "custom_data"),
        ({"braze_campaign_id": "c", "user_id": "u", "broadcast": True}, "broadcast"),
        ({"braze_campaign_id": "c", "user_id": "u", "broadcast": "perhaps"}, "broadcast"),
        ({"braze_campaign_id": "c", "user_id": "u", "text": "\N{ROCKET}" * 13000}, "properties"),
        ({"braze_campaign_id": "c", "user_id": "u", "text": "\ud800"}, "text"),
        ({"braze_campaign_id": "c", "user_alias": "ann"}, "user_alias"),
        (b'{"braze_campaign_id": "c", "user_id": "u", "n": 1e999}', "n "),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_refusal_names_the_field(fields: Any, named: str) -> None:
    assert named in refused(fields)


def test_a_broadcast_needs_the_rules_and_has_no_recipient() -> None:
    rules = MessageRules(may_broadcast=lambda kind, braze_id: (kind, braze_id) == ("campaign", "c"))
    message = read({"braze_campaign_id": "c", "broadcast": "true", "title": "All"}, rules)
    assert message.customer is None
    assert message.sends[0].content["recipient"] is None
    assert one({"braze_campaign_id": "c", "user_id": "u", "broadcast": "false"})["recipient"]


def test_forms_and_slips_are_tolerated() -> None:
    message = read_message(
        b"braze_campaign_id=c&user_id=u&title=Caf%C3%A9",
        "application/x-www-form-urlencoded",
        MessagePath.MESSAGE,
        BY_USER_ID,
    )
    assert message.sends[0].content["properties"] == {"title": "Café"}
    assert read(b'\xef\xbb\xbf{"braze_campaign_id": "c", "user_id": 12,}').customer == "user_id:12"


def test_a_token_makes_a_message_idempotent_and_stays_a_property() -> None:
    body = b"{}"
    first = read({"braze_campaign_id": "c", "user_id": "u", "user_offer_id": "o1"})
    assert first.sends[0].content["properties"] == {"user_offer_id": "o1"}
    more = read({"braze_campaign_id": "c", "user_id": "u", "user_offer_id": "o1", "points": 3})
    assert dedupe_of(first, None, body) == dedupe_of(more, None, b"other")
    other = read({"braze_campaign_id": "c", "user_id": "v", "user_offer_id": "o1"})
    assert dedupe_of(other, None, body) != dedupe_of(first, None, body)
    # The header wins.
    assert dedupe_of(first, "k", body) != dedupe_of(first, None, body)
    assert dedupe_of(first, "null", body) == dedupe_of(first, None, body)
    plain = read({"braze_campaign_id": "c", "user_id": "u"})
    assert dedupe_of(plain, None, b"1")[1]
    assert dedupe_of(plain, None, b"1") != dedupe_of(plain, None, b"2")


def trigger(*recipients: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"campaign_id": "c", "recipients": list(recipients), **more}


def test_brazes_own_body_is_one_send_for_each_recipient() -> None:
    message = read(
        trigger(
            {"external_user_id": "a", "trigger_properties": {"n": 1}},
            {"external_user_id": "b", "attributes": {"x": 1}},
            trigger_properties={"n": 0, "m": 2},
            send_id="s",
        ),
        path=MessagePath.CAMPAIGN,
    )
    assert message.customer is None
    assert [send.customer for send in message.sends] == ["user_id:a", "user_id:b"]
    assert [send.content["properties"] for send in message.sends] == [
        {"n": 1, "m": 2},
        {"n": 0, "m": 2},
    ]
    assert message.sends[1].content["recipient"] == {
        "attributes": {"x": 1},
        "external_user_id": "b",
    }
    assert message.sends[0].content["call"] == {"send_id": "s"}


def test_a_canvas_takes_properties_under_either_name() -> None:
    for name in ("context", "canvas_entry_properties"):
        message = read(
            {"canvas_id": "v", "recipients": [{"braze_id": "b", name: {"n": 1}}]},
            path=MessagePath.CANVAS,
        )
        assert message.sends[0].target == "canvas:v"
        assert message.sends[0].content["properties"] == {"n": 1}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (trigger(), "recipients"),
        (trigger(*({"external_user_id": str(n)} for n in range(51))), "recipients"),
        (trigger({"external_user_id": "a"}, {"external_user_id": "a"}), "recipients[1]"),
        (trigger({"email": "a@b.c"}, {"email": "A@B.C"}), "recipients[1]"),
        (trigger({}), "recipients[0]"),
        (trigger({"external_user_id": "{{id}}"}), "recipients[0].external_user_id"),
        (trigger({"external_user_id": "a", "trigger_properties": [1]}), "trigger_properties"),
        (trigger({"external_user_id": "a"}, campaign_id=""), "campaign_id"),
        (trigger(broadcast=True), "broadcast"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_refusal_of_brazes_body_names_the_field(fields: Any, named: str) -> None:
    assert named in refused(fields, MessagePath.CAMPAIGN)


def test_what_is_refused_still_names_its_customer() -> None:
    body = json.dumps({"braze_campaign_id": "c", "user_id": "u", "title": "{{x}}"}).encode()
    named = read_partial_message(body, "application/json", MessagePath.MESSAGE)
    assert (named.customer, named.campaign_id) == (Customer("user_id", "u"), "c")


def test_every_customer_of_a_message_is_found_for_erasure() -> None:
    body = json.dumps(trigger({"external_user_id": "a"}, {"braze_id": "b"}, user_id="u")).encode()
    how = ("application/json", MessagePath.CAMPAIGN)
    ann = Customer("external_id", "a")
    assert customers_in_message(body, *how, "external_id") == (Customer("user_id", "u"), ann)
    left = without_customer(body, *how, ann, BY_EXTERNAL_ID)
    assert json.loads(left.body)["recipients"] == [{"braze_id": "b"}]
    assert (left.removed, left.has_recipients) == (("external_id:a",), True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        *("braze_campaign_id", "braze_canvas_id", "campaign_id", "canvas_id", "recipients"),
        *("advanced_settings", "custom_data", "user_id", "external_id", "external_user_id"),
        *("email", "braze_id", "user_alias", "broadcast", "dedupe_id", "prioritization"),
        *("context", "trigger_properties", "title"),
    ]
)
VALUES = JSON | st.sampled_from(["c", "u", "", "null", "{", "[]", '{"braze_campaign_id": "c",}'])


@given(
    fields=st.dictionaries(NAMES, VALUES, max_size=8),
    path=st.sampled_from(MessagePath),
    rules=st.sampled_from([BY_USER_ID, BY_EXTERNAL_ID]),
)
def test_any_body_becomes_sends_or_a_refusal(
    fields: dict[str, Any], path: MessagePath, rules: MessageRules
) -> None:
    body = json.dumps(fields).encode()
    named = read_partial_message(body, "application/json", path)
    assert named.customer is None or named.customer.id
    kind = rules.external_id_is
    for one in customers_in_message(body, "application/json", path, kind) or ():
        left = without_customer(body, "application/json", path, one, rules).body
        assert one not in (customers_in_message(left, "application/json", path, kind) or ())
    try:
        message = read_message(body, "application/json", path, rules)
    except RefusedError:
        return
    assert message.sends
    for send in message.sends:
        # It can be stored, and sent as JSON.
        json.dumps(send.content, allow_nan=False, ensure_ascii=False).encode()
        assert send.customer
    assert dedupe_of(message, None, body)
