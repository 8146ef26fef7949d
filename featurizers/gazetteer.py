"""Names of a catalogue, looked up in text: exactly, misspelt or misread. Knows no context and makes no choice."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurizers import aliases
from featurizers.catalogue import Catalogue, Entity

# Scripts written without spaces are cut into characters, others into words; Indic vowel signs are part of a word.
_CHARACTERS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # kana, Han, Hangul
_THAI_LAO = r"\u0e00-\u0eff"
_MARKS = r"\u0300-\u036f\u0900-\u0dff"
_TOKEN = re.compile(
    rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}{_THAI_LAO}](?:[^\W_{_CHARACTERS}]|[{_MARKS}])*|[{_THAI_LAO}]+"
)
_UNSPACED = re.compile(f"[{_CHARACTERS}]")
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "\u0131": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"})
_MISREAD = str.maketrans("01|58i", "ollsbl")
MAX_NAME_TOKENS = 8
MIN_MISSPELT_CHARACTERS = 6
LONG_NAME_CHARACTERS = 9  # from here on two edits are allowed
MIN_POPULATION_MISSPELT = 250_000


@dataclass(frozen=True)
class Token:
    """A word of a text."""

    text: str
    key: str  # folded
    start: int
    end: int


@dataclass(frozen=True)
class Name:
    """One entity that a name stands for."""

    entity: int  # row of the catalogue
    prior: float  # about the decimal logarithm of how often it is meant
    alternate: bool = False  # one of the data's further names of a city
    edits: int = 0


def fold(text: str) -> str:
    """Lower case without accents: "Zürich" -> "zurich"."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in decomposed if not "\u0300" <= c <= "\u036f")
    return unicodedata.normalize("NFC", plain).translate(_LETTERS)


def tokenize(text: str) -> list[Token]:
    """The words of a text with their places in it."""
    return [Token(m[0], fold(m[0]), m.start(), m.end()) for m in _TOKEN.finditer(text)]


def unspaced(token: Token) -> bool:
    """Whether the token is a character of a script without spaces."""
    return bool(_UNSPACED.match(token.text))


def key_of(name: str) -> str:
    """The key a name is looked up by: its folded words."""
    if name.isascii() and name.replace(" ", "").isalpha():  # most names; four times as fast
        return name.lower()
    return " ".join(t.key for t in tokenize(name))


def prior(entity: Entity, alternate: bool) -> float:
    """How likely a name alone means this entity, on the scale of the decimal logarithm of a city's population.

    Chosen on the dev half of the golden set: a country before a city, a city before its region.
    """
    if entity.type == "city":
        return math.log10(max(entity.population, 1_000)) + 0.5 * entity.capital - 1.0 * alternate
    if entity.type == "country":
        return 9.0 if entity.population > 300_000 else 8.0
    if entity.type == "subdivision":
        if len(entity.within) > 1:  # a part of a larger subdivision
            return 4.0
        return 5.9 if entity.id[12:14] in ("US", "GB", "AU", "CA") else 4.6
    return 8.0


class Gazetteer:
    """The index of a catalogue's names; read-only once built."""

    def __init__(self, catalogue: Catalogue, vocabulary: frozenset[str]) -> None:
        self.entities = catalogue.entities
        self.rows = {e.id: row for row, e in enumerate(self.entities)}
        self.vocabulary = vocabulary
        self.names: dict[str, list[Name]] = {}
        self.with_comma: set[str] = set()
        for row, entity in enumerate(self.entities):
            own = {entity.name, *aliases.CITY_NAMES.get(entity.id.partition(":")[2], "").split("|")}
            for name in dict.fromkeys((entity.name, *entity.aliases)):
                key = key_of(name)
                if not key or key.count(" ") >= MAX_NAME_TOKENS:
                    continue
                if "," in name:
                    self.with_comma.add(key)
                listed = self.names.setdefault(key, [])
                if all(n.entity != row for n in listed):
                    listed.append(Name(row, prior(entity, alternate=name not in own), name not in own))
        self.longest = max((k.count(" ") + 1 for k in self.names), default=1)
        self.starts = {" ".join(k.split(" ")[:n]) for k in self.names for n in (1, 2)}
        self._misspelt, self._misread = self._fuzzy_index()

    def _fuzzy_index(self) -> tuple[dict[tuple[str, int], list[str]], dict[str, list[str]]]:
        misspelt: dict[tuple[str, int], list[str]] = {}  # by first letter and length
        misread: dict[str, list[str]] = {}
        for key, listed in self.names.items():
            chosen = max(listed, key=lambda n: n.prior)
            best = self.entities[chosen.entity]
            known = best.type in ("country", "language") or best.id.startswith(("subdivision:US", "subdivision:GB"))
            large = best.population >= MIN_POPULATION_MISSPELT and not chosen.alternate
            if not key.isascii() or not (known or large):
                continue
            if len(key) >= 4:
                misread.setdefault(key.translate(_MISREAD), []).append(key)
            if len(key) >= MIN_MISSPELT_CHARACTERS:
                misspelt.setdefault((key[0], len(key)), []).append(key)
        return misspelt, misread

    def exact(self, key: str) -> Sequence[Name]:
        """What a key names, or nothing."""
        return self.names.get(key, ())

    def misread(self, key: str) -> Sequence[Name]:
        """What a key names if 0, 1, 5, 8 and I were misread."""
        return self._with_edits(set(self._misread.get(key.translate(_MISREAD), ())), 0)

    def misspelt(self, key: str) -> Sequence[Name]:
        """What a key names if it holds a typing error, two in a long name: the closest names only.

        A key that is an ordinary word, or that begins with another letter than the name, is no misspelling.
        """
        if len(key) < MIN_MISSPELT_CHARACTERS - 1 or not key.isascii() or (" " not in key and key in self.vocabulary):
            return ()
        allowed = 2 if len(key) >= LONG_NAME_CHARACTERS else 1
        found = {
            name: edit_distance(name, key)
            for length in range(len(key) - allowed, len(key) + allowed + 1)
            for name in self._misspelt.get((key[0], length), ())
        }
        closest = min(found.values(), default=99)
        if closest > allowed or closest == 0:
            return ()
        return self._with_edits({n for n, d in found.items() if d == closest}, closest)

    def _with_edits(self, keys: Iterable[str], edits: int) -> Sequence[Name]:
        names = [Name(n.entity, n.prior - edits, n.alternate, edits) for key in keys for n in self.names[key]]
        return sorted(names, key=lambda n: -n.prior)[:8]


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def read_vocabulary(tokenizer: Path) -> frozenset[str]:
    """The whole words of a WordPiece tokenizer file: what is no misspelling."""
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    return frozenset(word for word in vocabulary if word.isalpha())
