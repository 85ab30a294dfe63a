"""The rules of rules.toml, which decide the tags of an event. Only `read_rules` does I/O."""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from bridge.fields import MAX_TEXT, FieldError, required, text, ttl
from bridge.intake.payload import MAX_TAGS, Event, RefusedError

# Combinations of IDs and tags whose writes are cached.
CACHED_WRITES = 256


class RulesError(Exception):
    """An error in rules.toml, which stops the start; ``str()`` is one line that names the entry."""


@dataclass(frozen=True)
class TagWrite:
    """Tags that expire after *ttl* seconds, or counters if *ttl* is ``None``."""

    tags: tuple[str, ...]
    ttl: int | None


@dataclass(frozen=True)
class Rule:
    """The rule of one campaign or Canvas; ``None`` means the default.

    Attributes:
        broadcast: whether SessionM may send it to its whole segment.
    """

    name: str = ""
    tags: tuple[str, ...] | None = None
    ttl: int | None = None
    counters: tuple[str, ...] = ()
    broadcast: bool = False


@dataclass(frozen=True)
class Template:
    """A default tag such as ``braze_campaign_{id}``; with an empty *pattern*, no tag."""

    pattern: str

    def tag(self, braze_id: str) -> str:
        return self.pattern.replace("{id}", braze_id)

    def id_in(self, tag: str) -> str | None:
        """Return the ID in *tag*; ``None`` if the tag does not match the template."""
        before, placeholder, after = self.pattern.partition("{id}")
        if not placeholder or not tag.startswith(before) or not tag.endswith(after):
            return None
        return tag[len(before) : len(tag) - len(after)] or None


@dataclass(frozen=True)
class Rules:
    """The content of rules.toml; *ttl*, in seconds, is for rules without their own."""

    ttl: int
    campaign_tag: Template = Template("braze_campaign_{id}")
    canvas_tag: Template = Template("braze_canvas_{id}")
    reject_unknown: bool = False
    campaigns: Mapping[str, Rule] = field(default_factory=dict)
    canvases: Mapping[str, Rule] = field(default_factory=dict)

    def writes(self, event: Event) -> tuple[TagWrite, ...]:
        """Return the writes of *event*, one for each TTL, in the order of its tags.

        Raises:
            RefusedError: 422; an unlisted ID, a tag of both kinds, or no tag to write.
        """
        return self._known_writes(event.campaign_id, event.canvas_id, event.tags, event.ttl)

    @cached_property
    def _known_writes(self) -> Callable[..., tuple[TagWrite, ...]]:
        # Cached: all webhooks of a campaign have the same writes.
        return lru_cache(CACHED_WRITES)(self._writes)

    def _writes(
        self,
        campaign_id: str | None,
        canvas_id: str | None,
        given: tuple[str, ...],
        given_ttl: int | None,
    ) -> tuple[TagWrite, ...]:
        expiring: dict[str, int] = {}
        counters: dict[str, None] = {}
        for kind, braze_id, rule, template in self._matches(campaign_id, canvas_id):
            tags = rule.tags
            if tags is None:
                tags = (_checked(template.tag(braze_id), kind),) if template.pattern else ()
            expiring.update(dict.fromkeys(tags, given_ttl or rule.ttl or self.ttl))
            counters.update(dict.fromkeys(rule.counters))
        if given_ttl is None:
            counters.update(dict.fromkeys(given))
        else:
            expiring.update(dict.fromkeys(given, given_ttl))
        self._refuse_mixed(expiring, counters)
        writes = [
            TagWrite(_tags_with(expiring, ttl), ttl) for ttl in dict.fromkeys(expiring.values())
        ]
        if counters:
            writes.append(TagWrite(tuple(counters), None))
        if not writes:
            raise RefusedError(
                422,
                "nothing_to_tag",
                "Nothing to tag: the rules give this campaign or Canvas no tag. Add tags to the "
                "body, or ask the person who runs the bridge for a rule.",
            )
        return tuple(part for write in writes for part in _split(write))

    def _matches(
        self, campaign_id: str | None, canvas_id: str | None
    ) -> Iterable[tuple[str, str, Rule, Template]]:
        named = (
            ("campaign", campaign_id, self.campaigns, self.campaign_tag),
            ("canvas", canvas_id, self.canvases, self.canvas_tag),
        )
        for kind, braze_id, rules, template in named:
            if braze_id is None:
                continue
            if self.reject_unknown and braze_id not in rules:
                raise RefusedError(
                    422,
                    "unknown_id",
                    f"The {kind} {braze_id} is not listed in rules.toml: the person who runs the "
                    "bridge can add it.",
                )
            yield kind, braze_id, rules.get(braze_id, Rule()), template

    def _refuse_mixed(self, expiring: Mapping[str, int], counters: Mapping[str, None]) -> None:
        for tag in expiring:
            if tag in counters or tag in self.known_counters:
                raise RefusedError(
                    422,
                    "mixed_tag",
                    f'By the rules the tag "{tag}" is a counter: leave out the ttl, or use another '
                    "name for the tag.",
                )
        for tag in counters:
            if self.always_expires(tag):
                raise RefusedError(
                    422,
                    "mixed_tag",
                    f'By the rules the tag "{tag}" expires: add a ttl, or use another '
                    "name for the tag.",
                )

    def may_broadcast(self, kind: Literal["campaign", "canvas"], braze_id: str) -> bool:
        """Return whether SessionM may send this campaign or Canvas to its whole segment."""
        rules = self.campaigns if kind == "campaign" else self.canvases
        return braze_id in rules and rules[braze_id].broadcast

    def name_of(self, braze_id: str, kind: str = "") -> str:
        """Return the name of a campaign or Canvas, or of only that *kind*; "" if it has none."""
        listed = {"campaign": self.campaigns, "canvas": self.canvases}
        chosen = [listed[kind]] if kind else listed.values()
        names = (rules[braze_id].name for rules in chosen if braze_id in rules)
        return next(filter(None, names), "")

    @cached_property
    def known_counters(self) -> frozenset[str]:
        return frozenset(tag for rule in self._all() for tag in rule.counters)

    @cached_property
    def _known_expiring(self) -> frozenset[str]:
        constant = {self.campaign_tag.pattern, self.canvas_tag.pattern}
        return frozenset(constant | {tag for rule in self._all() for tag in rule.tags or ()})

    def always_expires(self, tag: str) -> bool:
        """Return whether a rule or a default writes *tag* as an expiring tag."""
        return tag in self._known_expiring or self.braze_id(tag) is not None

    def _all(self) -> list[Rule]:
        return [*self.campaigns.values(), *self.canvases.values()]

    def braze_id(self, tag: str) -> tuple[Literal["campaigns", "canvases"], str] | None:
        """Return the campaign or Canvas of a default *tag*; ``None`` for any other tag."""
        campaign, canvas = self.campaign_tag.id_in(tag), self.canvas_tag.id_in(tag)
        # Both templates may match, such as braze_{id} and braze_canvas_{id}: use the shorter ID.
        if campaign and not (canvas and len(canvas) < len(campaign)):
            return "campaigns", campaign
        return ("canvases", canvas) if canvas else None


def read_rules(path: Path | None, default_ttl: int) -> Rules:
    """Read the file *path*; ``None`` means defaults only.

    Raises:
        RulesError: the file cannot be read, or has an error.
    """
    if path is None:
        return Rules(ttl=default_ttl)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RulesError(f"BRIDGE_RULES: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RulesError(f"{path} is not valid TOML: {error}") from None
    except (ValueError, RecursionError) as error:
        raise RulesError(f"{path} cannot be used: {error}") from None
    try:
        return parse_rules(document, default_ttl)
    except FieldError as error:
        raise RulesError(f"{path}: {error}") from None


def parse_rules(document: Mapping[str, Any], default_ttl: int) -> Rules:
    """Convert the TOML *document*.

    Raises:
        FieldError: names the entry and its mistake.
    """
    _only(document, "the file", {"defaults", "campaigns", "canvases"})
    defaults = _table(document, "defaults")
    _only(defaults, "[defaults]", {"campaign_tag", "canvas_tag", "ttl", "unknown"})
    unknown = defaults.get("unknown", "default")
    if not isinstance(unknown, str) or unknown not in {"default", "reject"}:
        raise FieldError("defaults.unknown", 'must be "default" or "reject"')
    rules = Rules(
        ttl=ttl(defaults.get("ttl"), "defaults.ttl") or default_ttl,
        campaign_tag=_template(defaults, "campaign_tag", Rules.campaign_tag),
        canvas_tag=_template(defaults, "canvas_tag", Rules.canvas_tag),
        reject_unknown=unknown == "reject",
        campaigns=_rules(document, "campaigns"),
        canvases=_rules(document, "canvases"),
    )
    _refuse_two_kinds(rules)
    return rules


def _refuse_two_kinds(rules: Rules) -> None:
    for tag in sorted(rules.known_counters):
        if rules.always_expires(tag):
            raise FieldError(
                f'"{tag}"', "is a counter in one place and expiring in another; SessionM allows one"
            )


def _rules(document: Mapping[str, Any], section: str) -> dict[str, Rule]:
    found = {}
    for name, entry in _table(document, section).items():
        place = f'{section}."{name}"'
        braze_id = required(name, f"the ID in [{place}]")
        if not isinstance(entry, dict):
            raise FieldError(place, "must be a table")
        _only(entry, f"[{place}]", {"name", "tags", "ttl", "counters", "broadcast"})
        broadcast = entry.get("broadcast", False)
        if not isinstance(broadcast, bool):
            raise FieldError(f"{place}.broadcast", "must be true or false")
        found[braze_id] = Rule(
            name=text(entry.get("name"), f"{place}.name") or "",
            tags=_tag_list(entry, "tags", place) if "tags" in entry else None,
            ttl=ttl(entry.get("ttl"), f"{place}.ttl"),
            counters=_tag_list(entry, "counters", place),
            broadcast=broadcast,
        )
    return found


def _tag_list(entry: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    tags = entry.get(name, [])
    if not isinstance(tags, list):
        raise FieldError(f"{place}.{name}", "must be a list of texts")
    return tuple(dict.fromkeys(required(tag, f"{place}.{name}[{i}]") for i, tag in enumerate(tags)))


def _template(defaults: Mapping[str, Any], name: str, default: Template) -> Template:
    if name not in defaults:
        return default
    pattern = text(defaults[name], f"defaults.{name}") or ""
    if pattern and re.sub(r"\{id\}", "", pattern, count=1).count("{"):
        raise FieldError(f"defaults.{name}", "may hold {id} once and no other braces")
    return Template(pattern)


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise FieldError(name, f"must be a table, [{name}]")
    return table


def _only(table: Mapping[str, Any], place: str, known: set[str]) -> None:
    for name in table:
        if name not in known:
            raise FieldError(
                f'"{name}"', f"in {place} is not known; known are {', '.join(sorted(known))}"
            )


def _checked(tag: str, kind: str) -> str:
    if len(tag) > MAX_TEXT:
        raise RefusedError(
            422, "invalid_field", f"The {kind} ID makes a tag longer than {MAX_TEXT} characters."
        )
    return tag


def _split(write: TagWrite) -> Iterable[TagWrite]:
    for at in range(0, len(write.tags), MAX_TAGS):
        yield TagWrite(write.tags[at : at + MAX_TAGS], write.ttl)


def _tags_with(expiring: Mapping[str, int], ttl: int) -> tuple[str, ...]:
    return tuple(tag for tag, seconds in expiring.items() if seconds == ttl)
