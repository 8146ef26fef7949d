"""What must not come back, as it is asked about and as it is given: URLs, hosts and hashes. Knows no table, no HTTP."""

from __future__ import annotations

import ipaddress
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jobs.urls import InvalidUrl, canonical_url, doc_id
from schemas.takedowns import TAKEDOWN_KINDS

N_TOLD = 3  # bad values that are named
_HASH = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+|localhost|\[[0-9a-f:]+\]")
_IN_BRACKETS = re.compile(r"\[[^]]*\]")
_BESIDE_HOST = re.compile(r"[\s/\\?#@:]")  # of a text with more than a host in it, unless it is an IPv6 address
_ALLOWED = {
    "url": "an http or https URL, or a file:/// URI or absolute path of a file",
    "host": "a name with a dot, localhost or an IP address, without scheme, port and path, such as example.com; it "
    "speaks for all its ports and all hosts below it",
    "hash": "a media_id, the 64 hex digits of the SHA-256 of the bytes",
}


class TakedownRefused(ValueError):
    """Something that is no takedown; the message names it and what is allowed."""


# -- what is taken down -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Takedown:
    """One entry, its value as the table has it."""

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"


def names_of(host: str) -> Iterator[str]:
    """A host of documents without its port, then each domain that it lies below: a.b.example, b.example, example."""
    name, _, port = host.rpartition(":")
    name = (name if port.isdigit() else host).rstrip(".")
    while name:
        yield name
        name = name.partition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Takedowns:
    """All that is taken down. Each question costs as much for a million entries as for one."""

    doc_ids: frozenset[str] = field(default=frozenset(), repr=False)
    hosts: frozenset[str] = field(default=frozenset(), repr=False)
    hashes: frozenset[str] = field(default=frozenset(), repr=False)

    def of_url(self, doc_id: str, host: str) -> str | None:
        """Why a document must not be fetched, None where it may. host: as `documents` has it, with its port."""
        if doc_id in self.doc_ids:
            return "this URL was taken down"
        found = next((name for name in names_of(host) if name in self.hosts), None)
        return None if found is None else f"host {found} was taken down"

    def of_hash(self, media_id: str) -> str | None:
        """Why bytes must not be stored, None where they may."""
        return f"content with SHA-256 {media_id} was taken down" if media_id in self.hashes else None


NOTHING_TAKEN_DOWN = Takedowns()


def takedowns_of(entries: Iterable[Takedown]) -> Takedowns:
    """Entries as they are asked about."""
    found: dict[str, set[str]] = {kind: set() for kind in TAKEDOWN_KINDS}
    for entry in entries:
        found[entry.kind].add(doc_id(entry.value) if entry.kind == "url" else entry.value)
    return Takedowns(doc_ids=frozenset(found["url"]), hosts=frozenset(found["host"]), hashes=frozenset(found["hash"]))


# -- what is given ------------------------------------------------------------------------------------------------


def parse_entry(kind: str, text: str) -> Takedown:
    """A takedown of `kind` with the value that the table has for `text`; raises TakedownRefused."""
    if kind not in TAKEDOWN_KINDS:
        raise TakedownRefused(f"{kind!r} is no kind of takedown; allowed: {', '.join(TAKEDOWN_KINDS)}")
    parse = {"url": _url, "host": _host, "hash": _hash}[kind]
    try:
        value, why = parse(text.strip()), ""
    except InvalidUrl as e:
        value, why = None, f" ({e})"
    if value is None:
        raise TakedownRefused(f"{kind} {text[:100]!r} is not allowed{why}; allowed: {_ALLOWED[kind]}")
    return Takedown(kind, value)


def _hash(text: str) -> str | None:
    return text.lower() if _HASH.fullmatch(text.lower()) else None


def _url(text: str) -> str | None:
    if text.startswith("//"):  # a URL without its scheme as likely as a path
        return None
    if text.startswith("/"):
        return Path(text).as_uri()
    if text.lower().startswith("file:"):
        path = urllib.parse.unquote(text[len("file://") :])
        return Path(path).as_uri() if text.lower().startswith("file:///") and not path.startswith("//") else None
    return canonical_url(text).href


def _host(text: str) -> str | None:
    with suppress(ValueError):
        text = f"[{ipaddress.IPv6Address(text)}]"
    if _BESIDE_HOST.search(text) and not _IN_BRACKETS.fullmatch(text):
        return None
    host = canonical_url(f"http://{text}/").host.rstrip(".")
    return host if _HOST.fullmatch(host) else None


def parse_line(line: str) -> Takedown:
    """A takedown from `url ...`, `host ...`, `hash ...` or a value whose kind is evident; raises TakedownRefused."""
    words = line.split(maxsplit=1)
    if len(words) == 2 and words[0].lower() in TAKEDOWN_KINDS:
        return parse_entry(words[0].lower(), words[1])
    text = line.strip()
    if _HASH.fullmatch(text.lower()):
        return parse_entry("hash", text)
    if text.startswith("/") or re.match(r"(https?|file):/", text, re.IGNORECASE):
        return parse_entry("url", text)
    if "." in text and "/" not in text:
        return parse_entry("host", text)
    raise TakedownRefused(f"{text[:100]!r} may be anything; put one of {', '.join(TAKEDOWN_KINDS)} before it")


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that say something, numbered from 1. Raises TakedownRefused."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise TakedownRefused(f"--file {file} is not UTF-8: {e}") from e
    except OSError as e:
        raise TakedownRefused(f"--file {file} cannot be read: {e.strerror or e}") from e
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def read_entries(given: Mapping[str, Sequence[str]], files: Sequence[str]) -> list[Takedown]:
    """All entries, each once: texts by their kind, then the lines of files (`-`: standard input).

    Raises TakedownRefused naming what is no takedown, or where there is no entry at all.
    """
    found: dict[Takedown, None] = {}
    refused = []

    def take(where: str, parse: Callable[..., Takedown], *texts: str) -> None:
        try:
            found[parse(*texts)] = None
        except TakedownRefused as e:
            refused.append(f"{where}{e}")

    for kind, texts in given.items():
        for text in texts:
            take("", parse_entry, kind, text)
    for file in files:
        for number, line in _lines(file):
            take(f"{'standard input' if file == '-' else file} line {number}: ", parse_line, line)
    if refused:
        more = f"; and {len(refused) - N_TOLD} more" if len(refused) > N_TOLD else ""
        raise TakedownRefused(f"nothing was added: {'; '.join(refused[:N_TOLD])}{more}")
    if not found:
        raise TakedownRefused("there is nothing to take down; name it with --url, --host, --hash or --file")
    return list(found)


def said_text(option: str, text: str | None) -> str | None:
    """What is kept of an option's text, on one line; None for one that says nothing. Raises TakedownRefused."""
    plain = " ".join((text or "").split())
    if not plain.isprintable():
        raise TakedownRefused(f"{option} {plain[:100]!r} is not allowed: printable text only")
    return plain or None
