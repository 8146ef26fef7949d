"""Sitemaps, feeds and lists of URLs as sites serve them: cut, mislabelled, compressed, and made to break the reader."""

from __future__ import annotations

import gzip
import random
import time
import tracemalloc

import pytest

from jobs.sitemaps import MAX_BYTES, MAX_DEPTH, MAX_URLS, Sitemap, SitemapMedia, read_sitemap

URL = "https://site.example/sitemaps/sitemap.xml"
NAMESPACES = (
    'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:image="http://www.google.com/schemas/sitemap-image/1.1" '
    'xmlns:video="http://www.google.com/schemas/sitemap-video/1.1"'
)


def read(text: str | bytes, url: str = URL, drop: tuple[str, ...] = ()) -> Sitemap:
    return read_sitemap(text if isinstance(text, bytes) else text.encode(), url, drop)


def pages(sitemap: Sitemap) -> list[str]:
    return list(sitemap.pages)


def test_a_sitemap_has_pages_with_images_and_videos_and_what_is_said_of_them() -> None:
    found = read(f"""<?xml version="1.0" encoding="UTF-8"?>
        <urlset {NAMESPACES}>
          <url>
            <image:image>
              <image:loc>https://cdn.example/a.jpg?w=1&amp;h=2</image:loc>
              <image:caption>A  <![CDATA[<b> & ]]> c</image:caption>
              <image:title>T</image:title><image:license>https://l.example/</image:license>
            </image:image>
            <image:image><image:loc>/b.jpg</image:loc></image:image>
            <loc> https://Site.example/a?utm_x=1#f
            </loc><lastmod>2026-01-02</lastmod><priority>1</priority>
          </url>
          <url><loc>http://other.example/</loc>
            <video:video>
              <video:thumbnail_loc>https://cdn.example/thumb.jpg</video:thumbnail_loc>
              <video:title>Film</video:title><video:description>of it</video:description>
              <video:player_loc>https://cdn.example/player</video:player_loc>
              <video:content_loc>https://cdn.example/v.mp4</video:content_loc>
            </video:video>
          </url>
          <url><loc>https://site.example/a</loc><lastmod>later</lastmod></url>
        </urlset>""".strip(), drop=("utm_*",))  # fmt: skip
    page = "https://site.example/a"
    assert found == Sitemap(
        pages=(page, "http://other.example/"),
        media=(
            SitemapMedia("https://cdn.example/a.jpg?w=1&h=2", "A <b> & c", "T", page, "https://l.example/"),
            SitemapMedia("https://site.example/b.jpg", None, None, page, None),
            SitemapMedia("https://cdn.example/v.mp4", "of it", "Film", "http://other.example/", None),
        ),
    )


def test_an_index_has_sitemaps() -> None:
    found = read(
        "<sitemapindex><sitemap><loc>https://a.example/1.xml.gz</loc><lastmod>2026</lastmod></sitemap>"
        "<sitemap><loc>/2.xml</loc></sitemap><sitemap><loc>/2.xml#x</loc></sitemap><sitemap/></sitemapindex>"
    )
    assert found == Sitemap(sitemaps=("https://a.example/1.xml.gz", "https://site.example/2.xml"))


@pytest.mark.parametrize("prefix", ["", "s:", "any-other.prefix:"])
@pytest.mark.parametrize("declared", [True, False])
def test_elements_are_known_by_name_in_any_namespace_declared_or_not(prefix: str, declared: bool) -> None:
    p, xmlns = prefix, f' xmlns:{prefix[:-1]}="urn:x"' if prefix and declared else ""
    item = f"<{p}url><{p}loc>http://a/</{p}loc><i:image><i:loc>http://a/i</i:loc></i:image></{p}url>"
    found = read(f"<{p}urlset{xmlns}>{item}</{p}urlset>")
    assert (pages(found), [m.url for m in found.media], found.problem) == (["http://a/"], ["http://a/i"], None)


def test_rss_has_pages_and_enclosures() -> None:
    found = read("""<rss version="2.0" xmlns:media="http://search.yahoo.com/mrss/"><channel>
        <title>Blog</title><link>https://site.example/</link>
        <image><url>https://site.example/logo.png</url><link>https://site.example/</link></image>
        <item><title>One &amp; only</title><link>/1?a=1&b=2</link><pubDate>Mon, 05 Jan 2026 00:00:00 GMT</pubDate>
          <enclosure url="/1.jpg" type="image/jpeg" length="1"/><enclosure url="/1.mp3" type="audio/mpeg"/>
          <media:group><media:content url="/1.mp4" type="video/mp4"><media:title>Clip</media:title>
            <media:description>moving</media:description></media:content><media:content url="/2.png" medium="image"/>
            <media:content url="/2.html" medium="document"/></media:group>
        </item>
        <item><guid isPermaLink="true">https://site.example/2</guid></item><item><guid>42</guid></item>
        </channel></rss>""", "https://site.example/feed")  # fmt: skip
    page = "https://site.example/1?a=1&b=2"
    assert found.pages == (
        page,
        "https://site.example/2",
    )
    assert found.media == (
        SitemapMedia("https://site.example/1.jpg", None, "One & only", page, None),
        SitemapMedia("https://site.example/1.mp4", "moving", "Clip", page, None),
        SitemapMedia("https://site.example/2.png", None, "One & only", page, None),
    )


def test_atom_has_pages_and_enclosures() -> None:
    found = read("""<feed xmlns="http://www.w3.org/2005/Atom"><title>Blog</title><link href="/"/><id>urn:x</id>
        <entry><content type="xhtml"><div><a href="/no"/><title>no</title><updated>no</updated></div></content>
          <title>One</title><link rel="self" href="/self"/><link href="one?a&amp;b"/><updated>2026-01-01</updated>
          <link rel="enclosure" type="image/png" href="one.png"/><link rel="enclosure" type="audio/x" href="x"/>
        </entry></feed>""", "https://site.example/blog/feed")  # fmt: skip
    assert found.pages == ("https://site.example/blog/one?a&b",)
    assert [(m.url, m.title) for m in found.media] == [("https://site.example/blog/one.png", "One")]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \r\n"])
def test_a_text_has_a_url_a_line(start: bytes) -> None:
    text = (
        start + b"http://a/1\r\n\n  HTTPS://A/2#x \nno url\n/3\nftp://a/4\nhttp://a:25/\nhttp://a/\xc3\xbc\nhttp://a/1"
    )
    assert pages(read(text)) == ["http://a/1", "https://a/2", "http://a/%C3%BC"]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("utf-8", "utf-8"), ("windows-1252", "cp1252"), ("Shift_JIS", "shift_jis"), ("utf-16", "utf-16"), ("no", "utf-8")],
)
def test_a_sitemap_has_the_encoding_that_it_declares(declared: str, encoding: str) -> None:
    letter = "日" if encoding == "shift_jis" else "ü"
    text = f'<?xml version="1.0" encoding="{declared}"?><urlset><url><loc>http://a/{letter}</loc></url></urlset>'
    found = read(text.encode(encoding))
    assert (pages(found), found.problem) == ([read(f"http://a/{letter}").pages[0]], None)


@pytest.mark.parametrize(
    "loc",
    [
        "http://a/?b=1&c=2&copy=3&amp;d",
        "<![CDATA[http://a/?b=1&c=2&copy=3&d]]>",
        "http://a/?b=1&#38;c=2&#x26;copy=3&d",
        "\x00http://a/?b=1\x0b&c=2&copy=3&d\ufffe",
    ],
)
def test_an_ampersand_that_is_not_escaped_and_what_xml_forbids_do_no_harm(loc: str) -> None:
    found = read(f"<urlset><url><loc>{loc}</loc></url></urlset>")
    assert (pages(found), found.problem) == (["http://a/?b=1&c=2&copy=3&d"], None)


def test_what_stands_before_a_break_is_read() -> None:
    whole = "".join(f"<url><loc>http://a/{n}</loc><lastmod>{n}</lastmod></url>" for n in range(3))
    for broken in (
        "<url><loc>http://a/3</loc></oops>",
        "<url><loc>http://a/3</loc><lastm",
        "<url><loc>http://a/3</loc>",
    ):
        found = read(f"<urlset>{whole}{broken}")
        assert pages(found) == [f"http://a/{n}" for n in range(4)] and (found.problem or "").startswith("XML: ")
    assert pages(read(f"<urlset>{whole}<url><loc>http://a/3")) == [f"http://a/{n}" for n in range(3)]
    assert pages(read(f"<urlset>{whole}")) == [f"http://a/{n}" for n in range(3)]


def test_urls_of_a_sitemap_that_are_not_whole_are_no_pages() -> None:
    long = "http://a/" + "x" * 20_000
    locs = "".join(f"<url><loc>{loc}</loc></url>" for loc in ("www.a.example/x", "x", "", "javascript:1", long, "/ok"))
    assert pages(read(f"<urlset>{locs}<url><lastmod>1</lastmod></url></urlset>")) == ["https://site.example/ok"]


@pytest.mark.parametrize(
    "body", ["", " ", "<", "<html><body><a href=/x>x</a>", "<!doctype html><p>404", "{}", "\0" * 99, "<x/>", "&"]
)
def test_what_is_no_sitemap_lists_nothing(body: str) -> None:
    found = read(body)
    assert (found.pages, found.sitemaps, found.media) == ((), (), ())


def test_bytes_at_random_never_raise() -> None:
    drawn = random.Random(0)
    good = gzip.compress(b"<urlset><url><loc>http://a/</loc></url></urlset>")
    for _ in range(500):
        read(drawn.randbytes(drawn.randint(0, 300)))
        read(b"<urlset><url>" + drawn.randbytes(50))
        cut = bytearray(good)
        cut[drawn.randrange(len(cut))] = drawn.randrange(256)
        read(bytes(cut))


# -- compression --------------------------------------------------------------------------------------------------


def test_a_compressed_sitemap_is_read_also_in_several_members_and_with_rubbish_behind() -> None:
    text = b"http://a/1\nhttp://a/2\n"
    assert read(gzip.compress(text)) == read(text)
    assert read(gzip.compress(text[:5]) + gzip.compress(text[5:]) + b"\0" * 9) == read(text)
    rubbish = read(gzip.compress(text) + b"rubbish")
    assert rubbish.pages == read(text).pages and (rubbish.problem or "").startswith("gzip: ")


def test_of_a_cut_compressed_list_the_whole_lines_are_read() -> None:
    drawn = random.Random(0)
    lines = [f"http://a/{drawn.randbytes(20).hex()}" for _ in range(10_000)]
    found = read(gzip.compress("\n".join(lines).encode())[:-50_000])
    assert 1_000 < len(found.pages) < 9_000 and (found.problem or "").startswith("gzip: ")
    assert pages(found) == lines[: len(found.pages)]


def test_a_compression_bomb_is_refused_before_it_has_grown() -> None:
    bomb = gzip.compress(b"http://a/1\n" + b"\n" * (8 * MAX_BYTES), 9)
    started = time.perf_counter()
    tracemalloc.start()
    assert read(bomb) == Sitemap(problem=f"more than {MAX_BYTES} bytes uncompressed")
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    tracemalloc.stop()
    assert read(b"\n" * (MAX_BYTES + 1)).problem == f"more than {MAX_BYTES} bytes uncompressed"
    assert pages(read(gzip.compress(b"http://a/1\n" + b"\n" * (MAX_BYTES - 11), 9))) == ["http://a/1"]
    assert time.perf_counter() - started < 15


# -- files that are made to break -----------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))


@pytest.mark.parametrize(
    "subset",
    [
        f'<!ENTITY l0 "ha">{LAUGHS}',
        '<!ENTITY l9 SYSTEM "file:///etc/hostname">',
        '<!ENTITY l9 SYSTEM "http://127.0.0.1:1/">',
        '<!ENTITY % p SYSTEM "file:///etc/hostname"> %p;',
        '<!ATTLIST url a CDATA "' + "x" * 100_000 + '">',
        '<!ENTITY l9 "http://a/expanded">',
    ],
    ids=["laughs", "file", "network", "parameter", "default attributes", "one entity"],
)
def test_what_a_dtd_declares_is_never_fetched_nor_expanded(subset: str) -> None:
    items = "<url><loc>&l9;</loc></url>" * 20_000
    started = time.perf_counter()
    found = read(f"<!DOCTYPE urlset [{subset}]><urlset>{items}<url><loc>http://a/</loc></url></urlset>")
    assert found == Sitemap(problem="XML: the file brings a DTD of 'urlset'")
    assert time.perf_counter() - started < 5


def test_a_dtd_that_is_only_named_is_not_fetched_and_its_entities_are_text() -> None:
    found = read(
        '<!DOCTYPE urlset SYSTEM "http://127.0.0.1:1/x.dtd"><urlset><url><loc>http://a/?&x;</loc></url></urlset>'
    )
    assert (pages(found), found.problem) == (["http://a/?&x;"], None)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        ("<urlset>", "<url>"),
        ("<urlset>", "<url></url>"),
        ("<urlset>", "<a/>"),
        ("<urlset><url>", "<image/>"),
        ("<urlset><url><loc>", "x"),
        ("<urlset>", "&"),
        ("<urlset>", "<![CDATA["),
        ("<urlset a='", "x"),
        ("<!--", "-"),
        ("", "<"),
        ("", "\n"),
        ("", "http:\n"),
        ("", "\0"),
    ],
)
def test_ten_megabytes_of_one_piece_are_read_in_seconds(start: str, piece: str) -> None:
    started = time.perf_counter()
    read(start + piece * (10_000_000 // len(piece)))
    assert time.perf_counter() - started < 15


def test_a_gzip_of_very_many_empty_members_is_read_in_seconds() -> None:
    started = time.perf_counter()
    assert read(gzip.compress(b"") * 200_000 + gzip.compress(b"http://a/")).pages == ("http://a/",)
    assert time.perf_counter() - started < 15


def test_elements_that_are_open_are_few_for_expat_holds_them_all() -> None:
    found = read("<a>" * MAX_DEPTH + "<url><loc>http://a/</loc></url>" + "<a>" * MAX_DEPTH)
    assert found == Sitemap(problem=f"XML: more than {MAX_DEPTH} elements within each other")


def test_so_many_entries_are_read_and_no_more() -> None:
    numbers = range(MAX_URLS + 5)
    wanted = [f"http://a/{n}" for n in numbers[:MAX_URLS]]
    image = "<image:image><image:loc>http://b/{0}/{1}</image:loc></image:image>"
    of_urls = "".join(
        f"<url><loc>http://a/{n}</loc>{image.format(n, 0)}{image.format(n, 1) if n % 2 else ''}</url>" for n in numbers
    )
    found = read(f"<urlset>{of_urls}</urlset>")
    assert (pages(found), len(found.media), found.problem) == (wanted, MAX_URLS, f"XML: more than {MAX_URLS} URLs")
    listed = read("\n".join(f"http://a/{n}" for n in numbers))
    assert (pages(listed), listed.problem) == (wanted, f"more than {MAX_URLS} URLs")
    index = read("<i>" + "".join(f"<sitemap><loc>http://a/{n}</loc></sitemap>" for n in numbers) + "</i>")
    assert list(index.sitemaps) == wanted
