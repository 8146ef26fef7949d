"""Whether a name in a text is meant as a place, language or currency: weighed signs. Knows no model and no file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from featurizers import cues
from featurizers.catalogue import Entity
from featurizers.gazetteer import Name, Token
from featurizers.named_entities import Span

Case = Literal["mixed", "title", "upper", "lower"]
PLACES = frozenset({"country", "subdivision", "city"})
NAME_LABELS = frozenset({"PERSON", "ORG", "FAC", "PRODUCT", "WORK_OF_ART", "EVENT", "LAW"})  # of OntoNotes 5
PLACE_LABELS = frozenset({"GPE", "LOC"})


@dataclass(frozen=True)
class Reading:
    """A text as the linker sees it."""

    text: str
    tokens: Sequence[Token]
    case: Case
    spans: Sequence[Span] = ()
    verbs: frozenset[int] = frozenset()  # first characters of finite verbs and participles

    def gap(self, left: int) -> str:
        """The characters between token `left` and the next one."""
        if not 0 <= left < len(self.tokens) - 1:
            return "\n"
        return self.text[self.tokens[left].end : self.tokens[left + 1].start]

    def token(self, index: int) -> Token | None:
        """The token, or None outside the text."""
        return self.tokens[index] if 0 <= index < len(self.tokens) else None


@dataclass(frozen=True)
class Mention:
    """A stretch of tokens that may name one of several entities."""

    first: int  # token
    last: int  # token, included
    names: Sequence[Name]
    how: Literal["exact", "misread", "misspelt", "code"] = "exact"


def text_case(text: str, tokens: Sequence[Token]) -> Case:
    """How capitals are used in a text: what they say depends on it."""
    letters = [c for c in text if c.isupper() or c.islower()]
    if not letters:
        return "mixed"
    share = sum(c.isupper() for c in letters) / len(letters)
    if share >= 0.8:
        return "upper"
    if share == 0:
        return "lower"
    long = [t.text for t in tokens[1:] if len(t.text) > 3 and t.text.isalpha()]
    return "title" if len(long) >= 3 and sum(w[0].isupper() for w in long) >= 0.8 * len(long) else "mixed"


def capital(token: Token | None) -> bool:
    """Whether a token begins with a capital, or has none to begin with."""
    return token is not None and not token.text[0].islower()


def _neighbour(reading: Reading, mention: Mention, offset: int) -> Token | None:
    """The token before (-1) or behind (1) a mention where only a space lies between."""
    left = mention.first - 1 if offset < 0 else mention.last
    joined = reading.gap(left) in (" ", "-") if left >= 0 else False
    return reading.token(mention.first - 1 if offset < 0 else mention.last + 1) if joined else None


def _key(token: Token | None) -> str:
    return token.key if token else ""


def surface(reading: Reading, mention: Mention) -> str:
    """The mention as it stands in the text."""
    return reading.text[reading.tokens[mention.first].start : reading.tokens[mention.last].end]


def mention_key(reading: Reading, mention: Mention) -> str:
    """The mention's folded words."""
    return " ".join(t.key for t in reading.tokens[mention.first : mention.last + 1])


def sentence_start(reading: Reading, index: int) -> bool:
    """Whether a token is the first of a sentence, so that its capital says nothing."""
    return index == 0 or bool(re.search(r"[.!?:\n|]\s", reading.gap(index - 1)))


# What makes a name part of a longer one. Each takes the reading, the mention and the tokens that other places take.


def _person_before_verb(reading: Reading, mention: Mention, taken: frozenset[int]) -> bool:
    behind = _neighbour(reading, mention, 1)
    return (
        behind is not None
        and behind.start in reading.verbs
        and sentence_start(reading, mention.first)
        and mention_key(reading, mention) in cues.GIVEN_NAMES | cues.WEAK_NAMES
    )


def _head_behind(reading: Reading, mention: Mention, taken: frozenset[int]) -> bool:
    behind = _neighbour(reading, mention, 1)
    if behind is None or mention.last + 1 in taken:
        return False
    if capital(behind):
        return behind.key in cues.HEAD_NOUNS | cues.LOWER_HEADS
    return behind.key in cues.LOWER_HEADS


def _capital_behind(reading: Reading, mention: Mention, taken: frozenset[int]) -> bool:
    behind = _neighbour(reading, mention, 1)
    return (
        reading.case == "mixed"
        and behind is not None
        and behind.text[0].isupper()
        and mention.last + 1 not in taken
        and behind.key not in cues.TAILS | cues.SUBDIVISION_WORDS
    )


def _part_of_name_behind_of(reading: Reading, mention: Mention, taken: frozenset[int]) -> bool:
    at = mention.first - 1
    if _key(reading.token(at)) == "the":
        at -= 1
    head = reading.token(at - 1)
    if _key(reading.token(at)) not in ("of", "de", "di", "do") or reading.gap(at - 1) != " " or head is None:
        return False
    return head.key in cues.OF_HEADS and head.text[0].isupper()


def _name_starts_before(reading: Reading, mention: Mention, taken: frozenset[int]) -> bool:
    ahead = _neighbour(reading, mention, -1)
    if ahead is None or mention.first - 1 in taken or not ahead.text[0].isupper():
        return False
    if ahead.key in cues.NAME_STARTS:
        return True
    return (
        reading.case == "mixed"
        and not sentence_start(reading, mention.first - 1)
        and reading.gap(mention.first - 1) == " "
        and ahead.key not in cues.MODIFIERS | cues.LOCATIVES
    )


def _river_with_article(reading: Reading, mention: Mention, taken: frozenset[int]) -> bool:
    behind = reading.token(mention.last + 1)
    return (
        mention_key(reading, mention) in cues.RIVERS
        and _key(_neighbour(reading, mention, -1)) == "the"
        and (behind is None or reading.gap(mention.last) != " " or behind.key in cues.CLOSED_CLASS | cues.LOCATIVES)
    )


def _inside_named_thing(reading: Reading, mention: Mention, taken: frozenset[int]) -> bool:
    start, end = reading.tokens[mention.first].start, reading.tokens[mention.last].end
    for span in reading.spans:
        if span.label not in NAME_LABELS or span.start > start or span.end < end:
            continue
        before, behind = reading.text[span.start : start].strip(), reading.text[end : span.end].strip()
        beside = [w for w in re.findall(r"\w+", f"{before} {behind}") if w.lower() != "the"]
        place_phrase = re.search(r"\b(in|from|to|near|at)$|,$", before) or behind[:1] in (",", ":", "-", "'", "\u2019")
        if beside and not place_phrase and any(w[0].isupper() for w in beside):
            others = {i for i in taken if span.start <= reading.tokens[i].start < span.end}
            if not others:
                return True
    return False


BLOCKS: tuple[Callable[[Reading, Mention, frozenset[int]], bool], ...] = (
    _person_before_verb,
    _head_behind,
    _capital_behind,
    _part_of_name_behind_of,
    _name_starts_before,
    _river_with_article,
    _inside_named_thing,
)


# Signs that a place is meant. Weights and the threshold were chosen on the dev half of the golden set.


@dataclass(frozen=True)
class Weighed:
    """A place mention with its chosen entity, as the signs see it."""

    reading: Reading
    mention: Mention
    entity: Entity
    prior: float
    support: float  # from other places of the text

    @property
    def key(self) -> str:
        """The mention's folded words."""
        return mention_key(self.reading, self.mention)


def _labelled(w: Weighed, labels: frozenset[str]) -> bool:
    start, end = w.reading.tokens[w.mention.first].start, w.reading.tokens[w.mention.last].end
    return any(s.label in labels and s.start < end and start < s.end for s in w.reading.spans)


def _in_place_phrase(w: Weighed) -> bool:
    at = w.mention.first - 1
    while _key(w.reading.token(at)) in cues.MODIFIERS - cues.LOCATIVES and w.reading.gap(at) == " ":
        at -= 1
    return _key(w.reading.token(at)) in cues.LOCATIVES and w.reading.gap(at) == " "


def _weak(w: Weighed) -> bool:
    return w.key in cues.WEAK_NAMES


def _well_known(w: Weighed) -> bool:
    """Whether the model's reading of the name as a person's is not to be believed."""
    large = w.entity.type == "country" or (w.entity.type == "city" and w.prior >= 6)
    return large and w.key not in cues.GIVEN_NAMES | cues.WEAK_NAMES


def _telling_capital(w: Weighed) -> bool:
    first = w.reading.tokens[w.mention.first]
    return w.reading.case == "mixed" and first.text[0].isupper() and not sentence_start(w.reading, w.mention.first)


def _all_of_text(w: Weighed) -> bool:
    return w.mention.first == 0 and w.mention.last == len(w.reading.tokens) - 1


def _read_as_person(w: Weighed) -> bool:
    return w.mention.how == "exact" and not _well_known(w) and _labelled(w, frozenset({"PERSON"}))


SIGNS: tuple[tuple[str, float, Callable[[Weighed], bool]], ...] = (
    ("the model reads a place", 1.5, lambda w: _labelled(w, PLACE_LABELS)),
    ("the model reads a person", -1.5, _read_as_person),
    ("the model reads another name", -0.5, lambda w: _labelled(w, NAME_LABELS - {"PERSON"})),
    ("a preposition of place", 1.5, _in_place_phrase),
    ("a capital inside a sentence", 1.0, _telling_capital),
    ("nothing but the name", 1.0, _all_of_text),
    ("a word or a personal name", -3.0, lambda w: _weak(w) and w.entity.type != "country"),
    ("a word or a personal name, of a country", -1.5, lambda w: _weak(w) and w.entity.type == "country"),
    ("no capital", -1.0, lambda w: w.reading.tokens[w.mention.first].text[0].islower()),
    ("a country", 2.5, lambda w: w.entity.type == "country"),
    ("a region of the first kind", 2.5, lambda w: w.entity.type == "subdivision" and w.prior > 5.5),
    ("a city of a million", 2.5, lambda w: w.entity.type == "city" and w.prior >= 6),
    ("a city of 100,000", 0.75, lambda w: w.entity.type == "city" and 5 <= w.prior < 6),
    (
        "a large city in capitals",
        1.75,
        lambda w: w.reading.case == "upper" and 5.6 <= w.prior < 6 and w.entity.type == "city",
    ),
    ("several words", 0.75, lambda w: w.mention.last > w.mention.first),
    ("misspelt", -0.5, lambda w: w.mention.how == "misspelt"),
    ("another script", 2.0, lambda w: not w.key.isascii()),
    ("inside or around another place of the text", 3.0, lambda w: w.support >= 2.5),
    ("in the country of another place", 0.75, lambda w: 0 < w.support < 2.5),
)
PLACE_THRESHOLD = 2.4


def place_evidence(w: Weighed) -> float:
    """The weight of all signs that hold, above the threshold if positive."""
    return sum(weight for _, weight, holds in SIGNS if holds(w)) - PLACE_THRESHOLD


def subdivision_named(reading: Reading, mention: Mention) -> bool:
    """Whether the text says state, province or the like beside a name."""
    before = _key(reading.token(mention.first - 2)), _key(reading.token(mention.first - 1))
    behind = _neighbour(reading, mention, 1)
    return (behind is not None and behind.key in cues.SUBDIVISION_WORDS) or (
        before[0] in cues.SUBDIVISION_WORDS and before[1] == "of"
    )


def language_meant(reading: Reading, mention: Mention) -> bool:
    """Whether a language's name means the language: always for some, for the name of a people only with a cue."""
    key = mention_key(reading, mention)
    first = reading.tokens[mention.first]
    if not key.isascii() and key not in cues.DEMONYM_LANGUAGES:
        return True
    before, behind = _neighbour(reading, mention, -1), _neighbour(reading, mention, 1)
    if first.text[0].islower() and reading.case == "mixed" and _key(before) not in cues.LANGUAGE_BEFORE:
        return not first.text.isascii()
    if _key(behind) in cues.LANGUAGE_AFTER:
        target = _key(reading.token(mention.last + 2))
        return behind is not None and (behind.key != "for" or target in cues.LANGUAGE_NEEDS_AFTER_FOR)
    if _key(before) in cues.LANGUAGE_BEFORE:
        return behind is None or behind.key in cues.CLOSED_CLASS
    if key in cues.DEMONYM_LANGUAGES or first.text[0].islower():
        return False
    return behind is None or not behind.text[0].isupper() or reading.case in ("upper", "title")


def currency_meant(reading: Reading, mention: Mention, is_code: bool) -> bool:
    """Whether a currency's name or code means the currency: short ones only beside an amount."""
    key = mention_key(reading, mention)
    before, behind = reading.token(mention.first - 1), reading.token(mention.last + 1)
    amount_before = before is not None and (before.text.isdigit() or before.key in cues.AMOUNT_WORDS)
    amount_behind = behind is not None and behind.text[0].isdigit() and reading.gap(mention.last) in ("", " ")
    in_context = any(t.key in cues.CURRENCY_CONTEXT for t in reading.tokens)
    if is_code:
        code = surface(reading, mention)
        slash = reading.gap(mention.last) == "/" or reading.gap(mention.first - 1) == "/"
        if code in cues.RISKY_CODES:
            return amount_before or slash
        return amount_before or amount_behind or slash or in_context
    if mention.last > mention.first:
        return _key(_neighbour(reading, mention, 1)) not in ("cake", "cakes")
    if key in cues.CLEAR_CURRENCIES:
        return not (key == "euro" and behind is not None and re.fullmatch(r"(19|20)\d\d", behind.text))
    return amount_before or (in_context and reading.tokens[mention.first].text[0].isupper())
