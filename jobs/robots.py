"""What a site's robots.txt, headers and pages allow our agent. Knows their syntax, not how they were fetched."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

AGENT = "lakelens"
MAX_ROBOTS_BYTES = 500 * 1024  # RFC 9309 section 2.5: parse at least 500 KiB
MAX_ROBOTS_REDIRECTS = 5  # RFC 9309 section 2.3.1.2
MAX_CRAWL_DELAY_S = 86400.0

_ASCII = re.IGNORECASE | re.ASCII  # case alone would take letters such as U+017F and U+212A for s and k

# What a policy may hold to, and what ours holds to where none is given; `none` is `noindex` with `nofollow`.
TDM_RESERVATION = "tdm-reservation"  # W3C TDMRep: a header, or <meta name="tdm-reservation" content="1">
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", TDM_RESERVATION})
DEFAULT_OPT_OUTS = frozenset({"noai", "noimageai", TDM_RESERVATION})
# Directives of X-Robots-Tag that have a value, so that their colon does not end the name of an agent.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT_PREFIX = re.compile(r"\s*(\*|[a-z][\w./-]*)\s*:", _ASCII)

# Google's parser (github.com/google/robotstxt) takes these misspellings, and a space for the colon where one word
# follows. Any other line is no part of the protocol and changes nothing, so it does not end a group either.
_KEYS = {
    **dict.fromkeys(("user-agent", "useragent", "user agent"), "agent"),
    **dict.fromkeys(("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"), "disallow"),
    **dict.fromkeys(("sitemap", "site-map"), "sitemap"),
    "allow": "allow",
    "crawl-delay": "delay",
}
_RECORD = re.compile(rf"\s*({'|'.join(_KEYS)})(?:\s*:([^#]*)|\s+([^\s#]+)\s*(?:#|$))", _ASCII)
_TOKEN = re.compile(r"[a-z_-]*", _ASCII)  # RFC 9309 section 2.2.1; what follows, such as a version, is no name
_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")

# RFC 9309 section 2.2.2 compares paths in which reserved characters (RFC 3986) are encoded and others are not. As
# encoded and plain are then the same, plain is what we compare; but %2F is no separator of folders, and `?`, `#`, `*`
# and `$` have a meaning in a URL or a rule.
_PLAIN = r"[A-Za-z0-9\-._~:\[\]@!&'()+,;=]"
_ENCODED = re.compile(rf"%([0-9A-Fa-f]{{2}})|(?!{_PLAIN})[^/?*]")
_TARGET = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#]*([^#]*)", re.IGNORECASE)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as `surrogateescape` has such bytes
PIECE = 4  # characters: enough to tell most rules of a site apart


@dataclass(frozen=True)
class Rule:
    """An Allow or Disallow line; `parts` are the canonical literals between its wildcards."""

    precedence: tuple[int, bool]  # octets of the pattern, and whether it allows: of two that match, the greater wins
    parts: tuple[str, ...]
    is_anchored: bool  # the pattern ends with `$`

    @property
    def is_pattern(self) -> bool:
        """Whether it is more than one literal that a path begins with."""
        return self.is_anchored or len(self.parts) > 1

    @property
    def pieces(self) -> set[str]:
        """What every path that matches has in it: all short pieces of the literals."""
        return {part[i : i + PIECE] for part in self.parts for i in range(max(1, len(part) - PIECE + 1))}

    def matches(self, target: str) -> bool:
        """Whether a canonical path and query match, in time that wildcards do not multiply."""
        first, *rest = self.parts
        if not target.startswith(first):
            return False
        if not rest:
            return not self.is_anchored or target == first
        position = len(first)
        *middle, last = rest
        for part in middle:
            position = target.find(part, position)
            if position < 0:
                return False
            position += len(part)
        if self.is_anchored:
            return len(target) - len(last) >= position and target.endswith(last)
        return target.find(last, position) >= 0


@dataclass(frozen=True)
class Robots:
    """The rules of one origin for our agent, and the text they were read from."""

    text: str | None  # at most 500 KiB as UTF-8; None: there is no robots.txt, all is allowed
    crawl_delay_s: float = 0.0
    sitemaps: tuple[str, ...] = ()  # as written, each once
    # Read from the text: rules that are one literal, by it, and all others, by their rarest piece and its length.
    prefixes: Mapping[str, Rule] = field(default_factory=dict, repr=False, compare=False)
    patterns: Mapping[int, Mapping[str, list[Rule]]] = field(default_factory=dict, repr=False, compare=False)

    def allows(self, url: str) -> bool:
        """Whether our agent may fetch a URL of this origin: the longest matching rule decides, Allow wins a tie."""
        match = _TARGET.match(url)
        target = _canonical((match[1] if match else url).replace("*", "%2A"))
        if not target.startswith("/"):
            target = "/" + target
        if target == "/robots.txt":
            return True
        # In a query a slash separates no folders: section 2.2.2 compares `?baz=https://foo.bar` in its encoded form.
        path, mark, query = target.partition("?")
        forms = {target, path + mark + query.replace("%2F", "/"), path + mark + query.replace("/", "%2F")}
        return max(self._decisive(form) for form in forms)[1]

    def _decisive(self, target: str) -> tuple[int, bool]:
        found = (0, True)
        for rule in self._candidates(target):
            if rule.precedence > found and rule.matches(target):
                found = rule.precedence
        return found

    def _candidates(self, target: str) -> Iterator[Rule]:
        if self.prefixes:
            for end in range(1, len(target) + 1):
                if (rule := self.prefixes.get(target[:end])) is not None:
                    yield rule
        for size, rules in self.patterns.items():
            for piece in rules.keys() & {target[i : i + size] for i in range(len(target))}:
                yield from rules[piece]

    @property
    def decision(self) -> str:
        """The decision as `fetches.robots` has it, for a URL that is allowed."""
        return "absent" if self.text is None else "allowed"


ABSENT = Robots(text=None)


def parse_robots(body: bytes) -> Robots:
    """The rules in a robots.txt, of which the lines that are whole within 500 KiB are read."""
    # No text begins with these bytes but by a byte order mark, whole or in part; Google's parser skips either.
    text = _whole_lines(body).lstrip(b"\xef\xbb\xbf\xff\xfe").decode("utf-8", "surrogateescape")
    # A byte that is no UTF-8 stands for itself in a path; percent-encoded it can be stored and means the same.
    return robots_of(_NOT_UTF8.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text))


def robots_of(text: str | None) -> Robots:
    """The rules in the text of a robots.txt (RFC 9309, with Crawl-delay and Sitemap); None: there is no such file.

    The groups for our agent are merged, and those for `*` count only where there are none.
    """
    if text is None:
        return ABSENT
    text = _whole_lines(text.encode("utf-8", "replace")).decode()
    rules, delays_s = defaultdict[str, list[Rule]](list), defaultdict[str, list[float]](list)
    sitemaps, agents, named, is_closed = list[str](), set[str](), set[str](), False
    for key, value in _records(text):
        if key == "agent":
            named, is_closed = set() if is_closed else named, False
            named.add(_agent(value))
            agents |= named
        elif key == "sitemap":
            sitemaps.append(value)
        elif key == "delay":
            if _SECONDS.fullmatch(value):
                for agent in named:
                    delays_s[agent].append(min(float(value), MAX_CRAWL_DELAY_S))
        else:
            is_closed = True
            for agent in named & {AGENT, "*"} if value else ():
                rules[agent].append(_rule(value, allows=key == "allow"))
    group = AGENT if AGENT in agents else "*"
    literals = [rule for rule in rules[group] if not rule.is_pattern]
    return Robots(
        text=text,
        crawl_delay_s=max(delays_s[group], default=0.0),
        sitemaps=tuple(dict.fromkeys(filter(None, sitemaps))),
        prefixes={rule.parts[0]: rule for rule in sorted(literals, key=lambda rule: rule.precedence)},
        patterns=_by_rarest_piece([rule for rule in rules[group] if rule.is_pattern]),
    )


def _whole_lines(body: bytes) -> bytes:
    if len(body) <= MAX_ROBOTS_BYTES:
        return body
    end = max(body.rfind(newline, 0, MAX_ROBOTS_BYTES + 1) for newline in (b"\n", b"\r"))
    return body[: max(end, 0)]  # half a rule would be another rule


def _records(text: str) -> Iterator[tuple[str, str]]:
    # NUL bytes are what padding, or UTF-16, leaves between characters.
    for line in re.split("[\r\n]", text.removeprefix("\ufeff").replace("\0", "")):
        if match := _RECORD.match(line):
            yield _KEYS[match[1].lower()], (match[2] or match[3] or "").strip()


def _agent(value: str) -> str:
    if re.match(r"\*(\s|$)", value):
        return "*"
    token = _TOKEN.match(value)
    return token[0].lower() if token else ""


def _rule(pattern: str, *, allows: bool) -> Rule:
    is_anchored = pattern.endswith("$")
    literal = _canonical(pattern[:-1] if is_anchored else pattern)
    return Rule(
        precedence=(len(literal) + is_anchored, allows), parts=tuple(literal.split("*")), is_anchored=is_anchored
    )


def _by_rarest_piece(rules: Sequence[Rule]) -> dict[int, dict[str, list[Rule]]]:
    n_rules = Counter(piece for rule in rules for piece in rule.pieces)
    found: dict[int, dict[str, list[Rule]]] = {}
    for rule in rules:
        piece = min(rule.pieces, key=lambda piece: n_rules[piece])
        found.setdefault(len(piece), {}).setdefault(piece, []).append(rule)
    return found


def _canonical(path: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "replace"))
        character = chr(int(match[1], 16))
        return character if re.match(_PLAIN, character) else match[0].upper()

    return _ENCODED.sub(one, path)


# -- opt-outs -----------------------------------------------------------------------------------------------------


def opts_out(
    x_robots_tags: Iterable[str], tdm_reservation: str | None, policy: frozenset[str] = DEFAULT_OPT_OUTS
) -> str | None:
    """Which header refuses the use of an answer by us, None where none does.

    X-Robots-Tag directives of the policy, for all agents or ours (an agent's name holds for what follows it in the
    header, up to the next name); TDM-Reservation 1 (W3C TDMRep).
    """
    if TDM_RESERVATION in policy and tdm_reservation is not None and tdm_reservation.strip() == "1":
        return "TDM-Reservation: 1"
    found = {directive for tag in x_robots_tags for directive in _directives(tag)} & _refusing(policy)
    return f"X-Robots-Tag: {min(found)}" if found else None


def headers_opt_out(headers: Iterable[tuple[str, str]], policy: frozenset[str] = DEFAULT_OPT_OUTS) -> str | None:
    """`opts_out` of all headers of an answer, names in any case."""
    said = [(name.strip().lower(), value) for name, value in headers]
    reservation = next((value for name, value in said if name == "tdm-reservation"), None)
    return opts_out((value for name, value in said if name == "x-robots-tag"), reservation, policy)


def meta_directives(name: str, content: str) -> set[str]:
    """What a meta element says to all robots or ours, in lower case; some separate directives by spaces.

    A directive with a value stays whole; `tdm-reservation` stands for the element of that name with the value 1.
    """
    name = name.strip().lower()
    if name == TDM_RESERVATION:
        return {name} if content.strip() == "1" else set()
    if name not in ("robots", AGENT):
        return set()
    found: set[str] = set()
    for part in content.lower().split(","):
        found |= {part.strip()} if ":" in part else set(part.split())
    return found - {""}


def page_opts_out(directives: frozenset[str], policy: frozenset[str]) -> str | None:
    """Which of a page's `meta_directives` refuses its use by us, None where none does."""
    found = directives & (_refusing(policy) | (policy & {TDM_RESERVATION}))
    return f"meta: {min(found)}" if found else None


def _refusing(policy: frozenset[str]) -> frozenset[str]:
    return (policy - {TDM_RESERVATION}) | ({"none"} if "noindex" in policy else frozenset())


def _directives(tag: str) -> Iterator[str]:
    agent = "*"
    for part in tag.split(","):
        name = _AGENT_PREFIX.match(part)
        if name and name[1].lower() not in _VALUED:
            agent, part = _agent(name[1]), part[name.end() :]
        if agent in (AGENT, "*"):
            yield part.strip().lower()
