"""What a template may cost, and the snippets that come with the bridge."""

import json
import time
import tracemalloc
from threading import Event, Thread

import pytest

from bridge.liquid.render import LiquidError, render
from bridge.liquid.snippets import TEMPLATES, snippets
from bridge.liquid.syntax import fields_used

DOUBLE = "{% assign a = a | append: a %}"
MEGABYTE = '{% assign a = "xxxxxxxx" %}' + DOUBLE * 16


def looped(inside: str) -> str:
    return f"{{% for i in (1..90000) %}}{inside}{{% endfor %}}"


HOSTILE = {
    "endless loop": ("{% for i in (1..100000000) %}x{% endfor %}", "over 100,000 rounds"),
    "loops in loops": (looped(looped("x")), "over 100,000 rounds"),
    "many loops": (looped("{{ i | sha2 | slice: 0 }}") * 900, "more than 0.5 s"),
    "doubled text": (MEGABYTE + DOUBLE * 60, "grows beyond 1,000,000 characters"),
    "doubled in a loop": (MEGABYTE + looped(DOUBLE), "grows beyond 1,000,000 characters"),
    "growing by replace": (MEGABYTE + "{{ a | replace: 'x', a }}", "grows beyond"),
    "growing by join": (
        MEGABYTE + "{% assign l = a | split: ',' %}{{ l" + " | concat: l" * 900 + " | join }}",
        "grows beyond 1,000,000 characters",
    ),
    "growing by inspect": (
        MEGABYTE + "{% assign l = a | split: ',' %}{{ l" + " | concat: l" * 900 + " | upcase }}",
        "grows beyond 1,000,000 characters",
    ),
    "large lists": (MEGABYTE + "{{ a | split: '' | size }}", "beyond 100,000 items"),
    "many variables": (
        MEGABYTE + "".join(f"{{% assign a{n} = a | append: {n} %}}" for n in range(60)),
        "variables grow beyond 16 MB",
    ),
    "a large message": (looped("x" * 1000), "message grows beyond 2 MB"),
    "large numbers": ("{% assign n = 9 %}" + looped("{% assign n = n | times: n %}"), "digits"),
    "wide dates": ("{{ 'now' | date: '%999999999d' }}", "too wide"),
    "deep nesting": ("{% if true %}" * 7000, "nested over 100 deep"),
    "deep loops": (
        "{% for i in (1..1) %}" * 120 + "{% endfor %}" * 120,
        "nested over 100 deep",
    ),
    "html": (MEGABYTE.replace("x", "<") + looped("{{ a | strip_html | size }}"), "0.5 s"),
    "sorting": (
        MEGABYTE.replace("xxxxxxxx", "b a ")
        + "{% assign l = a | slice: 0, 90000 | split: ' ' %}"
        + looped("{% assign l = l | sort_natural | uniq | reverse %}{{ l | size }}"),
        "0.5 s",
    ),
    "dates": (looped("{{ 'wed, 12 june 2021 17:13:41.123 +02:00' | date: '%c' | size }}"), "0.5 s"),
    "too long": ("x" * 100_001, "longer than 100,000 characters"),
}
# Texts on which a careless pattern takes hours.
TANGLED = {
    "brackets": "{{ " + "[" * 45_000 + " }}",
    "closed brackets": "{{ " + "[a" * 30_000 + "]" * 30_000 + " }}",
    "path": "{{ a" + ".b" * 45_000 + " }}",
    "quotes": "{{ " + "'" * 90_000 + " }}",
    "filters": "{{ a " + "| append: b" * 9000 + " }}",
    "references": "{% if " + "${a}" * 20_000 + "' %}x{% endif %}",
    "conditions": "{% if " + "a and " * 16_000 + " b %}x{% endif %}",
    "open outputs": "{{" * 50_000,
    "open references": "{{ ${" * 20_000,
    "open tags": "{%" * 50_000,
    "open comments": "-->" + "<!--" * 24_000,
    "raw": "{% raw %}" * 11_000,
    "assign": "{% assign " + "a" * 90_000 + "! = 1 %}",
    "for": "{% for x in y " + "a-" * 45_000 + " %}{% endfor %}",
    "tablerow": "{% tablerow " + "a" * 90_000 + " %}{% endtablerow %}",
    "cycle": "{% cycle " + "${a}" * 20_000 + " %}",
    "when": "{% case a %}" + "{% when 1 %}" * 8000 + "{% endcase %}",
    "call": "{% connected_content http://x " + "{{" * 40_000 + " %}",
}


def seconds_of(source: str) -> tuple[float, str]:
    """CPU seconds of finding the fields of *source* and of rendering it; the error."""
    started = time.thread_time()
    fields_used(source)
    try:
        render(source, attributes={})
    except LiquidError as error:
        return time.thread_time() - started, str(error)
    return time.thread_time() - started, ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_ended_in_time_with_a_sentence(name: str) -> None:
    source, words = HOSTILE[name]
    seconds, error = seconds_of(source)
    assert words in error
    assert seconds < 1.5
    assert ("in a loop of" in error) == ("0.5 s" in error)


@pytest.mark.parametrize("name", TANGLED)
def test_a_tangled_template_is_read_in_time(name: str) -> None:
    seconds, _ = seconds_of(TANGLED[name])
    assert seconds < 1.5


@pytest.mark.parametrize("name", [name for name in HOSTILE if "0.5 s" not in HOSTILE[name][1]])
def test_a_hostile_template_takes_under_100_megabytes(name: str) -> None:
    tracemalloc.start()
    try:
        seconds_of(HOSTILE[name][0])
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_the_time_that_a_call_takes_is_not_the_templates() -> None:
    source = "{% connected_content http://127.0.0.1:1/ :retry :save r %}{{r}}"
    done = render(source, attributes={}, pause=lambda _: time.sleep(0.2))
    assert done.aborted == "Connected Content failed: no answer: ConnectionError"


def test_a_template_that_is_held_up_by_a_busy_machine_is_rendered() -> None:
    """Other threads hold the interpreter for longer than a template may compute."""
    over = Event()

    def busy() -> None:
        while not over.is_set():
            json.dumps(list(range(1000)))

    threads = [Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        source = "{% for i in (1..9000) %}{{ i | plus: 1 | size }}{% endfor %}"
        assert len(render(source, attributes={}).text) == 9000
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_one_line_template_takes_a_few_milliseconds() -> None:
    render("warm", attributes={})
    assert seconds_of("Hi {{${first_name} | default: 'there'}}!")[0] < 0.05


def test_every_snippet_says_what_it_does_and_is_filled_in() -> None:
    assert len(snippets()) == len(list((TEMPLATES / "liquid").glob("*.liquid")))
    for snippet in snippets().values():
        assert snippet.about.endswith(".")
        assert snippet.is_webhook or snippet.where.endswith(".")
        assert "comment" not in snippet.code
        for kind, other in (("user_id", "external_id"), ("external_id", "user_id")):
            code = snippet.filled("https://b.example", kind)
            assert "YOUR-BRIDGE" not in code
            assert kind in code.replace("${user_id}", "")
            assert other not in code.replace("${user_id}", "")
