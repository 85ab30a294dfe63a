"""Templates rendered in a process of their own: in bounds, and with all calls answered here."""

import os
from pathlib import Path

import pytest

from bridge.preview import Answered, Asked, Made, Preview, preview
from bridge.snippets import TEMPLATES, snippets

CALL = "{% connected_content https://x.example/y :save r %}"


def render(source: str, *answers: Answered) -> tuple[Preview, list[Asked]]:
    asked: list[Asked] = []

    def answer(call: Asked) -> Answered:
        asked.append(call)
        return answers[min(len(asked), len(answers)) - 1]

    return preview(source, {"attributes": {"user_id": "u", "first_name": "Zoë"}}, answer), asked


def test_a_template_and_its_calls_are_rendered() -> None:
    found, asked = render(
        "Hi {{${first_name}}}: {% connected_content https://x.example/y :method post"
        " :body a=ü :save r %}{{r.word}} {{r.__http_status_code__}}",
        Answered(200, '{"word": "żółw"}'),
    )
    assert found == Preview("Hi Zoë: żółw 200", calls=(Made("POST", "https://x.example/y", ""),))
    [call] = asked
    assert (call.method, call.url, call.body) == ("POST", "https://x.example/y", "a=ü")


def test_what_is_not_used_is_told_for_each_call() -> None:
    found, asked = render(
        CALL.replace("https", "ftp") + CALL + CALL.replace("/y", "/z") + "{{r}}",
        Answered(200, '{"a": 1}'),
        Answered(0, "it is not made"),
    )
    assert [(made.url, made.unused) for made in found.calls] == [
        ("ftp://x.example/y", "no answer: InvalidSchema"),
        ("https://x.example/y", ""),
        ("https://x.example/z", "no answer: ConnectionError"),
    ]
    assert [call.place for call in asked] == [1, 2]
    assert found.text == ""


def test_a_retry_asks_six_times_without_waiting() -> None:
    found, asked = render(CALL.replace(":save", ":retry :save"), Answered(503, "{}"))
    assert found.aborted == "Connected Content failed: HTTP 503"
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% if %}", "Line 1: missing expression"),
        ("\n\n{{ 1 | nothing }}", "Line 3: unknown filter 'nothing'"),
        ("{% for i in (1..100000000) %}x{% endfor %}", "loop iteration limit"),
        ("{% for i in (1..90000) %}{{ i | sha2 }}{% endfor %}" * 900, "more than 1 seconds"),
        (
            '{% assign a = "x" %}{% for i in (1..60) %}{% assign a = a | append: a %}{% endfor %}',
            "MB of memory",
        ),
        ('{% assign a = "x" %}' + "{% assign a = a | append: a %}" * 60, "MB of memory"),
        ("{% if true %}" * 7000, "nest"),
        ("x" * 100_001, "longer than 100,000 characters"),
    ],
)
def test_a_bad_template_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, source: str, problem: str
) -> None:
    if "sha2" in source:
        monkeypatch.setattr("bridge.preview.SECONDS", 1.0)
    found, _ = render(source)
    assert problem in found.problem
    assert (found.text, found.aborted) == ("", None)


def test_the_child_knows_nothing_of_the_services_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSIONM_CORE_SECRET", "very secret")
    seen: list[bytes] = []

    def answer(_call: Asked) -> Answered:
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        pids = " ".join(path.read_text() for path in children).split()
        seen.extend(Path(f"/proc/{pid}/environ").read_bytes() for pid in pids)
        return Answered(200, "{}")

    assert preview(CALL + "done", {"attributes": {}}, answer).text == "done"
    assert seen
    assert not any(b"very secret" in one for one in seen)


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
