"""Fields of an answer, and the Liquid that shows each of them."""

from typing import Any

import pytest

from bridge.liquid.fieldtree import DEEPEST, MOST_FIELDS, MOST_ITEMS, AnswerField, field_tree
from bridge.liquid.render import render
from bridge.liquid.tags import NO_END_DAYS
from bridge.lookups.shape import NEVER


def every(tree: AnswerField) -> list[AnswerField]:
    return [tree, *(one for inner in tree.fields for one in every(inner))]


@pytest.mark.parametrize(
    ("value", "insert", "rendered"),
    [
        ({"a": "Pie"}, "{{ w.a | default: '…' | escape }}", "Pie"),
        ({"a": ""}, "{{ w.a | default: '…' | escape }}", "…"),
        ({"a": 5}, "{{ w.a | default: 0 }}", "5"),
        ({"a": 2.5}, "{{ w.a | default: 0 }}", "2.5"),
        ({"a": True}, "{% if w.a %}…{% endif %}", "…"),
        ({"a": "2026-12-01T00:00:00Z"}, "{{ w.a | date: '%d %B %Y' }}", "01 December 2026"),
        ({"a": "2026-12-01 08:30:00 UTC"}, "{{ w.a | date: '%d %B %Y' }}", "01 December 2026"),
        ({"days_left": 3}, "{% if w.days_left < 9999 %}{{ w.days_left }}…{% endif %}", "3…"),
        ({"days_left": 9999}, "{% if w.days_left < 9999 %}{{ w.days_left }}…{% endif %}", ""),
        ({"expires_at": ""}, "{{ w.expires_at | date: '%d %B %Y' }}", ""),
        ({"a": "Pie & <b>"}, "{{ w.a | default: '…' | escape }}", "Pie &amp; &lt;b&gt;"),
        ({"a b": "Pie"}, "{{ w['a b'] | default: '…' | escape }}", "Pie"),
        ({"it's": "Pie"}, "{{ w[\"it's\"] | default: '…' | escape }}", "Pie"),
        ({"a": ["vip", "gold"]}, "{% if w.a contains 'vip' %}…{% endif %}", "…"),
        ({"a": []}, "{% if w.a contains '…' %}…{% endif %}", ""),
        (
            {"offers": [{"title": "Pie"}, {"title": "Tea"}]},
            "{% for offer in w.offers %}\n  {{ offer.title | escape }}\n{% endfor %}",
            "Pie Tea",
        ),
        ({"a": [{"b": 1}]}, "{% for item in w.a %}\n  {{ item.b | escape }}\n{% endfor %}", "1"),
    ],
)
def test_a_field_brings_the_liquid_that_shows_it(value: Any, insert: str, rendered: str) -> None:
    [field] = field_tree("w", value).fields
    assert field.insert == insert
    done = render(field.insert, attributes={}, variables={"w": value})
    assert " ".join(done.text.split()) == rendered
    assert done.warnings == ()


def test_no_end_is_what_lookups_say() -> None:
    assert NO_END_DAYS == NEVER


def test_a_field_that_no_liquid_reaches_is_left_out() -> None:
    assert field_tree("w", {"'\"": 1, "a\nb": 2}).fields == ()


def test_what_messages_show_comes_first_and_identifiers_last() -> None:
    offer = {"offer_id": "1", "terms": "x", "title": "Pie"}
    assert [one.name for one in field_tree("w", offer).fields] == ["title", "terms", "offer_id"]


def test_items_of_lists_have_paths_of_their_own() -> None:
    tree = field_tree("w", {"offers": [{"title": "Pie"}]})
    assert "{{ w.offers[0].title | default: '…' | escape }}" in {one.insert for one in every(tree)}


def test_a_large_answer_makes_a_small_tree() -> None:
    nested: Any = "deep"
    for _ in range(100):
        nested = {"a": nested}
    wide = {f"field{number}": "x" * 1000 for number in range(500)}
    tree = field_tree("w", {"nested": nested, "wide": wide, "list": list(range(1000))})
    assert len(every(tree)) < DEEPEST + MOST_FIELDS + MOST_ITEMS + 5
    assert all(len(one.value) <= 80 for one in every(tree))
    assert {one.value for one in tree.fields if one.name == "list"} == {"1000 items"}


@pytest.mark.parametrize("value", ["text", 5, None, [], {}])
def test_any_json_makes_a_tree(value: Any) -> None:
    assert field_tree("w", value).name == "w"
