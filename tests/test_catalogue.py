"""The built-in catalogue holds what it should, and a user's catalogue fails with a message that helps."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurizers import aliases
from featurizers.catalogue import (
    CATALOGUE_WEIGHTS,
    Catalogue,
    CatalogueError,
    build_catalogue,
    catalogue_vectors,
    read_catalogue,
    with_catalogue,
)
from featurizers.linking import LINKER_SPEC
from featurizers.weights import fetch

HEADER = "id,name,aliases,type,description\n"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build_catalogue({w.name: fetch(w.uri, w.sha256) for w in CATALOGUE_WEIGHTS})


def test_the_built_in_catalogue_holds_every_kind_of_entity_once(catalogue: Catalogue) -> None:
    kinds = Counter(e.type for e in catalogue.entities)
    assert kinds["country"] == 249 and kinds["subdivision"] == 5046 and kinds["city"] == 34006
    assert kinds["language"] > 180 and kinds["currency"] > 150
    assert len({e.id for e in catalogue.entities}) == len(catalogue.entities)


def test_entities_carry_names_places_and_people(catalogue: Catalogue) -> None:
    by_id = {e.id: e for e in catalogue.entities}
    paris = by_id["city:4717560"]
    assert paris.text == "Paris, city in Texas, United States"
    assert paris.within == ("country:US", "subdivision:US-TX") and 33 < (paris.latitude or 0) < 34
    assert {"UK", "Great Britain"} <= set(by_id["country:GB"].aliases)
    assert by_id["subdivision:DE-BY"].name == "Bavaria" and "Bayern" in by_id["subdivision:DE-BY"].aliases
    assert "Swiss francs" in by_id["currency:CHF"].aliases and by_id["city:2988507"].capital


def test_every_hand_written_name_belongs_to_an_entity(catalogue: Catalogue) -> None:
    known = {e.id for e in catalogue.entities}
    tables = {
        "country": aliases.COUNTRY_NAMES,
        "subdivision": aliases.SUBDIVISION_NAMES,
        "city": aliases.CITY_NAMES,
        "language": aliases.LANGUAGE_NAMES,
        "currency": aliases.CURRENCY_NAMES,
    }
    assert [f"{kind}:{key}" for kind, table in tables.items() for key in table if f"{kind}:{key}" not in known] == []


def test_a_users_csv_is_read_with_its_aliases(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(HEADER + "logo:1,Acme,ACME Corp|Acme Inc.,brand,maker of anvils\n")
    (entity,) = read_catalogue(path).entities
    assert (entity.id, entity.aliases, entity.text) == ("logo:1", ("ACME Corp", "Acme Inc."), "Acme, maker of anvils")


def test_a_users_parquet_may_list_its_aliases(tmp_path: Path) -> None:
    row = {"id": "p:1", "name": "Big Tower", "aliases": ["The Tower"], "type": "landmark", "description": ""}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "own.parquet")
    assert read_catalogue(tmp_path / "own.parquet").entities[0].aliases == ("The Tower",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,name\n1,x\n", "needed: id, name, aliases, type, description"),
        (HEADER + "a:1,A,,place,\na:1,B,,place,\n", "row 2: id 'a:1' stands there twice"),
        (HEADER + "a:1,,,place,\n", "row 1: name is ''"),
        (HEADER, "has no rows"),
        (HEADER.strip() + ",latitude\na:1,A,,place,,123\n", "latitude is '123'; allowed: a number in -90"),
    ],
)
def test_a_broken_catalogue_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(content)
    with pytest.raises(CatalogueError, match=r"broken\.csv") as e:
        read_catalogue(path)
    assert message in str(e.value)


def test_a_catalogue_of_another_format_is_refused_with_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"allowed: \.csv, \.parquet"):
        read_catalogue(tmp_path / "own.xlsx")


def test_a_users_catalogue_replaces_the_built_in_one_in_the_fingerprint(tmp_path: Path) -> None:
    spec = with_catalogue(LINKER_SPEC, tmp_path / "own.csv")
    names = {w.name for w in spec.weights}
    assert "catalogue" in names and not names & {w.name for w in CATALOGUE_WEIGHTS}


def test_vectors_are_made_once_and_then_read(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "own.csv").write_text(HEADER + "a:1,A,,place,\n")
    catalogue = read_catalogue(tmp_path / "own.csv")
    made = catalogue_vectors(catalogue, lambda t: np.ones((len(t), 1), np.float32), tmp_path, encoder_digest="x")
    again = catalogue_vectors(catalogue, None, tmp_path, encoder_digest="x")
    other = catalogue_vectors(catalogue, None, tmp_path, encoder_digest="y")
    assert made.tolist() == again.tolist() == [[1.0]] and len(other) == 0
