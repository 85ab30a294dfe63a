"""Explain to a marketer why a webhook's JSON cannot be read, and read what is beyond doubt. Pure.

Braze's test dialog shows the sentence. The cause is nearly always a quote, in the template or in a
value that Liquid has inserted.
"""

import json
import re

from bridge.fields import CURLY_QUOTES, shown

# Characters before and after the error in which the cause is searched.
_AROUND = 300
# A curly quote where JSON needs a straight one: next to punctuation of JSON.
_CURLY_IN_USE = re.compile(rf"[{{,:\[]\s*[{CURLY_QUOTES}]|[{CURLY_QUOTES}]\s*(?:[:,}}\]]|$)")
_NAME = re.compile(rf"[{{,]\s*[\"'{CURLY_QUOTES}]?([\w .-]{{1,60}})[\"'{CURLY_QUOTES}]?\s*:")
_LAST_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"\s*$', re.DOTALL)


# A name and its value, up to the comma, bracket or end of line after it. U+FFFD stands for bytes
# that are not UTF-8. Possessive quantifiers, so that hostile text takes linear time.
_LEGIBLE = re.compile(
    rf"""(?<!\w) (?P<name>\w{{1,60}}+) ["'{CURLY_QUOTES}]? [ \t]*+ : [ \t]*+
    (?: "(?P<text> [^"\\\n\ufffd]{{0,255}}+ )"
      | ['{CURLY_QUOTES}] (?P<odd> [^"'{CURLY_QUOTES}\\\n\ufffd]{{0,255}}+ ) ['{CURLY_QUOTES}]
      | (?P<bare> [\w-]{{1,255}}+ )
    ) [ \t]*+ (?= [,}}\r\n] | \Z )""",
    re.VERBOSE,
)


def legible_fields(content: str) -> dict[str, str]:
    """Return the fields of *content*, which is not JSON, that can be read beyond doubt.

    A field that has two different values is left out.
    """
    found: dict[str, set[str]] = {}
    for one in _LEGIBLE.finditer(content):
        found.setdefault(one["name"], set()).add(one["text"] or one["odd"] or one["bare"] or "")
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def explain(content: str, error: json.JSONDecodeError) -> str:
    """Return one or two sentences: where *content* is not JSON, and the likely cause."""
    place = error.pos
    named = list(_NAME.finditer(content, max(0, place - _AROUND), place))
    field = f", in {shown(named[-1][1])}" if named else ""
    near = shown(content[place : place + 20].split("\n", maxsplit=1)[0])
    where = f"line {error.lineno}, column {error.colno}{field}, near: {near or 'its end'}"
    cause = _cause(content, place, error.msg)
    return f"The body is not valid JSON at {where}" + (f". {cause}" if cause else "")


def _cause(content: str, place: int, problem: str) -> str:
    """Return the likely cause of Python's *problem* at *place*; "" if it is unknown."""
    before = content[max(0, place - _AROUND) : place].rstrip()
    here = content[place : place + 1]
    found = _LAST_TEXT.search(before)
    text = found[0] if found else ""
    if re.match(r"[\w\[\]]+=", content):
        return "Is it a form? Send it with the Content-Type application/x-www-form-urlencoded."
    if problem.startswith("Unterminated"):
        rest = content[place + 1 : place + _AROUND]
        return _other_quotes("", rest) or "The quote that opens here is never closed."
    line = content[place : place + _AROUND].partition("\n")[0]
    return (
        _other_quotes(here, text + line)
        or _PLAIN.get(problem.partition(" ")[0], "")
        or _by_character(here, before)
        or _by_problem(here, before, text, problem)
    )


_PLAIN = {
    "Extra": "Text follows the end of the JSON object, or its first { is missing.",
    "Invalid": "A backslash in a text must be doubled: | json_escape does that.",
}


def _other_quotes(here: str, suspect: str) -> str:
    if here in {*CURLY_QUOTES} or _CURLY_IN_USE.search(suspect):
        return f"Curly quotes, pasted from a word processor? {_STRAIGHT}"
    if here in {"'", "`"}:
        return f"Single quotes? {_STRAIGHT}"
    if here == "&":
        return f"HTML codes such as &quot; in place of quotes? {_STRAIGHT}"
    return ""


_STRAIGHT = 'JSON needs straight double ones: "user_id": "42".'


def _by_character(here: str, before: str) -> str:
    """Return the cause if the character at the error shows it, otherwise ""."""
    if not here:
        return "It ends too early: a closing quote, ] or } is missing."
    if here in {"/", "#", "<"}:
        return "JSON has neither comments nor tags."
    # One comma before a closing bracket is allowed. Two commas, or one after an opening bracket,
    # are not.
    if before.endswith((",,", ", ,")) or (here == "," and before[-1:] in {",", "[", "{"}):
        return "There is one comma too many."
    return ""


def _by_problem(here: str, before: str, text: str, problem: str) -> str:
    """Return the cause by what JSON expects here; *text* is the string that ends *before*."""
    if problem.startswith("Expecting property name"):
        return 'Put the name in quotes: "user_id".'
    if problem.startswith("Expecting value"):
        return _NO_VALUE if here in {",", "}", "]"} else _UNQUOTED
    if problem.startswith("Expecting ':'"):
        # A text without its closing quote extends to the next quote, over punctuation.
        return _UNCLOSED if re.search("[:,]", text) else "A colon is missing after the name."
    return _after_a_value(here, before, text)


_NO_VALUE = "There is no value: did Liquid find none? In quotes it would be blank."
_UNQUOTED = 'Put the text in quotes: "00123".'
_UNCLOSED = "The closing quote of the text before is missing."


def _after_a_value(here: str, before: str, text: str) -> str:
    """Return the cause where a comma or a closing bracket is expected."""
    if not text:
        if here == '"' and before[-1:] not in {"}", "]"}:
            return "The opening quote of the text before is missing."
        return _UNQUOTED if re.match(r"[\w.-]", here) else "A comma is missing."
    if here in {'"', ";", "=", ":"}:
        return "A comma is missing."
    if text == '"["':
        return (
            "A list that Liquid prints has quotes of its own: leave out those around it, or pass "
            "it through | json_escape."
        )
    if re.search(r',\s*"$', text):
        return _UNCLOSED
    return (
        "A quote within a text ends it too early: end the Liquid in it with | json_escape, as in "
        "{{${first_name} | json_escape}}."
    )
