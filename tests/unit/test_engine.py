"""The preview beside Braze's engine and documentation, and the kinds of what Ruby does."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.liquid.connected_content import ContentAnswer, ContentRequest
from bridge.liquid.inputs import read_value
from bridge.liquid.render import LiquidError, render

SAMPLES = Path(__file__).parents[1] / "samples" / "liquid"

# Braze's documentation calls them errors ("Operators", "Using Liquid"); the engine swallows them.
DOCUMENTED_ERRORS = {
    "{% if (i > 5) and (f) %}Y{% else %}N{% endif %}": "parentheses",
    "{% assign x = i > 5 %}{{x}}": "not a comparison",
}


def rendered(template: str, attributes: dict[str, Any], variables: dict[str, Any]) -> str:
    """The message, ``ABORT``, or ``error: …``."""
    try:
        done = render(
            template, attributes=attributes, variables=variables, send=lambda _: ContentAnswer(500)
        )
    except LiquidError as error:
        return f"error: {error}"
    return done.text if done.aborted is None else "ABORT"


def text(
    template: str,
    variables: dict[str, Any] | None = None,
    now: Callable[[], float] = time.time,
) -> str:
    return render(template, attributes={}, variables=variables, now=now).text


def test_templates_render_as_in_brazes_engine() -> None:
    measured = json.loads((SAMPLES / "engine.json").read_text(encoding="utf-8"))
    differ = []
    for case in measured["cases"]:
        template = case["template"]
        found = rendered(template, {}, measured["variables"])
        if template in DOCUMENTED_ERRORS:
            agrees = found.startswith("error") and DOCUMENTED_ERRORS[template] in found
        elif "error" in case:
            agrees = found.startswith("error")
        else:
            agrees = found == case["text"]
        if not agrees:
            differ.append(f"{template!r}: {case.get('text', 'an error')!r}, here {found!r}")
    assert not differ, "\n".join(differ)
    assert len(measured["cases"]) == 1045


def test_documented_templates_render_as_documented() -> None:
    differ = []
    for line in (SAMPLES / "documented.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        found = _documented(case)
        if found:
            differ.append(f"{case['name']}: {case['template']!r}: {case['expected']!r}, {found}")
    assert not differ, "\n".join(differ)


def _documented(case: dict[str, Any]) -> str:
    """How a case differs, "" if it does not."""
    asked: list[ContentRequest] = []
    given = case["context"]["attributes"], case["context"]["variables"]
    attributes, variables = given
    if case["kind"] == "cli-types":
        attributes, variables = (
            {name: read_value(value) for name, value in one.items()} for one in given
        )

    def send(request: ContentRequest) -> ContentAnswer:
        asked.append(request)
        return ContentAnswer(200, b"{}")

    expected: str = case["expected"]
    try:
        done = render(
            case["template"],
            attributes=attributes,
            variables=variables,
            auth_tokens={"tok": {}},
            send=send,
        )
    except LiquidError as error:
        return "" if expected == "error" else f"here {error}"
    if expected.startswith("GET "):
        return "" if expected == f"{asked[0].method} {asked[0].url}" else f"here {asked}"
    if case["kind"] == "unsupported-tag" and "clear message" in expected:
        return "" if done.text.startswith("[") and done.warnings else f"here {done}"
    text = done.text if done.aborted is None else "ABORT"
    return "" if expected in {text, "parses"} else f"here {text!r}"


# --- Ruby's values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("2.5 | round", "3"),
        ("-2.5 | round", "-3"),
        ("1234.5 | round: 0", "1235"),
        ("1.005 | round: 2", "1.01"),
        ("1250 | round: -2", "1300"),
        ("'12.50' | round", "13"),
        ("0.1 | plus: 0.2", "0.3"),
        ("17.8 | divided_by: 100.00", "0.178"),
        ("-7 | divided_by: 2", "-4"),
        ("-7 | modulo: 3", "2"),
        ("-7.5 | modulo: 3", "1.5"),
        ("'12abc' | plus: 0", "12"),
        ("'1,234' | plus: 0", "1"),
        ("'1e3' | plus: 0", "1"),
        ("' 3.5 ' | plus: 0", "3.5"),
        ("true | plus: 1", "1"),
        ("none | plus: 1", "1"),
        ("1.0 | times: 100000000000000000", "1.0e+17"),
        ("0.00001 | times: 1", "1.0e-05"),
        ("1000000.0", "1000000.0"),
        ("1234567890123456.0", "1234567890123456.0"),
        ("12345678901234567.0", "1.2345678901234568e+16"),
        ("5 | size", "8"),
        ("true | append: '!'", "true!"),
        ("object", '{"a"=>1, "b"=>nil, "c"=>["x", 1.5]}'),
        ("object | upcase", '{"A"=>1, "B"=>NIL, "C"=>["X", 1.5]}'),
        ("lists", "12"),
        ("lists | upcase", "[[1, NIL], [2]]"),
        ("lists | join: '-'", "1--2"),
        ("odd | downcase", '["\\"\\\\\\n\\u0001\\#{é"]'),
        ("'a,b,,' | split: ',' | size", "2"),
        ("' a  b ' | split: ' ' | join: '|'", "a|b"),
        ("'abc' | split: '' | join: '|'", "a|b|c"),
        ("'abc' | truncate: 3", "abc"),
        ("'abcd' | truncate: 3", "..."),
        ("'Ann' | truncatewords: 1", "Ann"),
        ("'a b  c' | truncatewords: 2", "a b..."),
        ('"it\'s" | escape', "it&#39;s"),
        (r"'a' | replace: 'a', '[\0]'", "[a]"),
        ("mixed | sort | join: ','", "1,2,3,"),
        ("words | sort | join", "A B a b"),
        ("words | sort_natural | join", "a A b B"),
        ("twice | uniq | join", "1 1.0 2"),
        ("rows | where: 'k' | map: 'n' | join", "x z"),
        ("rows | where: 'k', false | map: 'n' | join", "y"),
        ("rows | sort: 'n' | map: 'n' | join", "x y z"),
        ("rows | compact: 'k' | size", "3"),
        ("'a' | default: 'b'", "a"),
        ("false | default: 'b', allow_false: true", "false"),
        ("'' | default: 'b'", "b"),
        ("(1..3)", "1..3"),
        ("(1..3) | join: '+'", "1+2+3"),
        ("object.first", "a1"),
        ("words.last", "A"),
        ("(1..99999999999999999999999) | size", "99999999999999999999999"),
        ("'1e400' | json_parse | minus: 1", "Infinity"),
        ("infinite | minus: infinite", "NaN"),
        ("infinite | modulo: 2", "NaN"),
        ("nan | at_least: 1", "NaN"),
        ("'a-b' | slice: -1", "b"),
        ("'abcdefghijklmnop' | slice: '0xb'", "l"),
        ("'abcdefghijklmnop' | slice: '0B11'", "d"),
        ("'abcdefghijklmnop' | slice: '0o12'", "k"),
        ("'abcdefghijklmnop' | slice: '012'", "k"),
        ("0 | time_zone: 'UTC' | uniq | as_json_string", '["1970-01-01 00:00:00 UTC"]'),
        ("words | slice: 1, 2", "aB"),
        ("'<script>x</script><b>y</b><!-- z -->' | strip_html", "y"),
        ("'a\nb' | newline_to_br", "a<br />\nb"),
        ("'É' | downcase", "é"),
        ("'hELLO' | capitalize", "Hello"),
        ("'a b&c' | url_encode", "a+b%26c"),
        ("'&amp; & <' | escape_once", "&amp; &amp; &lt;"),
    ],
)
def test_values_print_and_compute_as_in_ruby(expression: str, message: str) -> None:
    variables = {
        "object": {"a": 1, "b": None, "c": ["x", 1.5]},
        "lists": [[1, None], [2]],
        "odd": ['"\\\n\x01#{É'],
        "mixed": [3, None, 1, 2],
        "words": ["b", "a", "B", "A"],
        "twice": [1, 1.0, 1, 2],
        "infinite": float("inf"),
        "nan": float("nan"),
        "rows": [{"n": "x", "k": True}, {"n": "z", "k": 0}, {"n": "y", "k": False}],
    }
    assert text(f"{{{{ {expression} }}}}", variables) == message


@pytest.mark.parametrize(
    ("given", "form", "message"),
    [
        ("06/03/2021", "%F", "2021-03-06"),
        ("03.06.2021", "%F", "2021-06-03"),
        ("June 2021", "%F", "2021-06-01"),
        ("3rd June 2021 5:07pm", "%F %H:%M", "2021-06-03 17:07"),
        ("Thu, 03 Jun 2021 17:13:41 GMT", "%s|%Z", "1622740421|"),
        ("Thu Jun  3 17:13:41 UTC 2021", "%s|%Z", "1622740421|UTC"),
        ("2021-06-03T17:13:41.123456+02:00", "%s %L %N %:z", "1622733221 123 123456000 +02:00"),
        ("2021-06-03 17:13:41 -0700", "%H %s %z", "17 1622765621 -0700"),
        ("2021-06-03 17:13 PST", "%z", "-0800"),
        ("20210603T171341Z", "%F %T", "2021-06-03 17:13:41"),
        ("2021-154", "%F", "2021-154"),
        ("2021-06-03T24:00Z", "%F %R", "2021-06-04 00:00"),
        ("31-Dec-99", "%F", "1999-12-31"),
        ("2021-02-31", "%F", "2021-03-03"),
        ("13/25/2021", "%F", "13/25/2021"),
        ("2021-06-03 25:00", "%F", "2021-06-03 25:00"),
        ("Friday", "%F", "Friday"),
        ("soon", "%F", "soon"),
        ("1622740421", "%v %-d/%-m/%y %l:%M %p", " 3-JUN-2021 3/6/21  5:13 PM"),
        (
            1622740421,
            "%a %A %b %B %j %U %W %V %G %u %w %C %e %P",
            "Thu Thursday Jun June 154 22 22 22 2021 4 4 20  3 pm",
        ),
        (
            1622740421,
            "%^a %^B %#p %05d %_m %010Y %3N %%d %q %",
            "THU JUNE pm 00003  6 0000002021 000 %d %q %",
        ),
        (
            1622740421,
            "%D|%F|%R|%r|%T|%x|%X|%c|%n|%t",
            (
                "06/03/21|2021-06-03|17:13|05:13:41 PM|17:13:41|06/03/21|17:13:41|"
                "Thu Jun  3 17:13:41 2021|\n|\t"
            ),
        ),
        ("1622740421000", "%Y", "53392"),
        (-1, "%F %T", "1969-12-31 23:59:59"),
        (1622740421, "", "1622740421"),
        (None, "%Y", ""),
        (1.5, "%Y", "1.5"),
        (["a"], "%Y", "a"),
        ("17:13", "%F %R", "2026-11-22 17:13"),
        ("2 May", "%F", "2026-05-02"),
        ("now", "%F %R", "2026-11-22 12:00"),
    ],
)
def test_dates_are_read_and_printed_as_in_ruby(given: object, form: str, message: str) -> None:
    source = "{{ given | date: form }}"
    variables = {"given": given, "form": form}
    assert text(source, variables, now=lambda: 1_795_348_800.0) == message


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_dates_are_utc_on_every_machine(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert text("{{ 1622740421 | date: '%H:%M %Z' }}") == "17:13 UTC"
        assert text("{{ '2021-06-03 17:13' | date: '%s' }}") == "1622740380"
    finally:
        monkeypatch.undo()
        time.tzset()


# --- Tags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for x in (1..3) reversed %}{{x}}{% endfor %}", "321"),
        ("{% for x in (1..9) limit: 2 offset: 3 %}{{x}}{% endfor %}", "45"),
        (
            (
                "{% for x in l limit: 2 %}{{x}}{% endfor %}"
                "{% for x in l offset: continue %}{{x}}{% endfor %}"
            ),
            "bac",
        ),
        ("{% for x in none %}a{% else %}none{% endfor %}", "none"),
        ("{% for x in 'ab' %}[{{x}}]{% endfor %}", "[ab]"),
        ("{% for p in h %}{{p[0]}}={{p[1]}}{% endfor %}", "a=1"),
        (
            (
                "{% for x in l %}{% for y in l %}{% break %}{% endfor %}"
                "{{x}}{% continue %}!{% endfor %}"
            ),
            "bac",
        ),
        ("a{% break %}b", "a"),
        (
            (
                "{% assign forloop = 1 %}"
                "{% for x in l %}{{forloop.index}}{{forloop.last}} {% endfor %}{{forloop}}"
            ),
            "1false 2false 3true 1",
        ),
        ("{% case 2 %} x {% when 1, 2 or 3 %}y{% else %}z{% endcase %}", "y"),
        (
            "{% case 'a' %}{% when blank %}1{% when 'a' %}2{% when 'a' %}3{% else %}4{% endcase %}",
            "23",
        ),
        ("{% if true %} {% assign x = 1 %} {% endif %}|{% if true %} {% else %}y{% endif %}", "| "),
        (
            (
                "{% unless false %}a{% elsif true %}b{% endunless %}"
                "{% unless true %}a{% else %}c{% endunless %}"
            ),
            "ac",
        ),
        ("{% capture x %}a{{ 1 }}{% endcapture %}{{x}}{{x}}", "a1a1"),
        ("{% cycle 'g': 1, 2 %}{% cycle 1, 2 %}{% cycle 'g': 1, 2 %}", "112"),
        ("{% for x in l %}{% ifchanged %}z{% endifchanged %}{% endfor %}", "z"),
        ("{% increment n %}{% increment n %}{% decrement n %}{{n}}", "0111"),
        ("{% liquid\n assign x = 2\n if x > 1\n echo x\n endif\n%}", "2"),
        ("{%- if true -%} a {%- endif -%} b", "ab"),
        ("{% raw %}{{ x }}{% if %}{% endraw %}", "{{ x }}{% if %}"),
        ("{{ '{{' }}", "{{"),
        ("{% message_extras :key a :value 1 %}b", "b"),
        ("{% if true or false and false %}Y{% endif %}", "Y"),
        ("{% if l contains 'a' and 'abc' contains 'b' and h contains 'a' %}Y{% endif %}", "Y"),
        ("{% if (1..99999999999999999999999) contains 7 %}Y{% endif %}", "Y"),
        ("{% for x in l %}{% cycle forloop: 1, 2 %}{% endfor %}{{ [l] }}", "121"),
        ("{% for x in l %}{{ forloop[l] }}{% endfor %}", ""),
        ("{% if 7 contains 'x' or l > 1 or h > 1 or none > 1 %}Y{% else %}N{% endif %}", "N"),
        ("{% if 1 == true or '1' == 1 %}Y{% else %}N{% endif %}", "N"),
        ("{% if '' == empty and l != empty and 1 == 1.0 %}Y{% endif %}", "Y"),
        (
            "{% tablerow x in l cols: 2 %}{{x}}{% endtablerow %}",
            (
                '<tr class="row1">\n<td class="col1">b</td><td class="col2">a</td></tr>\n'
                '<tr class="row2"><td class="col1">c</td></tr>\n'
            ),
        ),
    ],
)
def test_tags_do_what_they_do_in_braze(source: str, message: str) -> None:
    assert text(source, {"l": ["b", "a", "c"], "h": {"a": 1}}) == message
