"""Braze's Liquid against a real HTTP peer, and the snippets for marketers."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import requests
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from bridge.liquid.connected_content import (
    LARGEST_ANSWER,
    RETRY_WAITS,
    ContentAnswer,
    ContentRequest,
)
from bridge.liquid.inputs import InputError, read_attributes, read_value
from bridge.liquid.render import LiquidError, Rendered, render

HERE = Path(__file__).parents[1]
SNIPPETS = sorted((HERE.parent / "templates" / "liquid").glob("*.liquid"))
GUIDE = (HERE / "samples" / "000_89871c874eea678a.txt").read_text()

ADA = {
    "user_id": "u/1 ä",
    "first_name": "Ada",
    "custom_attribute": {
        "Favourite Colour": "blue",
        "vip": True,
        "points": 5,
        "brands": ["a", "b"],
        "address": {"city": "Ulm"},
        "cart": [{"title": "Pie"}, {"title": "Tea"}],
        "a.b": "dotted",
    },
}
BRIDGE_KEY = {"bridge": ("braze", "s3cret")}


@dataclass
class Seen:
    """A request as the peer got it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: str


@dataclass
class Peer:
    """An HTTP server with the answers that a test gives it."""

    url: str = ""
    answers: list[Response] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    over: Event = field(default_factory=Event)

    def answer(self, body: object = "", status: int = 200, **headers: str) -> None:
        """Give this answer next; the last one is given for ever."""
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        self.answers.append(Response(text, status, headers))

    def answer_slowly(self, chunks: Iterable[bytes]) -> None:
        self.answers.append(Response(chunks, direct_passthrough=True))

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        self.seen.append(
            Seen(
                request.method,
                request.path,
                request.args.to_dict(),
                dict(request.headers),
                request.get_data(as_text=True),
            )
        )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(environ, start_response)


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's
        pass


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    server = make_server("127.0.0.1", 0, peer, threaded=True, request_handler=_Quiet)
    peer.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield peer
    peer.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def rendered(source: str, **options: Any) -> Rendered:
    options.setdefault("attributes", ADA)
    return render(source, **options)


def text(source: str, **options: Any) -> str:
    return rendered(source, **options).text


def ask(peer: Peer, options: str = "", after: str = "", **rest: Any) -> Rendered:
    """A template that makes one call, and `after` it."""
    tag = f"{{% connected_content {peer.url}/x {options} %}}"
    return rendered(tag + after, **rest)


def error_of(source: str, **options: Any) -> str:
    with pytest.raises(LiquidError) as caught:
        rendered(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Braze's references -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{${first_name}}}", "Ada"),
        ("{{ ${first_name} }}", "Ada"),
        ("{{${nick_name} | default: 'there'}}", "there"),
        ("{{${first_name} | upcase | append: '!'}}", "ADA!"),
        ("{{campaign.${api_id}}}/{{campaign.${dispatch_id}}}", "c1/d1"),
        ("{{canvas.${api_id}}}", "v1"),
        ("{{custom_attribute.${Favourite Colour}}}", "blue"),
        ("{{event_properties.${x}}}", "7"),
        ("{{custom_attribute.${brands}[1]}}{{custom_attribute.${brands}.size}}", "b2"),
        ("{{custom_attribute.${it's}}}", ""),
        ("{{custom_attribute.${address.city}}}", "Ulm"),
        ("{{custom_attribute.${cart[1].title}}}", "Tea"),
        ("{{custom_attribute.${address}[0].city}}", "Ulm"),
        ("{{custom_attribute.${a.b}}}", "dotted"),
        ("{{${address.city}}}", ""),
        ("{{custom_attribute.${cart}[0]['title']}}{{custom_attribute.${cart}[9].title}}", "Pie"),
        ("{{nothing}}{{${nothing}}}{{campaign.${nothing}.deeper}}", ""),
    ],
)
def test_references_are_what_braze_makes_of_them(source: str, message: str) -> None:
    assert message == text(
        source,
        campaign={"api_id": "c1", "dispatch_id": "d1"},
        canvas={"api_id": "v1"},
        variables={"event_properties": {"x": 7}},
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if {{custom_attribute.${points}}} == 5 %}five{% endif %}", "five"),
        ("{% if custom_attribute.${points} == 5 %}five{% endif %}", "five"),
        ("{% if custom_attribute.${vip} %}vip{% endif %}", "vip"),
        ("{% assign id = {{${first_name}}} %}{{id}}", "Ada"),
        ("{% assign id = {{${first_name} | upcase}} %}{{id}}", "ADA"),
        ("{% for b in {{custom_attribute.${brands}}} %}{{b}}.{% endfor %}", "a.b."),
        ("{% case {{${first_name}}} %}{% when 'Ada' %}hers{% endcase %}", "hers"),
        ("{{ 'I am ' | append: {{${first_name}}} }}", "I am Ada"),
        # Braze documentation, "Using variables to calculate a balance": a dollar sign before it.
        ("You have ${{custom_attribute.${points} | plus: {{one}}}}!", "You have $6!"),
        (
            "{{custom_attribute.${points} | plus: {{custom_attribute.${points}}}}}",
            "10",
        ),
    ],
)
def test_braces_may_be_nested_where_braze_allows_it(source: str, message: str) -> None:
    assert text(source, variables={"one": 1}) == message


def test_a_reference_outside_of_markup_is_text() -> None:
    assert text("${first_name} costs $5 {or} ${") == "${first_name} costs $5 {or} ${"


def test_a_reference_in_a_quoted_text_is_text() -> None:
    assert text("{{ '${first_name}' }}") == "${first_name}"


def test_raw_blocks_are_left_alone() -> None:
    assert text("{% raw %}{{${first_name}}}{% endraw %}") == "{{${first_name}}}"


def test_assigning_a_variable_leaves_the_attribute_of_that_name_alone() -> None:
    assert text("{% assign first_name = 'Eve' %}{{${first_name}}} {{first_name}}") == "Ada Eve"


def test_custom_attributes_are_found_among_the_attributes_when_not_given_apart() -> None:
    assert text("{{custom_attribute.${vip}}}", attributes={"vip": "yes"}) == "yes"


@pytest.mark.parametrize("value", [None, "", "  ", False, []])
def test_nothing_at_all_is_blank(value: object) -> None:
    source = "{% if ${email} == blank %}blank{% endif %}{% if ${email} != blank %}there{% endif %}"
    assert text(source, attributes={"email": value}) == "blank"


def test_an_unknown_attribute_is_blank_in_every_kind_of_condition() -> None:
    assert text("{% unless ${email} != blank %}none{% endunless %}") == "none"
    assert text("{% if x %}{% elsif blank == ${email} and true %}none{% endif %}") == "none"
    assert text("{% if ${first_name} == blank %}{% else %}there{% endif %}") == "there"


# --- abort_message and comments ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("{% abort_message('not today') %}", "not today"),
        ('{% abort_message("it\'s not") %}', "it's not"),
        ("{% abort_message( 'spaced' ) %}", "spaced"),
        ("{% abort_message() %}", ""),
        ("{% abort_message %}", ""),
    ],
)
def test_an_aborted_message_has_no_text_but_a_reason(tag: str, reason: str) -> None:
    assert rendered(f"Hi{{% if true %}} {tag} {{% endif %}}there") == Rendered("", reason, ())


def test_a_message_that_is_not_aborted_has_no_reason() -> None:
    assert rendered("Hi{% if false %}{% abort_message('x') %}{% endif %}").aborted is None


@pytest.mark.parametrize("reason", ["('a {{b}}')", "(wallet.reason)", "('${x}')", "'bare'"])
def test_a_reason_with_liquid_in_it_is_refused_as_braze_does(reason: str) -> None:
    assert "abort_message takes a reason in quotes" in error_of(f"{{% abort_message{reason} %}}")


def test_comments_print_nothing_and_call_nobody(peer: Peer) -> None:
    call = f"{{% connected_content {peer.url}/x %}}"
    source = f"a{{% comment %}}{call} don't {{{{ ${{x}} }}}} {{% nope %}}{{% endcomment %}}b"
    assert text(source) == "ab"
    assert peer.seen == []


@pytest.mark.parametrize("inside", ["{% if x %}", "{{ x", "{% for %}"])
def test_what_stands_in_a_comment_must_be_whole_as_in_braze(inside: str) -> None:
    assert error_of(f"{{% comment %}}{inside}{{% endcomment %}}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a<!-- {{${first_name}}} {% nope %} -->b", "ab"),
        ("a<!--\n{{ -->b<!----><!-- x -->c", "abc"),
        ("{% if true %}<!-- x -->y{% endif %}", "y"),
        ("a <!-- never closed {{${first_name}}}", "a <!-- never closed Ada"),
        # Outlook's own comments are part of the message.
        ("<!--[if mso]>{{${first_name}}}<![endif]-->", "<!--[if mso]>Ada<![endif]-->"),
    ],
)
def test_html_comments_are_removed_before_anything_is_read(source: str, message: str) -> None:
    assert text(source) == message


def test_no_call_is_made_from_an_html_comment(peer: Peer) -> None:
    assert text(f"a<!-- {{% connected_content {peer.url}/x %}} -->b") == "ab"
    assert peer.seen == []


def test_an_error_behind_an_html_comment_has_its_own_line_and_column() -> None:
    assert error_of("<!-- a\nb -->\n x{% nope %}").startswith("line 3, column 3: ")


def test_comments_may_hold_comments() -> None:
    inner = "{% comment %}{{x}}{% endcomment %}"
    assert text(f"a{{%- comment -%}} {inner} \n{{%- endcomment -%}} b") == "ab"


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("a\n{% if x %}\nb\n", "2, column 1", "`if` needs an {% endif %}"),
        ("{% if x %}a{% else %}b", "1, column 1", "`if` needs an {% endif %}"),
        (
            "<!-- a\n -->{% if x %}{% for o in y %}\na{% else %}b{% endif %}",
            "3, column 13",
            "the `for` of line 2 needs an {% endfor %} before this {% endif %}",
        ),
        (
            "{% comment %}{% if x %}{% endcomment %}",
            "1, column 24",
            "the `if` of line 1 needs an {% endif %} before this {% endcomment %}",
        ),
        ("a{% if w > 0 Hello {% endif %}", "1, column 2", "this tag has no `%}` before the next"),
        ("{% if x %}{% assign y = 1 {% endif %}", "1, column 11", "this tag has no `%}`"),
        ("a\n b{% endif %}", "2, column 3", "`endif` belongs to no open tag"),
        (
            "{% if x %}{% elseif y %}{% endif %}",
            "1, column 11",
            "Braze has no tag `elseif`; did you mean `elsif`?",
        ),
        ("{% if x %}{% endfi %}", "1, column 11", "no tag `endfi`; did you mean `endif`?"),
        ("{% if x %}{% endfor %}{% endif %}", "1, column 11", "`endfor` belongs to no open tag"),
        ("{% content %}", "1, column 1", "Braze has no tag `content`"),
        ("\n{{${first_name}\n", "2, column 1", "{{ is never closed by }}"),
        ("\n{% if x \n", "2, column 1", "{% is never closed by %}"),
        ("{% raw %}x", "1, column 1", "`raw` needs an {% endraw %}"),
        ("{% comment %}x", "1, column 1", "`comment` needs an {% endcomment %}"),
        ("{% # note %}", "1, column 1", "a tag begins with its name"),
        ("{% doc %}x{% enddoc %}", "1, column 1", "Braze has no tag `doc`"),
        ("\n{% include 'x' %}", "2, column 1", "Braze has no tag `include`"),
        ("{% if %}x{% endif %}", "1, column 1", "a condition is missing"),
        ("{% if a or %}x{% endif %}", "1, column 1", ""),
        ("{% if (a) %}x{% endif %}", "1, column 1", "parentheses"),
        ("{% assign x %}", "1, column 1", "assign takes a name"),
        ("{% assign x = 1 > 2 %}", "1, column 1", "not a comparison"),
        ("{% for x of y %}{% endfor %}", "1, column 1", "for takes a name"),
        ("{% case %}{% endcase %}", "1, column 1", "case takes a value"),
        ("{{{x}}}", "1, column 1", "three braces"),
        ("{{ l[x | minus: 1] }}", "1, column 1", "a filter cannot stand within [ ]"),
        (
            "{{ 'a' | append }}",
            "1, column 1",
            "the filter `append` takes 1 value after its colon, and has 0",
        ),
        ("{{ 'a' | upcase: 1 }}", "1, column 1", "(given 2, expected 1)"),
        ("{{${a}}}\n{{ '9' | slice: 'x' }}", "2, column 1", "Liquid error: invalid integer"),
        ("{{ 1 | divided_by: 0 }}", "1, column 1", "nothing can be divided by 0"),
        ("{% if 'a' > 5 %}x{% endif %}", "1, column 1", "comparison of String with 5 failed"),
        ("{% if 5 > 'a' %}x{% endif %}", "1, column 1", "comparison of Integer with String failed"),
        (
            "{% if 5 = 5 %}x{% endif %}",
            "1, column 1",
            "Braze has no operator `=`; write `==` (Liquid error: Unknown operator =)",
        ),
        ("{% if 5 contain 5 %}x{% endif %}", "1, column 1", "did you mean `contains`?"),
        ("{{ 'a' | concat: 'b' }}", "1, column 1", "concat filter requires an array argument"),
        ("{{ 1 | map: 'a' }}", "1, column 1", "cannot select the property 'a'"),
        ("{{ '%ff' | url_decode }}", "1, column 1", "invalid byte sequence"),
        ("{{ '{a' | json_parse }}", "1, column 1", "valid JSON"),
        ("{{ 'Infinity' | json_parse }}", "1, column 1", "valid JSON"),
        ("""{{ '"\\ud800"' | json_parse }}""", "1, column 1", "valid JSON"),
        ("{{ 1.5 | round: x }}", "1, column 1", "Liquid error: Infinity"),
        ("{{ '2026-01-01' | date: '%" + "9" * 5000 + "d' }}", "1, column 1", "printed too wide"),
        ("{{ 'é' | base64_decode }}", "1, column 1", "invalid base64"),
        ("\n{% for i in (true..3) %}{% endfor %}", "2, column 1", "Liquid error: invalid integer"),
        (
            "{% for i in (1..99999999999999999999999) %}{% endfor %}",
            "1, column 1",
            "100,000 rounds",
        ),
        ("{% tablerow i in (1..3) cols: x %}{% endtablerow %}", "1, column 1", "error: Infinity"),
        ("{{ ${a[" + "9" * 5000 + "]} }}", "1, column 1", "too many digits"),
        ("\n{% connected_content %}", "2, column 1", "needs a URL"),
        ("\n{% connected_content :save x %}", "2, column 1", "the URL comes first"),
        ("{% connected_content http://x :re %}", "1, column 1", "unknown option :re"),
        ("{% connected_content http://x :save %}", "1, column 1", ":save needs a value"),
        (
            "{% connected_content http://x :save a.b %}",
            "1, column 1",
            ":save takes a variable's name",
        ),
        ("{% connected_content http://x :method put %}", "1, column 1", "takes get or post"),
        (
            "{% connected_content http://x :cache_max_age 5m %}",
            "1, column 1",
            "a number of seconds",
        ),
        ("{% connected_content http://x :headers {a: b} %}", "1, column 1", "needs a JSON object"),
        ("{% connected_content http://x :headers [] %}", "1, column 1", "needs a JSON object"),
        ("{% connected_content http://x :basic_auth {{a}} %}", "1, column 1", "a credential"),
        ('{% connected_content http://x :body {"a": 1} %}', "1, column 1", "goes into a capture"),
        ("{% connected_content http://x :retry now %}", "1, column 1", "unexpected 'now'"),
    ],
)
def test_an_error_is_one_line_that_says_where_and_what(source: str, line: str, words: str) -> None:
    message = error_of(source, variables={"x": float("inf")})
    assert message.startswith(f"line {line}: ")
    assert words in message
    assert "class '" not in message


@pytest.mark.parametrize("option", [":basic_auth old", ":auth_credentials old"])
def test_a_call_that_names_no_stored_credential_is_not_made(peer: Peer, option: str) -> None:
    result = ask(peer, f"{option} :save r", "[{{r}}]", credentials=BRIDGE_KEY)
    assert result.text == "[]"
    assert "'old' (known: " in result.calls[0].error
    assert "s3cret" not in repr(result)
    assert peer.seen == []


# --- connected_content: the request -----------------------------------------------------------


def test_a_call_is_a_get_with_braze_s_default_headers(peer: Peer) -> None:
    peer.answer("hello")
    assert ask(peer).text == "hello"
    seen = peer.seen[0]
    assert (seen.method, seen.path, seen.body) == ("GET", "/x", "")
    assert (seen.headers["Content-Type"], seen.headers["Accept"]) == ("application/json", "*/*")
    assert seen.headers["User-Agent"].startswith("Braze Sender")


def test_outputs_in_the_url_are_filled_in_with_their_filters(peer: Peer) -> None:
    peer.answer("")
    url = "{{base}}/u/{{ 'a' | upcase }}?user_id={{${user_id} | url_param_escape}}&n={{${none}}}"
    text(f"{{% connected_content {url} :save x %}}", variables={"base": peer.url})
    assert (peer.seen[0].path, peer.seen[0].query) == ("/u/A", {"user_id": "u/1 ä", "n": ""})


def test_a_post_carries_a_form_by_default(peer: Peer) -> None:
    peer.answer("")
    ask(peer, ":method post :body key1=value1&key2={{${first_name}}}")
    seen = peer.seen[0]
    assert (seen.method, seen.body) == ("POST", "key1=value1&key2=Ada")
    assert seen.headers["Content-Type"] == "application/x-www-form-urlencoded"


def test_a_form_is_sent_as_json_when_the_content_type_says_so(peer: Peer) -> None:
    peer.answer("")
    ask(peer, ":method post :body a=1&b={{${first_name}}} :content_type application/json")
    assert json.loads(peer.seen[0].body) == {"a": "1", "b": "Ada"}
    assert peer.seen[0].headers["Content-Type"] == "application/json"
    assert peer.seen[0].headers["Accept"] == "application/json"


def test_a_json_body_may_stand_inline_without_spaces(peer: Peer) -> None:
    peer.answer("")
    body = '{"foo":"b=r","baz":{"n":"{{1|plus:1}}"}}'
    ask(peer, f":method post :body {body} :content_type application/json")
    assert json.loads(peer.seen[0].body) == {"foo": "b=r", "baz": {"n": "2"}}


def test_headers_may_hold_outputs_and_come_after_the_other_options(peer: Peer) -> None:
    peer.answer("")
    headers = '{ "X-Name": "Hi {{${nick} | default: "a :b"}}",\n "X-Odd" : "a :save b}" }'
    ask(peer, f":save r :no_cache :method POST\n:headers {headers} :body {{{{${{user_id}}}}}}")
    seen = peer.seen[0]
    assert (seen.headers["X-Name"], seen.headers["X-Odd"]) == ("Hi a :b", "a :save b}")
    assert (seen.method, seen.body) == ("POST", "u/1 ä")


def test_headers_win_over_the_default_content_type(peer: Peer) -> None:
    peer.answer("")
    ask(peer, ':method post :headers {"content-type": "text/plain"} :body a=1')
    assert peer.seen[0].headers["Content-Type"] == "text/plain"
    assert peer.seen[0].body == "a=1"


def test_stored_basic_credentials_are_sent(peer: Peer) -> None:
    peer.answer("")
    ask(peer, ":basic_auth bridge", credentials={"bridge": ("brazé", "s3:cret€")})
    sent = requests.Request("GET", peer.url, auth=("brazé".encode(), "s3:cret€".encode())).prepare()
    assert peer.seen[0].headers["Authorization"] == sent.headers["Authorization"]


def test_references_without_braces_are_filled_in_within_the_tag(peer: Peer) -> None:
    peer.answer("")
    ask(peer, ':headers {"X-Name": "${first_name}"} :method post :body n=${first_name}')
    assert (peer.seen[0].headers["X-Name"], peer.seen[0].body) == ("Ada", "n=Ada")
    text(f"{{% connected_content {peer.url}/${{first_name}}?v=${{vip}} :save r %}}")
    assert (peer.seen[1].path, peer.seen[1].query) == ("/Ada", {"v": ""})


def test_accept_and_a_maximum_age_without_a_number_are_taken(peer: Peer) -> None:
    peer.answer("")
    ask(peer, ":cache_max_age :retry :accept application/vnd.api+json :save r")
    assert peer.seen[0].headers["Accept"] == "application/vnd.api+json"


def test_liquid_in_an_answer_is_rendered_when_the_tag_says_so(peer: Peer) -> None:
    peer.answer({"greeting": "Hi {{${first_name}}}"})
    assert ask(peer, ":save r", "{{r.greeting}}").text == "Hi {{${first_name}}}"
    assert ask(peer, ":rerender :save r", "{{r.greeting}}").text == "Hi Ada"
    peer.answers[:] = []
    peer.answer("x{% nope %}")
    with pytest.raises(LiquidError, match="the answer of a call, line 1, column 2: Braze has no"):
        ask(peer, ":rerender")


def test_stored_tokens_are_sent_as_headers(peer: Peer) -> None:
    peer.answer("")
    ask(peer, ":auth_credentials api", auth_tokens={"api": {"Authorization": "Bearer t0ken"}})
    assert peer.seen[0].headers["Authorization"] == "Bearer t0ken"


def test_no_password_is_taken_from_netrc(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    peer.answer("")
    ask(peer)
    assert "Authorization" not in peer.seen[0].headers


def test_secrets_are_not_to_be_seen_in_what_is_reported(peer: Peer) -> None:
    peer.answer("")
    address = peer.url.replace("http://", "http://me:mine@")
    result = rendered(
        f"{{% connected_content {address}/x?key=s3cret%26&t=t0ken :basic_auth bridge %}}",
        credentials={"bridge": ("braze", "s3cret&")},
        auth_tokens={"api": {"X-Token": "t0ken", "X-None": ""}},
    )
    assert result.calls[0].url == peer.url.replace("//", "//***@") + "/x?key=***&t=***"
    assert not re.search("s3cret|t0ken|mine", repr(result))


def test_the_url_can_be_pointed_elsewhere(peer: Peer) -> None:
    peer.answer("there")
    source = "{% connected_content https://YOUR-BRIDGE/a?b={{${first_name}}} %}"
    result = rendered(source, rewrite=lambda url: url.replace("https://YOUR-BRIDGE", peer.url))
    assert result.text == "there"
    assert result.calls[0].url == f"{peer.url}/a?b=Ada"


# --- connected_content: the answer -------------------------------------------------------------


def test_a_saved_object_is_parsed_and_gets_the_status(peer: Peer) -> None:
    peer.answer({"a": [{"b": "c"}]}, 201)
    after = "{{r.a[0].b}} {{r.__http_status_code__}}"
    assert ask(peer, ":save r", after).text == "c 201"


def test_a_saved_list_is_parsed_and_gets_no_status(peer: Peer) -> None:
    peer.answer([1, 2])
    assert ask(peer, ":save r", "{{r[1]}}{{r.size}}{{r.__http_status_code__}}").text == "22"


@pytest.mark.parametrize("body", ["plain <b>text</b>", "{broken", "[" * 100_000])
def test_what_is_not_json_is_saved_as_text(peer: Peer, body: str) -> None:
    peer.answer(body)
    assert ask(peer, ":save r", "{{r}}").text == body


def test_text_is_printed_when_it_is_not_saved_even_alone_in_a_block(peer: Peer) -> None:
    peer.answer("hällo")
    source = f"{{% if true %}} {{% connected_content {peer.url}/x %}} {{% endif %}}"
    assert text(source) == " hällo "


def test_json_that_is_not_saved_goes_into_connected_and_is_not_printed(peer: Peer) -> None:
    peer.answer({"a": "b"})
    assert ask(peer, "", "{{connected.a}}").text == "b"


def test_connected_is_nil_after_a_call_that_failed(peer: Peer) -> None:
    peer.answer({"a": "b"})
    peer.answer({"a": "b"}, 404)
    again = f"{{% connected_content {peer.url}/y %}}{{% if connected == nil %}}nil{{% endif %}}"
    assert ask(peer, "", again).text == "nil"


@pytest.mark.parametrize("status", [300, 302, 400, 401, 404, 429, 500, 503])
def test_an_answer_that_is_no_success_is_empty(peer: Peer, status: int) -> None:
    peer.answer({"a": "b"}, status)
    after = "{% if r == '' %}empty{% endif %}{% if r.__http_status_code__ != 200 %}!{% endif %}"
    result = ask(peer, ":save r", after)
    assert result.text == "empty!"
    assert (result.calls[0].status, result.calls[0].error) == (status, f"HTTP {status}")
    assert ask(peer).text == ""


def test_redirects_are_not_followed(peer: Peer) -> None:
    peer.answer("moved", 301, Location="/elsewhere")
    assert ask(peer).text == ""
    assert len(peer.seen) == 1


def test_an_answer_of_one_megabyte_is_used_and_a_larger_one_is_not(peer: Peer) -> None:
    peer.answer("a" * LARGEST_ANSWER)
    peer.answer("a" * (LARGEST_ANSWER + 1))
    assert len(ask(peer).text) == LARGEST_ANSWER
    result = ask(peer)
    assert (result.text, result.calls[0].status) == ("", 200)
    assert result.calls[0].error == "over 1000000 bytes"


def test_an_answer_that_does_not_come_in_time_is_not_used(peer: Peer) -> None:
    def late() -> Iterator[bytes]:
        peer.over.wait(30)
        yield b"late"

    peer.answer_slowly(late())
    result = ask(peer, ":save r", "[{{r}}]", timeout=0.1)
    assert result.text == "[]"
    assert (result.calls[0].status, result.calls[0].error) == (None, "no whole answer within 0.1 s")
    assert 0.1 <= result.calls[0].seconds < 5


def test_an_answer_in_drips_is_not_used_though_each_drip_is_in_time(peer: Peer) -> None:
    def drips() -> Iterator[bytes]:
        while not peer.over.wait(0.02):
            yield b"drip"

    peer.answer_slowly(drips())
    result = ask(peer, timeout=0.3)
    assert result.text == ""
    assert result.calls[0].seconds < 5


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "x", "http://", "{{${none}}}", "ftp://x/"])
def test_a_host_that_cannot_be_reached_renders_empty(url: str) -> None:
    result = rendered(f"a{{% connected_content {url} :save r %}}{{{{r}}}}b")
    assert (result.text, result.calls[0].status) == ("ab", None)
    assert result.calls[0].error.startswith("no answer: ")


def test_a_header_that_cannot_be_sent_renders_empty(peer: Peer) -> None:
    peer.answer("x")
    result = ask(peer, ':headers {"X-Name": "{{ name }}"}', variables={"name": "a\nb"})
    assert (result.text, result.calls[0].error) == ("", "no answer: InvalidHeader")


def test_the_calls_are_listed(peer: Peer) -> None:
    peer.answer("x")
    call = ask(peer, ":method post").calls[0]
    assert (call.method, call.url, call.status, call.error) == ("POST", f"{peer.url}/x", 200, "")
    assert 0 < call.seconds < 5


# --- connected_content: caching and retries ----------------------------------------------------


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ("", 1),
        (":cache_max_age 900", 1),
        (":no_cache", 2),
        (":method post :body a=1", 2),
        (":method post :body a=1 :cache_max_age 900", 1),
    ],
)
def test_an_answer_is_kept_for_the_render_by_braze_s_rules(
    peer: Peer, options: str, calls: int
) -> None:
    peer.answer("x")
    result = ask(peer, options, f"{{% connected_content {peer.url}/x {options} %}}")
    assert result.text == "xx"
    assert len(peer.seen) == len(result.calls) == calls


def test_answers_are_kept_by_the_url_alone(peer: Peer) -> None:
    peer.answer("first")
    peer.answer("second")
    other = f'{{% connected_content {peer.url}/x :headers {{"X-User": "2"}} %}}'
    assert ask(peer, "", other).text == "firstfirst"
    assert ask(peer, "", f"{{% connected_content {peer.url}/x?user=2 %}}").text == "secondsecond"


def test_failures_are_not_kept(peer: Peer) -> None:
    peer.answer("x", 500)
    peer.answer("x")
    assert ask(peer, "", f"{{% connected_content {peer.url}/x %}}").text == "x"


def test_nothing_is_kept_between_renders(peer: Peer) -> None:
    peer.answer("x")
    assert ask(peer).text == ask(peer).text == "x"
    assert len(peer.seen) == 2


def test_retry_asks_again_after_growing_waits_until_it_works(peer: Peer) -> None:
    waits: list[float] = []
    peer.answer("", 500)
    peer.answer("", 503)
    peer.answer("x")
    result = ask(peer, ":retry", pause=waits.append)
    assert (result.text, result.aborted) == ("x", None)
    assert [call.status for call in result.calls] == [500, 503, 200]
    assert waits == list(RETRY_WAITS[:2])


def test_retry_aborts_the_message_after_five_more_tries(peer: Peer) -> None:
    waits: list[float] = []
    peer.answer("", 503)
    result = ask(peer, ":save r :retry", "never seen", pause=waits.append)
    assert (result.text, result.aborted) == ("", "Connected Content failed: HTTP 503")
    assert len(result.calls) == len(peer.seen) == 6
    assert waits == sorted(set(waits))


def test_retry_asks_again_when_nobody_answers() -> None:
    source = "{% connected_content http://127.0.0.1:1/ :retry %}"
    assert len(rendered(source, pause=lambda _: None).calls) == 6


def test_retry_may_work_at_the_last_try(peer: Peer) -> None:
    for _ in RETRY_WAITS:
        peer.answer("", 502)
    peer.answer("x")
    assert ask(peer, ":retry", pause=lambda _: None).text == "x"


@pytest.mark.parametrize("status", [400, 404])
def test_retry_leaves_it_at_an_answer_that_stays_the_same(peer: Peer, status: int) -> None:
    peer.answer("", status)
    result = ask(peer, ":retry :save r", "[{{r}}]", pause=pytest.fail)
    assert (result.text, result.aborted) == ("[]", None)


def test_without_retry_a_failure_is_final(peer: Peer) -> None:
    peer.answer("", 503)
    assert ask(peer).aborted is None
    assert len(peer.seen) == 1


# --- Filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        # Braze's own examples, from "Advanced filters".
        ("'hey' | md5", "6057f13c496ecf7fd777ceb9e79ae285"),
        ("'hey' | sha1", "7f550a9f4c44173a37664d938f1355f0f92a47a7"),
        ("'hey' | sha2", "fa690b82061edfd2852629aeba8a8977b57e40fcb77d1a7a28b26cba62591204"),
        ("'hey<>hi' | url_escape", "hey%3C%3Ehi"),
        ("'hey<&>hi' | url_param_escape", "hey%3C%26%3Ehi"),
        ("123456 | number_with_delimiter", "123,456"),
        ("hash | property_accessor: 'a'", "42"),
        # Others.
        ("'a&b?c=ü' | url_escape", "a&b?c=%C3%BC"),
        ("'a/b+c d' | url_param_escape", "a%2Fb%2Bc%20d"),
        ("none | url_param_escape", ""),
        ("quoted | json_escape", r"say \"hi\" \\ \n ü"),
        ("1234567.8912 | number_with_delimiter", "1,234,567.8912"),
        ("999 | number_with_delimiter", "999"),
        ("none | number_with_delimiter", ""),
        ("none | property_accessor: 'a'", ""),
        ("17.8 | money", "17.80"),
        ("145 | money", "145.00"),
        ("'12.345' | money", "12.35"),
        ("none | money", "0.00"),
        ("'hey' | hmac_sha1: 'secret_key'", "2a3969bed25bfeefb00aca4063eb9590b4df8f0e"),
        ("'hey' | hmac_sha1_base64: 'secret_key'", "KjlpvtJb/u+wCspAY+uVkLTfjw4="),
        ("'hey' | hmac_sha512: 'secret_key' | size", "128"),
        ("'{\"a\": [1, true, null]}' | json_parse", '{"a"=>[1, true, nil]}'),
        ("hash | as_json_string", '{"a":42}'),
        ("quoted | as_json_string", r'"say \"hi\" \\ \n ü"'),
        ("none | as_json_string", "null"),
        (
            "'2021-08-04 09:00:00 UTC' | time_zone: 'America/Los_Angeles'",
            "2021-08-04 02:00:00 -0700",
        ),
        ("1628067600 | time_zone: 'Asia/Tokyo' | date: '%H:%M %Z'", "18:00 JST"),
        ("'2021-08-04 09:00 UTC' | time_zone: '-0530' | date: '%H:%M %z'", "03:30 -0530"),
        ("'2021-08-04 09:00 UTC' | time_zone: 'Nowhere/City' | date: '%H:%M'", "09:00"),
        ("none | time_zone: 'Asia/Tokyo'", ""),
    ],
)
def test_filters_give_what_braze_documents(expression: str, message: str) -> None:
    variables = {"hash": {"a": 42}, "quoted": 'say "hi" \\ \n ü'}
    assert text(f"{{{{ {expression} }}}}", variables=variables) == message


# --- What Braze swallows, and what the author should know ----------------------------------------


@pytest.mark.parametrize(
    ("source", "message", "warning"),
    [
        (
            "{% if a == 1 && b == 1 %}Y{% endif %}",
            "Y",
            "column 1: Braze ignores `&& b == 1`; write `and`",
        ),
        (
            "{% if a == 2 || a == 1 %}Y{% else %}N{% endif %}",
            "N",
            "ignores `|| a == 1`; write `or`",
        ),
        ("{% if a AND b %}Y{% endif %}", "Y", "Braze ignores `AND b`; write `and`"),
        ("{% if {{l | size}} == 9 %}Y{% endif %}", "Y", "Braze ignores `| size == 9`"),
        ("{% if a>5 %}Y{% else %}N{% endif %}", "N", "put spaces around `>`"),
        ("{% for x in l | reverse %}{{x}}{% endfor %}", "ab", "Braze ignores `| reverse`"),
        ("{% for x in l limit: 2 reversed %}{{x}}{% endfor %}", "ab", "Braze ignores `reversed`"),
        ("{{ l | sum }}", "ab", "Braze has no filter `sum` and ignores it"),
        ("{{ 'a ' | rstrip }}", "a ", "Braze has no filter `rstrip` and ignores it"),
        ("{{ l | find_index: 'n', 'x' }}", "ab", "Braze has no filter `find_index`"),
        ("{{ 'a' | capitalise }}", "a", "ignores it; did you mean `capitalize`?"),
        ("{% assign x = 'a {% b' %}{{x}}", "a {% b", ""),
        ("{% assign x = 1 {% b %}{{x}}", "1", "this tag has no `%}` before the next `{%`"),
        ("{{ 'a' | h }}", "a", "its documentation does not"),
        ("{{ 'a' 'b' }}", "a", "Braze ignores `'b'`"),
        ("{{ 'x' | append: 'a' 'b' }}", "xa", "Braze ignores `'b'`"),
        ("{{ 'x' | append: “y” }}", "x", "curly quotes"),
        ("{% assign d = {{${first_name}} | upcase %}{{d}}", "ADA", ""),
        (
            "{% if a == 1 %}x{% else if b %}y{% endif %}",
            "x",
            "Braze ignores `if b`; write `{% elsif b %}`",
        ),
        ("{{ 'abc' | truncate 2 }}", "abc", "Braze ignores `2`; write `truncate: 2`"),
        ("{{ 'abc' | upcase 2 }}", "ABC", "Braze ignores `2`"),
        ("{{ 'abc' | date: %d }}", "abc", "put it in quotes: `'%d'`"),
        ("{{ 'abc' | date: %d %B }}", "abc", "Braze ignores `%B`; write `date: '%d %B'`"),
        (
            "\n{% if false %}{{ 1 | sum }}{% endif %}",
            "\n",
            "line 2, column 15: Braze has no filter",
        ),
    ],
)
def test_what_braze_ignores_is_ignored_and_named(source: str, message: str, warning: str) -> None:
    result = rendered(source, variables={"a": 1, "b": 0, "l": ["a", "b"]})
    assert result.text == message
    assert warning in "\n".join(result.warnings)


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        ("{{wallet.frist}}", "`wallet.frist` does not exist; did you mean `first`?"),
        ("{{wallet.first.titel}}", "`wallet.first.titel` does not exist; did you mean `title`?"),
        ("{{wallet.frist.title.x}}", "`wallet.frist` does not exist; did you mean `first`?"),
        ("{{wallet['frist']}}", "`wallet['frist']` does not exist; did you mean `first`?"),
        ("{{walet.first}}", "`walet` does not exist; did you mean `wallet`?"),
        ("{{wallet.zebra}}", "`wallet.zebra` does not exist"),
        ("{{2026-12-24}}", "`2026-12-24` does not exist; put it in quotes: `'2026-12-24'`"),
        ("{{${loyalty_tier}}}", "`${loyalty_tier}` has no test value"),
        ("{{${first_nam}}}", "`${first_nam}` has no test value; did you mean `first_name`?"),
        # A field of Braze's that is not given; `first_name` is.
        ("{{${last_name}}}", "`${last_name}` has no test value"),
        ("{{${last_nam}}}", "`${last_nam}` has no test value; did you mean `last_name`?"),
        ("{{user_id}}", "`user_id` does not exist; write `{{${user_id}}}`"),
        ("{{custom_attribute.${tier}}}", "`custom_attribute.${tier}` has no test value"),
        ("{{event_properties.${sku}}}", "`event_properties.${sku}` has no test value"),
    ],
)
def test_a_missing_field_is_named_once_with_its_place(source: str, warning: str) -> None:
    variables = {"wallet": {"first": {"title": "Pie"}, "count": 1}}
    warnings = rendered(f"a\n b{source}{source}", variables=variables).warnings
    assert warnings == (f"line 2, column 3: {warning}",)


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        (
            "{{ 1 | date: %d.%m.%Y }}",
            "Braze ignores % in `%d.%m.%Y`; put it in quotes: `'%d.%m.%Y'`",
        ),
        ("{{ 1 | date: %d %B %Y }}", "Braze ignores `%B %Y`; write `date: '%d %B %Y'`"),
        ("{{ “pie” }}", "Braze takes no curly quotes: type `“pie”` with straight ones"),
    ],
)
def test_a_value_without_quotes_is_named_once(source: str, warning: str) -> None:
    assert rendered(source).warnings == (f"line 1, column 1: {warning}",)


def test_an_unknown_time_zone_is_named() -> None:
    warning = "line 1, column 1: the time zone `Mars` is not known; write it like America/New_York"
    assert rendered("{{ 1 | time_zone: 'Mars' }}").warnings == (warning,)


@pytest.mark.parametrize(
    "source",
    [
        "{{wallet.first.title}}{{wallet.offers.size}}{{wallet.none.x}}{{wallet.offers[9].x}}",
        "{{wallet.empty.title.x}}{{wallet.next_to_expire.title}}",
        "{% assign x = nil %}{{x}}{% for o in wallet.offers %}{{o}}{{forloop.index}}{% endfor %}",
        "{{${first_name}}}{{custom_attribute.${vip}}}",
    ],
)
def test_nothing_is_said_of_what_is_there_though_it_is_empty(source: str) -> None:
    wallet: dict[str, Any] = {"first": {"title": ""}, "offers": [], "none": None, "empty": ""}
    wallet["next_to_expire"] = {}
    variables = {"wallet": wallet}
    assert rendered(source, variables=variables).warnings == ()


@pytest.mark.parametrize(
    ("source", "message", "tag"),
    [
        ("a{% promotion('spring25') %}b", "a[promotion('spring25')]b", "`promotion`"),
        ("a{% shopping_cart %}b", "a[shopping_cart]b", "`shopping_cart`"),
        (
            "{% catalog_items games 1 2 %}{{items.size}}",
            "[catalog_items games 1 2]0",
            "`catalog_items`",
        ),
        (
            "{% catalog_selection_items games top %}b",
            "[catalog_selection_items games top]b",
            "selection",
        ),
        ("a{{content_blocks.${footer}}}b", "a[content block: footer]b", "`footer`"),
    ],
)
def test_what_the_preview_cannot_have_is_a_marker_and_a_sentence(
    source: str, message: str, tag: str
) -> None:
    result = rendered(source)
    assert result.text == message
    assert len(result.warnings) == 1
    assert tag in result.warnings[0]
    assert "the preview cannot fill" in result.warnings[0]


def test_a_catalog_that_is_no_object_is_one_that_the_preview_cannot_fill() -> None:
    result = rendered("{% catalog_items x 1 %}", attributes={"catalogs": {"x": 5}})
    assert result.text == "[catalog_items x 1]"


def test_a_fault_of_the_bridge_is_a_sentence_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def send(_: ContentRequest) -> ContentAnswer:
        raise ZeroDivisionError

    words = error_of("{% connected_content http://x %}", send=send)
    assert words == "a fault of the bridge, not of the template: see its log (ZeroDivisionError)"
    assert "Traceback" in caplog.text


def test_stand_ins_take_the_place_of_content_blocks_and_catalogs() -> None:
    games = {"1": {"title": "Go"}, "2": {"title": "Chess"}}
    stand_ins = {"content_blocks": {"hi": "Hi {{${first_name}}}"}, "catalogs": {"games": games}}
    source = (
        "{{content_blocks.${hi}}}: {% catalog_items games {{id}} %}{{items[0].title}}"
        "{% catalog_selection_items games top %}{% for one in items %} {{one.title}}{% endfor %}"
    )
    result = rendered(source, attributes={**ADA, **stand_ins}, variables={"id": 2})
    assert (result.text, result.warnings) == ("Hi Ada: Chess Go Chess", ())


def test_an_error_in_a_content_block_names_the_block() -> None:
    blocks = {"content_blocks": {"a": "x\n{% nope %}", "b": "{{content_blocks.${b}}}"}}
    message = error_of(" {{content_blocks.${a}}}", attributes=blocks)
    assert message == (
        "line 1, column 2: content block a, line 2, column 1: Braze has no tag `nope`"
    )
    assert "contains itself" in error_of("{{content_blocks.${b}}}", attributes=blocks)


# --- Inputs with types --------------------------------------------------------------------------


def test_typed_attributes_take_the_branch_that_braze_takes() -> None:
    given = read_attributes(
        '{"first_name": "Ann", "custom_attribute": {"points": 600, "vip": true}, '
        '"event_properties": {"items": [{"sku": "A1"}]}, "context": {"n": 2.5}}'
    )
    source = (
        "{% if custom_attribute.${points} >= 500 %}gold{% else %}silver{% endif %}"
        "{% if custom_attribute.${vip} == true %} vip{% endif %}"
        " {{event_properties.${items}[0].sku}} {{context.${n} | round}} {{${first_name}}}"
    )
    assert text(source, attributes=given) == "gold vip A1 3 Ann"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        *(("600", 600), ("true", True), ("1.5", 1.5), ('{"a": 1}', {"a": 1}), ("null", None)),
        *(("00501", "00501"), ("Ann", "Ann"), ("", ""), ('"600"', "600"), ("1,2", "1,2")),
    ],
)
def test_a_value_of_the_command_line_has_the_type_it_looks_like(given: str, value: object) -> None:
    assert read_value(given) == value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{", "is not JSON: line 1, column 2"),
        ('{"a": 1} x', "line 1, column 10: delete what stands behind the last }"),
        ("{'a': 1}", 'line 1, column 2: a name in double quotes is missing, such as "points"'),
        ('{"a": gold}', "line 1, column 7: a value is missing; a text stands in double quotes"),
        (
            '{"a": "<a href="y">"}',
            'line 1, column 17: a comma is missing; within a text, write \\"',
        ),
        ('{"a" 1}', "line 1, column 6: a colon is missing behind the name"),
        ('{"a": "x', "line 1, column 7: the text has no closing quote"),
        ('{"a": "x\ny"}', "a text goes over several lines: write \\n for the end of a line"),
        ("[1]", "is not a JSON object"),
        ("{“a”: 1}", "line 1, column 2: these are curly quotes: type straight ones"),
        ("[" * 100_000, "is nested too deep"),
        ('{"context": 5}', 'needs an object for "context"'),
        ('{"points": NaN}', "is not JSON: it has NaN, Infinity"),
        ('{"catalogs": {"x": "hello"}}', 'needs an object of items for the catalog "x"'),
    ],
)
def test_attributes_that_are_no_json_object_are_refused_in_words(given: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_attributes(given)
    assert words in str(caught.value)


# --- The guide's wallet snippet ----------------------------------------------------------------


def test_the_wallet_snippet_of_the_guide_renders_as_it_stands(peer: Peer) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    snippet = next(block for block in blocks if "connected_content" in block)
    peer.answer({"status": "ok", "payload": {"total_points": 1000, "available_points": 100}})
    result = rendered(
        snippet + "{{wallet.payload.available_points}}",
        attributes={"user_id": "00000000-0000-0000-0000-000000000000"},
        variables={"endpoint_connect": peer.url},
    )
    assert result.text.strip() == "100"
    seen = peer.seen[0]
    assert (seen.method, seen.path) == ("POST", "/offers/api/2.0/offers/get_user_offers")
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.headers["Authorization"] == "Basic YOUR-BASE64-ENCODED-KEY"
    assert json.loads(seen.body)["user_id"] == "00000000-0000-0000-0000-000000000000"
    assert json.loads(seen.body)["take"] == 1000


# --- The snippets for marketers ----------------------------------------------------------------


def offer(title: str, days_left: int, expires_at: str = "2026-12-01T00:00:00Z") -> dict[str, Any]:
    return {"offer_id": title, "title": title, "days_left": days_left, "expires_at": expires_at}


PIZZA = offer("Pizza & more", 3)
CAKE = offer("Cake", 0)
TEA = offer("Tea", 9999, "")


def wallet(status: str = "ok", *offers: dict[str, Any], reason: str = "") -> dict[str, Any]:
    """An answer of the bridge's to /connected-content/offers."""
    known = status == "ok"
    return {
        "status": status,
        "reason": reason,
        "user_id": "u/1 ä",
        "available_points": 1234 if known else 0,
        "total_points": 5000 if known else 0,
        "count": len(offers),
        "total": len(offers),
        "truncated": False,
        "offers": list(offers),
        "first": offers[0] if offers else {},
        "next_to_expire": min(offers, key=lambda o: o["days_left"]) if offers else {},
        "stale": False,
        "age": 0,
        "as_of": "2026-11-22T12:00:00Z",
    }


def tags(status: str = "ok", *names: str) -> dict[str, Any]:
    """An answer of the bridge's to /connected-content/tags."""
    return {
        "status": status,
        "reason": "" if status == "ok" else "SessionM did not answer.",
        "user_id": "u/1 ä",
        "tags": dict.fromkeys(names, 1),
        "names": list(names),
        "count": len(names),
        "braze": {"campaigns": [], "canvases": []},
        "pending": [],
        "expires": {},
        "stale": False,
        "age": 0,
        "as_of": "",
    }


Snippet = Callable[..., Rendered]


@pytest.fixture
def snippet(peer: Peer) -> Snippet:
    """Render a snippet by name, with the peer as the bridge."""

    def render_snippet(name: str, answer: object = None, status: int = 200) -> Rendered:
        if answer is not None:
            peer.answer(answer, status)
        source = next(path for path in SNIPPETS if path.stem == name).read_text()
        return rendered(
            source,
            campaign={"api_id": "c-1", "name": 'Summer "26"', "dispatch_id": "d-1"},
            canvas={"api_id": "v-1", "name": "Wel\\come"},
            credentials=BRIDGE_KEY,
            rewrite=lambda url: url.replace("https://YOUR-BRIDGE", peer.url),
            pause=lambda _: None,
        )

    return render_snippet


def plain(result: Rendered) -> str:
    assert result.aborted is None
    return " ".join(result.text.split())


@pytest.mark.parametrize("path", SNIPPETS, ids=lambda path: path.stem)
def test_every_snippet_begins_with_instructions_that_do_not_show(path: Path) -> None:
    source = path.read_text()
    comment = source.split("{% endcomment %}")[0]
    assert source.startswith("{% comment %}")
    assert "Where:" in comment
    assert "Replace: YOUR-BRIDGE" in comment
    assert "{{" not in comment


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("webhook_campaign", {"braze_campaign_id": "c-1", "campaign_name": 'Summer "26"'}),
        ("webhook_canvas", {"braze_canvas_id": "v-1", "canvas_name": "Wel\\come"}),
    ],
)
def test_webhook_snippets_are_json_after_rendering(
    snippet: Snippet, name: str, expected: dict[str, str]
) -> None:
    result = snippet(name)
    assert json.loads(result.text) == {**expected, "user_id": "u/1 ä", "dispatch_id": "d-1"}


LOOKUPS = [path.stem for path in SNIPPETS if "connected_content" in path.read_text()]


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups_ask_for_this_customer_with_the_stored_credential(
    snippet: Snippet, peer: Peer, name: str
) -> None:
    snippet(name, tags() if name == "tag_check" else wallet("ok", PIZZA))
    seen = peer.seen[0]
    assert seen.path == f"/connected-content/{'tags' if name == 'tag_check' else 'offers'}"
    assert seen.query["user_id"] == "u/1 ä"
    assert seen.headers["Authorization"].startswith("Basic ")


# The other one fills a variable and is no message.
@pytest.mark.parametrize("name", sorted({*LOOKUPS} - {"canvas_context"}))
@pytest.mark.parametrize("answer", [wallet("not_found"), wallet("unavailable"), wallet("ok"), ""])
def test_no_lookup_leaves_a_hole_in_the_message(
    snippet: Snippet, name: str, answer: object
) -> None:
    result = snippet(name, answer)
    if result.aborted is None:
        assert len(plain(result)) > 20
        assert not re.search(r": *(<|\.|$)|  |\(\)", plain(result))
    else:
        assert result.aborted


def test_tag_check_distinguishes_customers_with_the_tag(snippet: Snippet) -> None:
    assert plain(snippet("tag_check", tags("ok", "vip", "x"))) == "Your VIP lounge is open."


@pytest.mark.parametrize("answer", [tags("ok", "vipx"), tags("not_found"), tags("unavailable"), ""])
def test_tag_check_takes_everybody_else_for_the_rest(snippet: Snippet, answer: object) -> None:
    assert plain(snippet("tag_check", answer)) == "Join the club and become a VIP."


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (wallet("ok"), "You have 1,234 points to spend."),
        ({**wallet("ok"), "available_points": 1}, "You have 1 point to spend."),
        (wallet("not_found"), "Open the app to see your points."),
        (wallet("unavailable"), "Open the app to see your points."),
        ("", "Open the app to see your points."),
    ],
)
def test_points_balance(snippet: Snippet, answer: object, message: str) -> None:
    assert plain(snippet("points_balance", answer)) == message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (wallet("ok", PIZZA, CAKE), "<strong>Pizza &amp; more</strong>, good until 01 December"),
        (wallet("ok", TEA), "<strong>Tea</strong>.</p>"),
        (wallet("ok"), "New offers are on their way."),
        (wallet("not_found"), "New offers are on their way."),
        (wallet("unavailable"), "New offers are on their way."),
        ("", "New offers are on their way."),
    ],
)
def test_best_offer(snippet: Snippet, answer: object, words: str) -> None:
    assert words in plain(snippet("best_offer", answer))


def test_offer_list_lists_and_mentions_more(snippet: Snippet) -> None:
    message = plain(snippet("offer_list", {**wallet("ok", PIZZA, TEA), "total": 7}))
    assert "<li>Pizza &amp; more (until 01 December 2026)</li> <li>Tea</li>" in message
    assert "All 7 of your offers" in message


def test_offer_list_says_so_when_there_are_none(snippet: Snippet) -> None:
    assert "no offers for you today" in plain(snippet("offer_list", wallet("unavailable")))


def test_offers_expiring_soon_lists_only_those(snippet: Snippet) -> None:
    later = offer("Soup", 8)
    message = plain(snippet("offers_expiring_soon", wallet("ok", CAKE, PIZZA, later, TEA)))
    assert (
        "<li>Cake: less than a day left</li> <li>Pizza &amp; more: 3 days left</li> </ul>"
        in message
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (wallet("ok", TEA), "No offer of this customer runs out soon"),
        ({**wallet("ok", TEA), "next_to_expire": {}}, "No offer of this customer runs out soon"),
        (wallet("ok"), "No offer of this customer runs out soon"),
        (wallet("not_found"), "The offers of this customer are not known"),
        ("", "The offers of this customer are not known"),
    ],
)
def test_offers_expiring_soon_sends_nothing_without_one(
    snippet: Snippet, answer: object, reason: str
) -> None:
    assert snippet("offers_expiring_soon", answer).aborted == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (wallet("ok"), "No offers for this customer"),
        (wallet("not_found"), "SessionM does not know this customer"),
        (wallet("unavailable"), "SessionM could not be asked"),
        ("", "SessionM could not be asked"),
    ],
)
def test_abort_when_no_offer_says_why(snippet: Snippet, answer: object, reason: str) -> None:
    assert snippet("abort_when_no_offer", answer).aborted == reason


def test_abort_when_no_offer_sends_the_offer_there_is(snippet: Snippet) -> None:
    message = plain(snippet("abort_when_no_offer", wallet("ok", PIZZA)))
    assert message == "Hi Ada, we have something for you: Pizza &amp; more"


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (wallet("ok", PIZZA), 200, "you have 1,234 points, and an offer: Pizza &amp; more."),
        (wallet("ok"), 200, "you have 1,234 points. New offers are coming."),
        (wallet("not_found"), 200, "join our loyalty programme"),
        (wallet("unavailable"), 200, "are waiting in the app."),
        ({"status": "error"}, 503, "are waiting in the app."),
    ],
)
def test_fallback_when_unavailable_always_has_something_to_say(
    snippet: Snippet, answer: object, status: int, words: str
) -> None:
    assert words in plain(snippet("fallback_when_unavailable", answer, status))


def test_retry_until_available_waits_for_sessionm(snippet: Snippet, peer: Peer) -> None:
    peer.answer(wallet("unavailable"), 503)
    assert plain(snippet("retry_until_available", wallet("ok", PIZZA))) == (
        "Your offer: Pizza &amp; more"
    )
    assert [seen.query["on_error"] for seen in peer.seen] == ["retry", "retry"]


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (wallet("unavailable"), 503, "Connected Content failed: HTTP 503"),
        (wallet("not_found"), 200, "SessionM does not know this customer"),
        (wallet("ok"), 200, "No offers for this customer"),
        ({"status": "error"}, 401, "The bridge did not accept the call"),
    ],
)
def test_retry_until_available_drops_the_message_otherwise(
    snippet: Snippet, answer: object, status: int, reason: str
) -> None:
    assert snippet("retry_until_available", answer, status).aborted == reason


# --- What an author cannot see in the message -----------------------------------------------------

WALLET = {
    "wallet": {
        "first": {"title": "Pie", "expires_at": "2026-12-01T00:00:00Z", "days_left": 9999},
        "offers": [],
        "none": {},
    }
}


@pytest.mark.parametrize(
    ("source", "message", "warning"),
    [
        (
            "Hi {${first_name}}}",
            "Hi {${first_name}}}",
            "column 4: `{${first_name}}}` is not Liquid",
        ),
        ("Hi [[first_name]]", "Hi [[first_name]]", "`[[first_name]]` is not Liquid"),
        ("<style></style>[[a]]", "<style></style>[[a]]", "column 16: `[[a]]` is not Liquid"),
        ("{{ 'now' | date: 'dd/mm/yyyy' }}", "dd/mm/yyyy", "write `date: '%d/%m/%Y'`"),
        ("{{ 'now' | date: 'long' }}", "long", "write `date: '%d/%m/%Y'`"),
        ("{{ 'tomorrow' | date: '%d' }}", "tomorrow", "reads no date in `tomorrow`"),
        ("{{ 0 | date: '%d %K' }}", "01 %K", "a date has no `%K` in Braze"),
        (
            "{% if custom_attribute.${vip} == 'true' %}vip{% endif %}",
            "",
            "the text `'true'` never equals `true`; write `true` without quotes",
        ),
        ("{% if custom_attribute.${points} != '5' %}x{% endif %}", "x", "write `5` without quotes"),
        ("{% case custom_attribute.${vip} %}{% when 'true' %}x{% endcase %}", "", "never equals"),
        (
            "{% if wallet.first.expires_at < 'now' %}x{% endif %}",
            "x",
            "`'2026-12-01T00:00:00Z'` and `'now'` are compared letter by letter, not as a date",
        ),
        ("{% if wallet.offers[0] < 'now' %}x{% endif %}", "", "`'now'` is compared letter by"),
        ("{% catalog_items games 1 9 %}", "", "column 1: the test values of the catalog `games`"),
        ("{{wallet.first.days_left}}", "9999", "the offer does not expire; print it within `{% if"),
        # Mistyped markup.
        (
            "{{${first_name}}, ",
            ", ",
            "`${first_name` has no closing brace; write `{{${first_name}}}`",
        ),
        ("{{${nick} | default: 'friend }}", "", "`'friend` has no closing quote; write `'friend'`"),
        ("{% if ${first_name} == 'a %}x{% endif %}", "", "`'a` has no closing quote; write `'a'`"),
        ("{{${nick} | default: &#39;a&#39; }}", "", "`&#39;` is the HTML code of a character"),
        ("{{ \u200bfirst }}", "", "an invisible character, U+200B"),
    ],
)
def test_a_probable_mistake_is_reported_once(source: str, message: str, warning: str) -> None:
    attributes = {**ADA, "catalogs": {"games": {"1": {"title": "Go"}}}}
    result = rendered(source, variables=WALLET, attributes=attributes)
    assert result.text == message
    assert len(result.warnings) == 1, result.warnings
    assert result.warnings[0].startswith("line 1, column ")
    assert warning in result.warnings[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{content_blocks.${Header_v2} | id: 'cb1'}}",
        "{{${last_name} | default: 'X'}}{{event_properties.${x} | default: 'y'}}",
        "<a href='{{${set_user_to_unsubscribed_url}}}'>{{preference_center.${ours}}}</a>",
        "{% if custom_attribute.${vip} != '' and wallet.none == '' %}x{% endif %}",
        "{{ 'it' | append: \"'s\" }}{{ 'a' | append: '&#39;' }}",
        "{% raw %}`${user}` [[a]]{% endraw %}",
        "<script>let a = {{ 5 }}; `${a} {${b}}`</script><STYLE >%%a%%</STYLE>",
        "Only ${{custom_attribute.${points}}} and 5% off {{ 0 | date: '%-d.%m. %:z %%' }}",
    ],
)
def test_correct_markup_has_no_warnings(source: str) -> None:
    blocks = {"content_blocks": {"Header_v2": "Hello"}}
    assert rendered(source, variables=WALLET, attributes={**ADA, **blocks}).warnings == ()


def test_blank_outputs_and_fields_without_a_default_are_listed() -> None:
    source = "Hi {{${first_name}}},\nOffer: {{wallet.none.title | escape}} ends {{wallet.frist}}"
    result = rendered(source, variables=WALLET)
    assert result.blanks == ("line 2, column 8: `{{wallet.none.title | escape}}` prints nothing",)
    assert len(result.warnings) == 1
    hint = "`${first_name}` has no default: customers without a value get a gap"
    assert result.hints == (f"line 1, column 4: {hint}; write `| default: '…'`",)
    for source in (
        "{{${first_name} | default: 'x'}}",
        "{% if ${first_name} %}{{${first_name}}}{% endif %}",
        "{% case ${first_name} %}{% when 'x' %}{% endcase %}{{${first_name}}}",
    ):
        assert rendered(source).hints == ()
    assert rendered("{{wallet.none.title}}{% abort_message %}", variables=WALLET).blanks == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (": save r", "unexpected `: save`: write `:save` without the space"),
        ("\u200b:save r", "`:save` has an invisible character, U+200B"),
    ],
)
def test_a_mistyped_option_is_shown_as_it_should_be(options: str, words: str) -> None:
    assert words in error_of(f"{{% connected_content http://x {options} %}}")
