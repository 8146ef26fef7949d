"""The sample holds what it says: sound files decode, broken ones break in the planted way. Knows no Spark."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurizers.decode import DecodeError, decode_image
from featurizers.probe import probe, sniff
from featurizers.video import key_frames
from jobs import sample_clips, sample_pictures, sample_signs
from jobs.archives import open_member
from jobs.config import Source
from jobs.demo import prepared_sample, sources
from jobs.pages import read_page
from jobs.robots import parse_robots
from jobs.sample_archives import write_shard, write_table, write_warc, write_wat
from jobs.sample_media import SampleError, build, places_in
from jobs.sample_site import BASE, SAMPLE
from jobs.sitemaps import read_sitemap
from jobs.sources import sightings
from schemas.errors import ErrorCode

MAX_PIXELS = 50_000_000
Row = dict[str, Any]


@pytest.fixture(scope="module")
def sample() -> Path:
    return prepared_sample()


@pytest.fixture(scope="module")
def all_rows(sample: Path) -> list[Row]:
    expected: list[Row] = json.loads((sample / "expected.json").read_text())
    return expected


@pytest.fixture(scope="module")
def rows(all_rows: list[Row]) -> list[Row]:
    """What the list of URLs and the folder show."""
    return [row for row in all_rows if row["source"] in ("web", "folder")]


def content(sample: Path, row: Row) -> bytes:
    return (sample / ("site" if row["source"] == "web" else "folder") / row["path"]).read_bytes()


def test_the_sample_holds_about_three_hundred_documents_each_once(sample: Path, rows: list[Row]) -> None:
    assert 280 <= len(rows) <= 360
    assert max(Counter((row["source"], row["path"]) for row in rows).values()) == 1
    urls = [json.loads(line) for line in (sample / "urls.jsonl").read_text().splitlines()]
    assert [url["url"] for url in urls] == ["{base}/" + row["path"] for row in rows if row["source"] == "web"]
    in_folder = {p.relative_to(sample / "folder").as_posix() for p in (sample / "folder").rglob("*") if p.is_file()}
    assert in_folder == {row["path"] for row in rows if row["source"] == "folder"}


def test_every_file_decodes_or_breaks_in_the_planted_way(sample: Path, rows: list[Row]) -> None:
    def outcome(row: Row) -> str | None:
        data = content(sample, row)
        try:
            if probe(data).media_type == "video":
                return None if list(key_frames(data, max_frames=1, max_pixels=MAX_PIXELS)) else "nothing"
            decode_image(data, max_pixels=MAX_PIXELS)
        except DecodeError as e:
            return e.code
        return None

    stored = [row for row in rows if row["table"] != "documents"]
    assert {row["path"]: outcome(row) for row in stored} == {row["path"]: row["code"] for row in stored}
    assert {row["code"] for row in rows if row["code"]} <= set(ErrorCode)


def test_documents_that_are_no_media_are_not_sniffed_as_media(sample: Path, rows: list[Row]) -> None:
    def kind(row: Row) -> str | None:
        return sniff(content(sample, row)[:4096])

    found = {row["path"]: kind(row) for row in rows if row["code"] in ("empty", "not_media", "unsupported_format")}
    assert found == {
        "broken/zero.jpg": None,
        "broken/zero.mp4": None,
        "broken/error-page.jpg": "text/html",
        "broken/readme.png": "text/plain",
        "broken/drawing.svg": "image/svg+xml",
        "broken/leaflet.pdf": "application/pdf",
    }


def test_five_pictures_are_larger_than_a_megapixel(sample: Path, rows: list[Row]) -> None:
    sound = [row for row in rows if row["code"] is None]
    facts = [probe(content(sample, row)) for row in sound]
    large = [
        row["path"]
        for row, found in zip(sound, facts, strict=True)
        if found.media_type == "image" and (found.width or 0) * (found.height or 0) > 1_000_000
    ]
    assert len(large) == 5 and all(path.startswith("formats/") for path in large)


def test_all_eight_exif_orientations_show_the_same_cat(sample: Path, rows: list[Row]) -> None:
    pictures = [
        decode_image((sample / "site" / "animals" / f"chelsea-turned{i}.jpg").read_bytes(), max_pixels=MAX_PIXELS)
        for i in range(1, 9)
    ]
    for picture in pictures[1:]:
        assert picture.shape == pictures[0].shape
        assert np.abs(picture.astype(int) - pictures[0]).mean() < 3


def test_copies_have_the_bytes_of_what_they_copy(rows: list[Row]) -> None:
    media = {row["path"]: row["media_id"] for row in rows}
    originals = Counter(row["media_id"] for row in rows if row["collection"] != "copies")
    copies = [path for path in media if path.startswith("copies/")]
    assert len(copies) >= 13
    assert all(originals[media[path]] >= 1 for path in copies)


def test_what_archives_hold_and_lists_name_has_the_bytes_of_pictures_of_the_site(
    sample: Path, rows: list[Row], all_rows: list[Row]
) -> None:
    base_url = "http://127.0.0.1:8642"
    archived = {row["url"]: row for row in all_rows if row["source"] in ("warc", "webdataset", "table", "wat", "list")}
    assert {row["media_id"] for row in archived.values()} <= {row["media_id"] for row in rows}
    found: dict[str, str] = {}
    for source in sources(sample, base_url):
        if source["kind"] in ("warc", "webdataset", "table", "wat"):
            for one in sightings(Source(**source)):
                url = one.url.replace(base_url, BASE).replace(sample.as_uri(), SAMPLE)
                assert (one.source, one.caption, one.problem) == (source["name"], archived[url]["caption"], None)
                if one.root is None:
                    data = (sample / "site" / url.removeprefix(f"{BASE}/")).read_bytes()
                else:
                    data = open_member(one.root, str(one.held_as), one.offset, one.length).read()
                found[url] = hashlib.sha256(data).hexdigest()
    assert found == {url: row["media_id"] for url, row in archived.items()}


def test_archives_are_the_same_bytes_whenever_they_are_written(tmp_path: Path) -> None:
    def written(folder: Path) -> list[bytes]:
        folder.mkdir()
        write_warc(folder / "a.warc.gz", [("http://archive.example/a.jpg", "image/jpeg", b"a picture")])
        page = {"url": "http://blog.example/", "title": "A blog", "pictures": [{"src": "/a.jpg", "alt": "A"}]}
        write_wat(folder / "a.wat.gz", [page])
        write_shard(folder / "a.tar", [("a.jpg", b"a picture"), ("a.txt", b"A")])
        write_table(folder / "a.parquet", [{"url": None, "caption": "A", "image": b"a picture"}], has_bytes=True)
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    first = written(tmp_path / "first")
    time.sleep(1.1)  # archives count seconds
    assert written(tmp_path / "second") == first and len(first) == 4


def test_the_site_leads_to_each_of_its_pages_and_the_sitemap_lists_them(sample: Path, all_rows: list[Row]) -> None:
    base_url, site = "http://127.0.0.1:8642", sample / "site"
    expected = {row["path"]: row["depth"] for row in all_rows if row["media_type"] == "page"}
    index = read_page((site / "index.html").read_bytes(), f"{base_url}/", content_type="text/html")
    led = {link.url.removeprefix(f"{base_url}/"): 1 for link in index.links}
    assert {"": 0, **led} == expected
    assert all((site / path / "index.html").is_file() for path in expected)
    body = (site / "sitemap.xml").read_text().replace(BASE, base_url)
    listed = read_sitemap(body.encode(), f"{base_url}/sitemap.xml")
    assert listed.problem is None and {page.removeprefix(f"{base_url}/") for page in listed.pages} == led.keys()
    assert [row["path"] for row in all_rows if row["media_type"] == "sitemap"] == ["sitemap.xml"]


def test_robots_txt_forbids_what_is_planted_as_forbidden_and_nothing_else(sample: Path, rows: list[Row]) -> None:
    robots = parse_robots((sample / "site" / "robots.txt").read_bytes())
    base = "http://127.0.0.1:8642/"
    web = [row for row in rows if row["source"] == "web"]
    refused = {row["path"] for row in web if not robots.allows(base + row["path"])}
    assert refused == {row["path"] for row in web if row["code"] == "robots_disallowed"}
    assert all((sample / "site" / path).is_file() for path in refused), "a crawler that asks would get them"


def test_pages_show_every_document_with_its_caption(sample: Path, rows: list[Row]) -> None:
    shown: dict[str, str] = {}

    class Shown(HTMLParser):
        folder = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named = dict(attrs)
            if tag in ("img", "video"):
                shown[f"{self.folder}/{named['src']}"] = named.get("alt") or named.get("title") or ""

    for page in sorted((sample / "site").glob("*/index.html")):
        parser = Shown()
        parser.folder = page.parent.name
        parser.feed(page.read_text())
    assert shown == {row["path"]: row["caption"] for row in rows if row["collection"] and row["code"] != "not_found"}


def test_exif_places_and_times_are_read_back(sample: Path, rows: list[Row]) -> None:
    sydney = probe((sample / "site" / "journey" / "sydney-flower.jpg").read_bytes())
    assert sydney.latitude == pytest.approx(-33.8678, abs=1e-4)
    assert sydney.longitude == pytest.approx(151.2073, abs=1e-4)
    assert sydney.camera == "Lakelens Sample-35"
    assert sydney.taken_at is not None and sydney.taken_at.isoformat().startswith("2024-06-10T13:37:48")
    assert {row["gps"] for row in rows if row["path"] == "journey/sydney-flower.jpg"} == {"city:2147714"}


def test_a_finished_sample_is_left_as_it_is_and_a_foreign_folder_is_refused(sample: Path, tmp_path: Path) -> None:
    written = (sample / "manifest.json").stat().st_mtime_ns
    assert build(sample) == sample and (sample / "manifest.json").stat().st_mtime_ns == written
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SampleError, match="holds something else than a sample"):
        build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_places_are_found_as_whole_names_in_order_in_any_case() -> None:
    places = {"Rome": "city:1", "Paris": "city:2", "France": "country:FR"}
    assert places_in("From PARIS, France, to Rome", places) == ["city:2", "country:FR", "city:1"]
    assert places_in("Romeo in Parisienne", places) == []
    assert places_in(None, places) == []


def test_drawing_twice_gives_the_same_bytes() -> None:
    wall = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20)
    signs = [sample_pictures.jpeg(sample_signs.sign("town", ["Lima"], wall))[0] for _ in range(2)]
    assert signs[0] == signs[1]
    pictures = [Image.new("RGB", (64, 48), (40 * i, 90, 200)) for i in range(6)]
    clips = [sample_clips.encode(pictures, Fraction(10), ".mp4") for _ in range(2)]
    assert clips[0] == clips[1]


@pytest.mark.parametrize("extension", sorted(sample_clips.FORMATS))
def test_clips_are_readable_in_every_container(extension: str) -> None:
    pictures = [Image.new("RGB", (64, 48), (40 * i, 90, 200)) for i in range(4)]
    clip = sample_clips.encode(pictures, Fraction(4), extension)
    ((time_ms, picture), *_) = key_frames(clip, max_frames=4, max_pixels=MAX_PIXELS)
    assert time_ms == 0 and picture.shape == (48, 64, 3)


def test_a_turned_clip_is_shown_upright_by_its_header() -> None:
    tall = np.zeros((48, 64, 3), np.uint8)
    tall[:, :8] = 255  # white left edge, which a quarter turn clockwise puts on top
    clip = sample_clips.encode([Image.fromarray(tall)] * 2, Fraction(2), ".mp4", rotation=90)
    ((_, picture), *_) = key_frames(clip, max_frames=1, max_pixels=MAX_PIXELS)
    assert picture.shape == (64, 48, 3)
    assert picture[:6].mean() > 200 and picture[16:].mean() < 40


def test_a_cut_clip_keeps_its_first_pictures_only_where_its_index_comes_first() -> None:
    noise = np.random.default_rng(3)
    pictures = [Image.fromarray(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(60)]
    clip = sample_clips.encode(pictures, Fraction(10), ".mp4")
    first, last = (sample_clips.remuxed(clip, index_first=is_first) for is_first in (True, False))
    assert [ms for ms, _ in key_frames(first[: len(first) // 2], max_frames=8, max_pixels=MAX_PIXELS)]
    with pytest.raises(DecodeError) as e:
        list(key_frames(last[: len(last) // 2], max_frames=8, max_pixels=MAX_PIXELS))
    assert e.value.code == "no_frames"
