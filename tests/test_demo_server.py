"""The demo's server answers as a web server does, on loopback only, and nothing outside its folder. Knows no Spark."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from jobs.config import ConfigError, Source, load_config
from jobs.demo import ADDRESS, addressed, demo_overrides, serve
from jobs.sources import sightings


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """The shape of a sample, small."""
    for name, text in {
        "site/index.html": "<h1>pictures</h1>",
        "site/cats/cat.jpg": "a cat",
        "site/cats/no-name": "a cat without a name",
        "site/cats/index.html": "cats",
        "secret.txt": "not served",
        "folder/dog.jpg": "a dog",
        "urls.jsonl": '{"url": "{base}/cats/cat.jpg", "caption": "A cat", "page_url": "{base}/cats/"}\n',
        "linked.jsonl": '{"url": "http://blog.example/", "title": "A blog", "pictures": '
        '[{"src": "{base}/cats/linked.jpg", "alt": "Another cat"}]}\n',
        "listed.jsonl": '{"url": "{base}/cats/listed.jpg", "caption": "A third cat"}\n',
        "site/robots.txt": "User-agent: *\nSitemap: {base}/sitemap.xml\n",
        "content_types.json": '{"cats/no-name": "text/html"}',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def connection(sample: Path) -> Iterator[http.client.HTTPConnection]:
    with serve(sample, port=0) as base_url:
        connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=10)
        yield connection
        connection.close()


Answer = tuple[int, dict[str, str], bytes]


def ask(connection: http.client.HTTPConnection, path: str, *, method: str = "GET", **headers: str) -> Answer:
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def test_one_connection_serves_many_requests(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/cats/cat.jpg")[2] == b"a cat"
    opened = connection.sock
    assert ask(connection, "/cats/missing.jpg")[0] == 404
    assert ask(connection, "/cats/cat.jpg", method="HEAD")[::2] == (200, b"")
    assert ask(connection, "/cats/")[2] == b"cats"
    assert connection.sock is opened, "the server closed the connection in between"


def test_a_known_etag_is_answered_by_not_modified(sample: Path, connection: http.client.HTTPConnection) -> None:
    status, headers, _ = ask(connection, "/cats/cat.jpg")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and "Last-Modified" in headers
    assert ask(connection, "/cats/cat.jpg", If_None_Match=headers["ETag"])[::2] == (304, b"")
    (sample / "site" / "cats" / "cat.jpg").write_text("another cat")
    assert ask(connection, "/cats/cat.jpg", If_None_Match=headers["ETag"])[::2] == (200, b"another cat")


def test_a_planted_content_type_is_said(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/cats/no-name")[1]["Content-Type"] == "text/html"


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "/cats/../../secret.txt", "//etc/hostname"])
def test_nothing_outside_the_site_is_served(connection: http.client.HTTPConnection, path: str) -> None:
    assert ask(connection, path)[0] == 404


def test_it_listens_on_loopback_only_and_stops_with_its_block(sample: Path) -> None:
    with serve(sample, port=0) as base_url:
        assert base_url.startswith(f"http://{ADDRESS}:")
        port = int(base_url.rpartition(":")[2])
        with socket.socket() as other, pytest.raises(OSError):
            other.settimeout(2)
            other.connect(("127.0.0.2", port))
    with socket.socket() as closed, pytest.raises(ConnectionRefusedError):
        closed.connect((ADDRESS, port))


def test_the_same_port_can_be_served_again_at_once(sample: Path) -> None:
    with serve(sample, port=0) as base_url:
        http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=10).request("GET", "/")
    with serve(sample, port=int(base_url.rpartition(":")[2])) as again:
        assert again == base_url


def test_a_taken_port_is_one_error_that_names_it(sample: Path) -> None:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1.*--port"), serve(sample, port=port):
            pass


def test_robots_txt_names_the_sitemap_at_the_address_that_is_served(sample: Path) -> None:
    with serve(sample, port=0) as base_url:
        connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=10)
        _, headers, body = ask(connection, "/robots.txt")
        connection.close()
    assert body.decode() == f"User-agent: *\nSitemap: {base_url}/sitemap.xml\n"
    assert int(headers["Content-Length"]) == len(body)


def test_the_demo_exempts_exactly_its_own_address_and_has_a_source_of_each_kind(sample: Path) -> None:
    config = load_config(overrides=demo_overrides(sample, "http://127.0.0.1:8642"))
    assert config.crawl.allow_addresses == ("127.0.0.1:8642",)
    sources = {source.name: source for source in config.crawl.sources}
    assert {source.kind for source in sources.values()} == set(get_args(Source.model_fields["kind"].annotation))
    assert Path(sources["folder"].uri) == (sample / "folder").resolve()
    assert sources["site"].start == ("http://127.0.0.1:8642/",)
    (row,) = [json.loads(line) for line in Path(sources["web"].uri).read_text().splitlines()]
    assert row["url"] == "http://127.0.0.1:8642/cats/cat.jpg" and row["page_url"] == "http://127.0.0.1:8642/cats/"
    (linked,), (listed,) = list(sightings(sources["wat"])), list(sightings(sources["list"]))
    assert (linked.url, linked.caption) == ("http://127.0.0.1:8642/cats/linked.jpg", "Another cat")
    assert (linked.page_url, linked.page_title) == ("http://blog.example/", "A blog")
    assert (listed.url, listed.caption) == ("http://127.0.0.1:8642/cats/listed.jpg", "A third cat")


def test_the_lists_are_the_same_on_every_run_of_one_port(sample: Path) -> None:
    first = addressed(sample, "http://127.0.0.1:8642")
    before = [path.read_bytes() for path in first.values()]
    again = addressed(sample, "http://127.0.0.1:8642")
    assert again == first and [path.read_bytes() for path in again.values()] == before
