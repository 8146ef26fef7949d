"""Links names in a text to catalogue entities, and coordinates to the nearest city. Knows no pixels and no tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers import cues, evidence
from featurizers.catalogue import (
    CATALOGUE_WEIGHTS,
    USER_CATALOGUE,
    Catalogue,
    Entity,
    TextEncoder,
    aliases_digest,
    catalogue_vectors,
    load_catalogue,
)
from featurizers.evidence import PLACES, Mention, Reading, Weighed
from featurizers.gazetteer import Gazetteer, Name, Token, read_vocabulary, tokenize, unspaced
from featurizers.minilm import MINILM_DIM, MINILM_WEIGHTS, load_text_encoder
from featurizers.named_entities import NER_WEIGHTS, Annotate, load_annotator
from featurizers.spec import FeaturizerSpec
from featurizers.weights import cache_dir, digest

LINKER_VERSION = 1
LINKER_SETTINGS = (("linker", LINKER_VERSION), ("aliases", aliases_digest()))
LINKER_SPEC = FeaturizerSpec(
    family="linking",
    variant="minilm",
    version=LINKER_VERSION,
    kind="entity",
    dim=MINILM_DIM,
    image_size=0,
    fit="native",
    batch_size=64,
    weights=(*MINILM_WEIGHTS, NER_WEIGHTS, *CATALOGUE_WEIGHTS),
    settings=LINKER_SETTINGS,
)

MAX_CHARACTERS = 2_000  # of a text; the rest is not read
NEAREST_PLACE_KM = 50.0
# Ten times the people make a city this much nearer: a photo at a city's edge belongs to the city, not to the village.
KM_PER_DECADE_OF_PEOPLE = 5.0
# Weight of the text's likeness to an entity, and the difference of priors below which it is asked for. The context
# of a caption seldom outweighs size, so it only decides between namesakes of about one size.
LIKENESS_WEIGHT = 1.0
LIKENESS_MARGIN = 0.15
CONTAINER_BESIDE, CONTAINER_IN_TEXT, SAME_COUNTRY = 6.0, 3.0, 1.0
CODED_REGIONS = ("US", "CA")  # countries whose regions' two letters stand behind a city: "Austin, TX"


@dataclass(frozen=True)
class Link:
    """An entity that a text names."""

    id: str
    surface: str  # as it stands in the text
    score: float  # in [0, 1]
    vector: NDArray[np.float32]  # (384,) unit L2 norm: the entity's, not the text's


@dataclass(frozen=True)
class Linker:
    """A catalogue made ready for linking; `link` and `nearest_place` change nothing but the memory of vectors."""

    gazetteer: Gazetteer
    annotate: Annotate
    encode: TextEncoder
    vectors: NDArray[np.float32]  # (M, 384) of the first M entities
    _more_vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def link(self, texts: Sequence[str], *, cased: bool) -> list[list[Link]]:
        """The entities each text names, in order of mention, each once.

        cased: whether the texts' capitals can be trusted; False for text read from pictures, where letters may also
        be misread.
        """
        return [self._link_one(text[:MAX_CHARACTERS], cased) for text in texts]

    def vector(self, row: int) -> NDArray[np.float32]:
        """(384,) unit vector of an entity, by its row in the catalogue."""
        if row < len(self.vectors):
            made: NDArray[np.float32] = self.vectors[row]
            return made
        if row not in self._more_vectors:
            self._more_vectors[row] = self.encode([self.gazetteer.entities[row].text])[0]
        return self._more_vectors[row]

    def nearest_place(self, latitude: float, longitude: float) -> Link | None:
        """The city a point (degrees) belongs to, or None with none within 50 km or for coordinates out of range.

        Of two cities the larger one is preferred by 5 km for each factor of ten in people (haversine distance).
        """
        if not (abs(latitude) <= 90 and abs(longitude) <= 180):
            return None
        rows, positions, people = self._cities
        here = np.radians([latitude, longitude])
        delta = positions - here
        chord = np.sin(delta[:, 0] / 2) ** 2 + np.cos(here[0]) * np.cos(positions[:, 0]) * np.sin(delta[:, 1] / 2) ** 2
        km = 2 * 6371.0 * np.arcsin(np.sqrt(np.clip(chord, 0, 1)))
        cost = np.where(km <= NEAREST_PLACE_KM, km - KM_PER_DECADE_OF_PEOPLE * np.log10(np.maximum(people, 1)), np.inf)
        if not len(cost) or not np.isfinite(cost.min()):
            return None
        best = int(cost.argmin())
        row = int(rows[best])
        score = math.exp(-float(km[best]) / NEAREST_PLACE_KM)
        return Link(self.gazetteer.entities[row].id, f"{latitude:.5f}, {longitude:.5f}", score, self.vector(row))

    @cached_property
    def _cities(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Rows, positions (radians) and people of the entities that have coordinates."""
        known = [
            (row, e.latitude, e.longitude, e.population)
            for row, e in enumerate(self.gazetteer.entities)
            if e.latitude is not None and e.longitude is not None
        ]
        table = np.array(known, np.float64).reshape(-1, 4)
        return table[:, 0].astype(np.int64), np.radians(table[:, 1:3]), table[:, 3]

    def _link_one(self, text: str, cased: bool) -> list[Link]:
        tokens = tokenize(text)
        reading = Reading(text, tokens, evidence.text_case(text, tokens))
        mentions = find_mentions(reading, self.gazetteer, misread=not cased or reading.case == "upper")
        if not mentions:
            return []
        spans, verbs = self.annotate(_title(text, tokens) if reading.case in ("upper", "lower") else text)
        reading = replace(reading, spans=spans, verbs=verbs)
        links: dict[str, Link] = {}
        for mention, name, score in choose(reading, mentions, self.gazetteer.entities, self._likeness(text)):
            entity = self.gazetteer.entities[name.entity]
            surface = evidence.surface(reading, mention)
            links.setdefault(entity.id, Link(entity.id, surface, score, self.vector(name.entity)))
        return list(links.values())

    def _likeness(self, text: str) -> Callable[[int], float]:
        encoded: list[NDArray[np.float32]] = []

        def to(row: int) -> float:
            if not encoded:
                encoded.append(self.encode([text])[0])
            return float(encoded[0] @ self.vector(row))

        return to


def _title(text: str, tokens: Sequence[Token]) -> str:
    """The text with each word's first letter in upper case and the others in lower case, every character in place."""
    out = list(text)
    for token in tokens:
        for at in range(token.start, token.end):
            turned = text[at].upper() if at == token.start and len(token.text) > 2 else text[at].lower()
            out[at] = turned if len(turned) == 1 else text[at]
    return "".join(out)


def find_mentions(reading: Reading, gazetteer: Gazetteer, *, misread: bool) -> list[Mention]:
    """Stretches of a text that a catalogue name covers, longest first from the left, without overlaps."""
    found: list[Mention] = []
    at = 0
    while at < len(reading.tokens):
        code = _region_code(reading, at, found, gazetteer)
        mention = code or _longest(reading, at, gazetteer, misread)
        if mention is None:
            at += 1
            continue
        found.append(mention)
        at = mention.last + 1
    return found


def _longest(reading: Reading, at: int, gazetteer: Gazetteer, misread: bool) -> Mention | None:
    spans = _spans_from(reading, at, gazetteer)
    for last, key in reversed(spans):
        names = [n for n in gazetteer.exact(key) if _plausible(reading, at, last, gazetteer.entities[n.entity])]
        if names:
            return Mention(at, last, names)
    if not evidence.capital(reading.tokens[at]) or not reading.text[reading.tokens[at].start].isascii():
        return None
    for last in range(min(at + 2, len(reading.tokens) - 1), at - 1, -1):
        stretch = reading.tokens[at : last + 1]
        if any(reading.gap(i) != " " for i in range(at, last)) or not all(map(evidence.capital, stretch)):
            continue
        key = " ".join(t.key for t in stretch)
        if misread and any(_looks_misread(t.text, reading.case) for t in stretch):
            names = list(gazetteer.misread(key))
            if names:
                return Mention(at, last, names, "misread")
        if all(len(t.key) > 1 and t.key not in cues.CLOSED_CLASS | cues.LOCATIVES for t in stretch):
            names = [n for n in gazetteer.misspelt(key) if gazetteer.entities[n.entity].type != "currency"]
            if names:
                return Mention(at, last, names, "misspelt")
    return None


def _looks_misread(word: str, case: evidence.Case) -> bool:
    letters = sum(c.isalpha() for c in word)
    digits = sum(c in "01|58" for c in word)
    return letters >= 2 and (0 < digits <= 2 or (case == "upper" and "l" in word))


def _spans_from(reading: Reading, at: int, gazetteer: Gazetteer) -> list[tuple[int, str]]:
    """(last token, key) of the stretches from a token that names may cover."""
    found: list[tuple[int, str]] = []
    key = ""
    comma = False
    for last in range(at, min(at + gazetteer.longest, len(reading.tokens))):
        if last > at:
            gap = reading.gap(last - 1)
            abbreviated = gap in (".", ". ") and len(reading.tokens[last - 1].key) <= 2
            comma = comma or gap == ", "
            if not (gap in ("", " ", "-", "'", "\u2019", "\u2013", " & ", ", ") or abbreviated):
                break
        key = f"{key} {reading.tokens[last].key}" if key else reading.tokens[last].key
        if last - at < 2 and key not in gazetteer.starts:
            break
        if not comma or key in gazetteer.with_comma:
            found.append((last, key))
    return found


def _plausible(reading: Reading, at: int, last: int, entity: Entity) -> bool:
    """Whether the letters' case (or the script) allows the entity at all."""
    first = reading.tokens[at]
    text = reading.text[first.start : reading.tokens[last].end]
    if unspaced(first):
        alone = (at == 0 or not unspaced(reading.tokens[at - 1])) and (
            last + 1 == len(reading.tokens) or not unspaced(reading.tokens[last + 1])
        )
        return last > at and (alone or entity.type in ("country", "language") or entity.population > 1_000_000)
    bare = text.replace(".", "").replace(" ", "")
    if bare.upper() in cues.CASED_NAMES:
        allowed = reading.case != "upper" or bare.lower() not in cues.WORDS_IN_CAPITALS
        return bare.isupper() and allowed
    if entity.type in ("currency", "language"):
        return True
    capital = evidence.capital(first) or (last > at and evidence.capital(reading.tokens[last]) and len(first.key) <= 2)
    return capital or (reading.case == "lower" and first.key not in cues.WEAK_NAMES | cues.GIVEN_NAMES)


def _region_code(reading: Reading, at: int, found: Sequence[Mention], gazetteer: Gazetteer) -> Mention | None:
    """A region's two letters right behind one of its cities, or a currency's three letters."""
    token = reading.tokens[at]
    if len(token.text) == 3 and token.text.isascii() and token.text.isupper():
        row = gazetteer.rows.get(f"currency:{token.text}")
        mention = Mention(at, at, [Name(row, 8.0)], "code") if row is not None else None
        return mention if mention and evidence.currency_meant(reading, mention, is_code=True) else None
    if len(token.text) != 2 or not token.text.isupper() or not found or found[-1].last != at - 1:
        return None
    if reading.gap(at - 1) not in (", ", " ", ","):
        return None
    inside = {i for n in found[-1].names for i in gazetteer.entities[n.entity].within}
    for country in CODED_REGIONS:
        wanted = f"subdivision:{country}-{token.text}"
        if wanted in inside and wanted in gazetteer.rows:
            return Mention(at, at, [Name(gazetteer.rows[wanted], 6.0)], "code")
    return None


def choose(
    reading: Reading, mentions: Sequence[Mention], entities: Sequence[Entity], likeness: Callable[[int], float]
) -> list[tuple[Mention, Name, float]]:
    """The mentions that name something, what they name, and a score in [0, 1]."""

    def of_kind(mention: Mention, kinds: frozenset[str]) -> list[Name]:
        return [n for n in mention.names if entities[n.entity].type in kinds]

    chosen: list[tuple[Mention, Name, float]] = []
    places = [replace(m, names=of_kind(m, PLACES)) for m in mentions]
    taken = frozenset(i for m in places if m.names for i in range(m.first, m.last + 1))
    meant = {"language": evidence.language_meant, "currency": _currency_meant}
    for mention, place in zip(mentions, places, strict=True):
        worded = [n for n in mention.names if (ask := meant.get(entities[n.entity].type)) and ask(reading, mention)]
        own = [n for n in mention.names if entities[n.entity].type not in PLACES | meant.keys()]
        if worded:
            chosen.append((mention, worded[0], 0.9))
        elif place.names:
            name, support = _best_place(reading, place, places, entities, likeness)
            weighed = Weighed(reading, place, entities[name.entity], name.prior, support)
            coded = mention.how == "code"
            beside = frozenset(i for i in taken if not place.first <= i <= place.last)
            if not coded and any(blocked(reading, place, beside) for blocked in evidence.BLOCKS):
                continue
            strength = 3.0 if coded else evidence.place_evidence(weighed)
            if strength > 0:
                chosen.append((mention, name, 1 / (1 + math.exp(-strength))))
        elif own and evidence.capital(reading.tokens[mention.first]):
            chosen.append((mention, max(own, key=lambda n: n.prior), 0.75))
    return chosen


def _currency_meant(reading: Reading, mention: Mention) -> bool:
    return mention.how == "code" or evidence.currency_meant(reading, mention, is_code=False)


def _best_place(
    reading: Reading,
    mention: Mention,
    places: Sequence[Mention],
    entities: Sequence[Entity],
    likeness: Callable[[int], float],
) -> tuple[Name, float]:
    """The likeliest of a mention's places, by size and by the other places of the text, and those places' support."""
    names: Sequence[Name] = mention.names
    if evidence.subdivision_named(reading, mention):
        names = [n for n in names if entities[n.entity].type == "subdivision"] or names
    others = [m for m in places if m.names and m.first != mention.first]
    supports = {
        n.entity: max((_support(reading, mention, entities[n.entity], m, entities) for m in others), default=0.0)
        for n in names
    }
    ranked = sorted(names, key=lambda n: (-(n.prior + supports[n.entity]), n.entity))
    best = ranked[0].prior + supports[ranked[0].entity]
    close = [n for n in ranked if best - n.prior - supports[n.entity] < LIKENESS_MARGIN]
    if len(close) > 1:
        value = {n.entity: n.prior + supports[n.entity] + LIKENESS_WEIGHT * likeness(n.entity) for n in close}
        ranked = sorted(close, key=lambda n: (-value[n.entity], n.entity))
    return ranked[0], supports[ranked[0].entity]


def _support(reading: Reading, mention: Mention, entity: Entity, other: Mention, entities: Sequence[Entity]) -> float:
    left, right = (mention, other) if mention.first < other.first else (other, mention)
    between = reading.text[reading.tokens[left.last].end : reading.tokens[right.first].start].strip()
    beside = between in (",", "", "(", "in", ", in", "-", "\u2013", "|")
    likeliest = max(n.prior for n in other.names)
    best = 0.0
    for name in other.names:
        there = entities[name.entity]
        if there.id in entity.within or entity.id in there.within:
            value = CONTAINER_BESIDE if beside else CONTAINER_IN_TEXT
        elif entity.within and there.within and entity.within[0] == there.within[0] and entity.id != there.id:
            value = SAME_COUNTRY
        else:
            continue
        best = max(best, value - 0.5 * (likeliest - name.prior))
    return best


def prepare_vectors(weights: Mapping[str, Path]) -> int:
    """Make the vectors of the most prominent entities and keep them under `cache_dir()`; return how many there are.

    Called once at setup. Without it `load_linker` works too: it makes each vector when it is first needed.
    """
    catalogue = load_catalogue(weights)

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return load_text_encoder(weights)(texts)  # loaded only where there is something to make

    return len(catalogue_vectors(catalogue, encode, cache_dir(), encoder_digest=_encoder(weights)))


def _encoder(weights: Mapping[str, Path]) -> str:
    return digest(weights["minilm"]) + digest(weights["minilm_tokenizer"])


def load_linker(weights: Mapping[str, Path]) -> Linker:
    """A linker from the resolved weights of LINKER_SPEC (or of a spec by `with_catalogue`), loaded once per process.

    Raises CatalogueError.
    """
    names = {w.name for w in LINKER_SPEC.weights} | {USER_CATALOGUE}
    return _loaded(tuple(sorted((name, path) for name, path in weights.items() if name in names)))


@cache
def _loaded(weights: tuple[tuple[str, Path], ...]) -> Linker:
    paths = dict(weights)
    catalogue: Catalogue = load_catalogue(paths)
    vectors = catalogue_vectors(catalogue, None, cache_dir(), encoder_digest=_encoder(paths))
    gazetteer = Gazetteer(catalogue, read_vocabulary(paths["minilm_tokenizer"]))
    return Linker(gazetteer, load_annotator(paths["ner"]), load_text_encoder(paths), vectors)


def feature_row(link: Link) -> dict[str, Any]:
    """A link as a row of the `features` type: vector, label, score, box, text."""
    return {"vector": link.vector, "label": link.id, "score": link.score, "box": None, "text": link.surface}


def mention_features(linker: Linker, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
    """For each caption or title its entities as rows of the `features` type."""
    return [[feature_row(link) for link in links] for links in linker.link(texts, cased=True)]
