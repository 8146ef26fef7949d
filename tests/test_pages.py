"""HTML as it is met: what pages link to, show and forbid, and pages made to break whoever reads them."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from resiliparse.parse.html import HTMLTree

from jobs.markup import MAX_TEXT, Tag, decoded, plain_text, tokens
from jobs.pages import MAX_LINKS, MAX_MEDIA, MAX_TAGS, Link, Page, read_page, srcset_candidates, suffix_of

URL = "https://site.example/blog/post?id=1"


def page(html: str | bytes, content_type: str | None = "text/html; charset=utf-8", **given: Any) -> Page:
    body = html if isinstance(html, bytes) else html.encode()
    return read_page(body, URL, content_type=content_type, **given)


def media(html: str) -> list[tuple[str, str | None, str]]:
    """Media of a page, URLs without the start that all have."""
    return [(m.url.removeprefix("https://site.example/blog/"), m.caption, m.kind) for m in page(html).media]


def urls(html: str) -> list[str]:
    return [url for url, _, _ in media(html)]


def caption(html: str) -> str | None:
    (found,) = media(html)
    return found[1]


# -- links --------------------------------------------------------------------------------------------------------


def test_links_are_canonical_each_once_and_of_whatever_host() -> None:
    html = """
        <a href="../about#team">x</a><A HREF='/about'>x</A><area href=//other.example:8080/a?b&amp;c>
        <link rel="NEXT" href="?p=3"><link rel=prev href=?p=1><a href=" \n?utm_source=x&copy=1&id=2 ">x</a>
        <a>none</a><iframe src=/frame></iframe><link rel=stylesheet href=/style>
    """
    assert [link.url for link in page(html, drop=("utm_*",)).links] == [
        "https://site.example/about",
        "https://other.example:8080/a?b&c",
        "https://site.example/blog/post?p=3",
        "https://site.example/blog/post?p=1",
        "https://site.example/blog/post?copy=1&id=2",
    ]


@pytest.mark.parametrize(
    "href", ["javascript:go()", "mailto:a@b.c", "data:text/html,x", "blob:https://a/b", "http://a:25/", "http://[", ""]
)
def test_what_cannot_be_fetched_is_no_link_and_no_medium(href: str) -> None:
    found = page(
        f'<a href="{href}">x</a><img src="{href}"><video src="{href}"></video><link rel=canonical href="{href}">'
    )
    assert (found.links, found.media) == ((), ())


def test_a_link_is_nofollow_only_where_each_link_to_it_is() -> None:
    html = """
        <a rel="ugc NOFOLLOW" href=/a>x</a><a rel=nofollow href=/b>x</a><a href=/b>x</a><a rel=notnofollow href=/c>x</a>
        <a rel=nofollow href=/c>x</a>
    """
    assert page(html).links == (
        Link("https://site.example/a", nofollow=True),
        Link("https://site.example/b", nofollow=False),
        Link("https://site.example/c", nofollow=False),
    )


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("<base href=https://cdn.example/x/>", "https://cdn.example/x/a"),
        ("<base target=_top><base href=/x/><base href=/y/>", "https://site.example/x/a"),
        ("<base href=data:text/plain,x>", "https://site.example/blog/a"),
        ("<base href=javascript:1><base href=/y/>", "https://site.example/blog/a"),
        ("<!-- <base href=/no/> --><p title='<base href=/no/>'>", "https://site.example/blog/a"),
    ],
)
def test_a_base_holds_for_the_whole_page_also_for_what_stands_before_it(base: str, url: str) -> None:
    found = page(f"<link rel=next href=a>{base}<img src=a>")
    assert ([link.url for link in found.links], [m.url for m in found.media]) == ([url], [url])


def test_the_title_is_the_first_that_says_something() -> None:
    html = """
        <svg><title>Icon</title></svg><title> Caf&eacute;\n &lt;b&gt;&nbsp;&#x1F600; <b>x</b>\0</title>
        <title>Second</title>
    """
    assert page(html).title == "Café <b> 😀 <b>x</b>"
    assert page("<title></title>x<p>").title is page("").title is None
    assert page("<title>" + "x" * 50_000).title == "x" * MAX_TEXT


# -- media --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<img src=a.png alt=A>", [("a.png", "A", "img")]),
        ("<IMG ALT='' SRC='a b.png'/>", [("a%20b.png", None, "img")]),
        ("<img src=s srcset='m 200w, l 800w, xs 20w'>", [("l", None, "img")]),
        ("<img src=s srcset='m 2x, l 1.5x'>", [("m", None, "img")]),
        ("<img src=s srcset='t 0.5x'>", [("s", None, "img")]),
        ("<img src=data:image/gif;base64,R0 data-src=real>", [("real", None, "img")]),
        ("<img data-src=s data-srcset='m 2x, l 4x'>", [("l", None, "img")]),
        ("<img src=shown data-src=other>", [("shown", None, "img")]),
        ("<img srcset='http://a:25/ 900w, ok 5w'>", [("ok", None, "img")]),
        (
            "<picture><source srcset='a.avif 100w, b.avif 900w' type=image/avif><source srcset='c 999w' type=text/x>"
            "<img src=c.jpg alt=C></picture><img src=d>",
            [("b.avif", "C", "picture"), ("d", None, "img")],
        ),
        ("<picture><source srcset=a.webp><img src=a.jpg></picture>", [("a.jpg", None, "picture")]),
        ("<picture><source srcset='big 900w'></picture><img src=other>", [("other", None, "img")]),
        ("<picture><source srcset='big 9w'><img><img src=b>", [("big", None, "picture"), ("b", None, "img")]),
        ("<video src=a.mp4 poster=p.jpg title=V></video>", [("a.mp4", "V", "video")]),
        (
            "<video><source src=a.m3u8><source src=b type=application/x-mpegurl><source src=c type='video/webm;x'>"
            "<source src=d></video>",
            [("c", None, "video")],
        ),
        ("<audio><source src=a.ogg></audio><source src=b.mp4>", []),
        ("<a href=big.JPG?x=1>the <b>big</b> one</a>", [("big.JPG?x=1", "the big one", "a")]),
        (
            "<a href=f.jpg><img src=t.jpg alt='A &amp;amp; B'></a>",
            [("f.jpg", "A &amp; B", "a"), ("t.jpg", "A &amp; B", "img")],
        ),
        ("<a href=page.html>x</a><a href=/x.png/>y</a><a href=/?a.png>z</a>", []),
        ("<link rel=image_src href=a>", [("a", None, "link")]),
        (
            "<meta property=og:image content=a><meta property=og:image:secure_url content=b>"
            "<meta property=og:image:alt content='A &lt; B'><meta property=og:image content=c>"
            "<meta name=twitter:image content=d><meta property=og:video content=e>",
            [(u, c, "meta") for u, c in (("a", "A < B"), ("b", "A < B"), ("c", None), ("d", None), ("e", None))],
        ),
        ("<meta property=og:image:url content=a><meta property=og:title content=b>", [("a", None, "meta")]),
        ("<noscript><img src=a></noscript><template><img src=b><title>t</title></template>", [("a", None, "img")]),
        ("<script>'<img src=a>'</script><style><img src=b></style><textarea><img src=c></textarea>", []),
        (
            "<!-- <img src=a> --><!--> <img src=b> <!--x--!><img src=c><![CDATA[<img src=d>]]>",
            [("b", None, "img"), ("c", None, "img")],
        ),
        ("<p title='<img src=a>'><img src=b", []),
    ],
)  # fmt: skip
def test_media_are_found_wherever_pages_put_them(html: str, expected: list[tuple[str, str | None, str]]) -> None:
    assert media(html) == expected


@pytest.mark.parametrize(
    ("size", "is_shown"),
    [
        ("width=1 height=1", False),
        ("width=' 1px'", False),
        ("height=0", False),
        ("height=002.5", False),
        ("width=3 height=3", True),
        ("width=1%", True),
        ("width=100 height=auto", True),
        ("width=''", True),
        ("width=" + "1" * 10_000, True),
    ],
)
def test_an_image_of_a_pixel_or_two_is_no_medium(size: str, is_shown: bool) -> None:
    assert bool(media(f"<img src=a {size}>")) == is_shown


@pytest.mark.parametrize(
    ("srcset", "candidates"),
    [
        ("a", [("a", False, 1)]),
        ("a, b 2x", [("a", False, 1), ("b", False, 2)]),
        ("a 100w,b 200w", [("a", True, 100), ("b", True, 200)]),
        ("a,b 2x", [("a,b", False, 2)]),
        ("/c_fill,w_3/a.jpg 3w, /w_6,x/a.jpg 6w", [("/c_fill,w_3/a.jpg", True, 3), ("/w_6,x/a.jpg", True, 6)]),
        ("data:image/png;base64,iVBO= 1x, b 2x", [("data:image/png;base64,iVBO=", False, 1), ("b", False, 2)]),
        (" , a ,\n\t,, b,, c 2x,", [("a", False, 1), ("b", False, 1), ("c", False, 2)]),
        ("a 1e1x, b .5x, c 0x", [("a", False, 10), ("b", False, 0.5), ("c", False, 0)]),
        ("a 100w 50h, b 50h 7w", [("a", True, 100), ("b", True, 7)]),
        ("a (x, y) 2x, b 3x", [("b", False, 3)]),
        ("a 0w, b -1x, c 1.x, d w, e 1W, f 2w 2x, g 1w 1w, h 1q, i 5h, j 2x, k 3x 5h", [("j", False, 2)]),
        ("a 1w (unclosed, b 2w", []),
        (",,,", []),
        ("", []),
    ],
)  # fmt: skip
def test_srcset_is_parsed_as_the_standard_says(srcset: str, candidates: list[tuple[str, bool, float]]) -> None:
    assert [(url, *rank) for rank, url in list(srcset_candidates(srcset))] == candidates


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<figure><img src=a alt=' an\n alt ' title=T><figcaption>F</figcaption></figure>", "an alt"),
        (
            "<figure><img src=a alt=' ' title=T><figcaption>the <i>fig</i>ure<br>cap&shy;tion &copy</figcaption>",
            "the figure cap\xadtion ©",
        ),
        ("<figure><figcaption>before</figcaption><a><img src=a></a>words</figure>", "before"),
        ("<figure></figure><figcaption>of no figure</figcaption><img src=a title=T>", "T"),
        ("<figure><figure><img src=a></figure><figcaption>of the outer</figcaption></figure>", None),
        ("<figure><img src=a title=T><figcaption></figure>words", "T"),
        ("<a href=/x>a<template>b</template><script>c</script><style>d</style>e<img src=a></a>", "a e"),
        ("<a href=/x title=A>see <img src=a><p>this</a> and that", "see this"),
        ("<a href=/x>see</a><img src=a>", None),
        ("<a href=/x>one<a href=/y>two<img src=a></a>", "two"),
        ("<img src=a><img src=a alt=late><img src=a alt=later>", "late"),
        ("<img src=a alt='&lt;b&gt; &#0;&#x110000;&#99999999999; &bogus; &am'>", "<b> \ufffd\ufffd\ufffd &bogus; &am"),
        ("<img src=a alt=x alt=y>", "x"),
        ("<img src=a alt='" + "é" * 20_000 + "'>", "é" * MAX_TEXT),
    ],
)  # fmt: skip
def test_a_caption_is_the_first_that_is_there(html: str, expected: str | None) -> None:
    assert caption(html) == expected


def test_a_suffix_is_that_of_the_path() -> None:
    given = {"http://a.mp4/": "", "http://a/b.JPG": "jpg", "http://a/b.c/d?e.png": "", "http://a/b.png?c=/d.e": "png"}
    assert {url: suffix_of(url) for url in given} == given


# -- directives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<meta name="robots" content="NOAI, noimageai">', {"noai", "noimageai"}),
        ("<META NAME=LakeLens CONTENT=noindex><meta name=robots content=nofollow>", {"noindex", "nofollow"}),
        ("<meta content='noindex noai' name=' robots '>", {"noindex", "noai"}),
        ("<meta name=robots content='max-snippet: 5, ,Noindex: A b'>", {"max-snippet: 5", "noindex: a b"}),
        ("<meta name=otherbot content=noai><meta name=description content=noai>", set()),
        ("<meta name=tdm-reservation content=' 1 '>", {"tdm-reservation"}),
        ("<meta name=tdm-reservation content=0><meta name=tdm-reservation>", set()),
        ("<p><div><meta name=robots content=none>", {"none"}),
        ("<!-- <meta name=robots content=noai> --><script><meta name=robots content=noai></script>", set()),
    ],
)  # fmt: skip
def test_directives_are_those_for_all_robots_and_for_ours(html: str, expected: set[str]) -> None:
    assert page(html).directives == expected


# -- encodings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "title"),
    [
        ("ü€".encode(), None, "ü€"),
        ("ü€".encode("utf-8-sig"), "text/html; charset=shift_jis", "ü€"),
        ("\ufeffü€".encode("utf-16-le"), "text/html; charset=utf-8", "ü€"),
        ("\ufeffü€".encode("utf-16-be"), None, "ü€"),
        ("ü€".encode("cp1252"), "text/html; charset=ISO-8859-1", "ü€"),
        ("日本".encode("shift_jis"), 'text/html; Charset="x-sjis"', "日本"),
        ("日本".encode("euc_jp"), "text/html; charset=bogus", "日本"),
        ("Привет".encode("koi8-r"), "text/html; charset='koi8-r'", "Привет"),
        ("ü".encode(), "text/html; charset=latin1", "Ã¼"),
        (b"\xff\xfe\xfd a"[1:], "text/html; charset=utf-8", "\ufffd\ufffd a"),
        ("ü".encode(), "text/html; charset=utf-7", "ü"),
        ("ü".encode(), "text/html; charset=rot13", "ü"),
        ("ü".encode(), "text/html; charset=", "ü"),
        ("ü".encode(), "\ud800\0; charset=\0", "ü"),
    ],
)
def test_the_encoding_is_that_of_the_bom_then_the_header_and_a_bad_one_is_none(
    body: bytes, content_type: str | None, title: str
) -> None:
    utf16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(body[:2], "ascii")
    bom = next((bom for bom in (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff") if body.startswith(bom)), b"")
    meta = "<meta charset=euc-jp>" if content_type is not None and "bogus" in content_type else ""
    html = bom + f"{meta}<title>".encode(utf16) + body.removeprefix(bom) + "</title>".encode(utf16)
    assert page(html, content_type).title == title


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("<meta http-equiv=content-type content='text/html; charset=windows-1251'>", "cp1251"),
        ("<META\nCHARSET = 'windows-1251' >", "cp1251"),
        ("<!-- <meta charset=euc-jp> --><meta charset=windows-1251>", "cp1251"),
        ("<?xml version='1.0' encoding='windows-1251'?>", "cp1251"),
        ("<meta charset=utf-16>", "utf-8"),
        ("<meta charset=bogus>", "utf-8"),
        (" " * 1024 + "<meta charset=euc-jp>", "utf-8"),
        (" " * 200_000, "utf-8"),
    ],
)
def test_a_page_may_declare_its_encoding_and_is_utf8_where_it_can_be(head: str, encoding: str) -> None:
    assert decoded(f"{head}<title>Привет, мир".encode(encoding), "text/html").endswith("Привет, мир")


def test_an_encoding_that_nobody_names_is_detected() -> None:
    text = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 5
    assert decoded(text.encode("cp1251"), None) == text


# -- pages that are made to break -----------------------------------------------------------------------------------


def test_tags_and_attributes_are_those_of_a_conforming_parser() -> None:
    pieces = [
        *("<img ", "<img", "<IMG\t", "src", "=", '"', "'", ">", "/", "a", "b", " ", "\n", "&amp;", "&copy", "&copy="),
        *("<!--", "-->", "--", "<", "</p>", "<b>", "</", "&#65;", "&#x80", "!", "?", "<title>", "</title>", "&"),
        *("&notit;", "<style ", "</style>", "-", ";", "<textarea>", "</textarea\n>", "<script>", "</script>"),
    ]
    drawn = random.Random(0)
    n_images = 0
    for _ in range(5_000):
        html = "".join(drawn.choices(pieces, k=drawn.randint(1, 25)))
        if "<script>" in html and "<!--" in html:
            continue  # a script in a comment in a script, of which `jobs.markup` says that it ends later
        found = [token.attributes() for token in tokens(html, {"img"}) if isinstance(token, Tag) and not token.closes]
        document = HTMLTree.parse(html).document
        assert document is not None
        images = document.query_selector_all("img")
        assert found == [{name: image.getattr(name) or "" for name in image.attrs} for image in images], html
        n_images += len(images)
    assert n_images > 500


@pytest.mark.parametrize("size", [100, 1_000])
def test_bytes_at_random_are_a_page(size: int) -> None:
    drawn = random.Random(size)
    for _ in range(300):
        body = drawn.randbytes(size)
        read_page(body, URL, content_type=drawn.choice([None, "text/html; charset=gb18030", "x; charset=iso-2022-jp"]))
        plain_text(body.decode("latin-1"))


FONTS = "".join(f"<font c={n}>" for n in range(1_000))


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 100_000 + "<img src=end>",
        "<figure><figcaption><picture><svg><a href=x>" * 20_000 + "<img src=end>",
        f"<table>{FONTS}" + "<tr>x" * 20_000 + "<img src=end>",
        "<img " + "".join(f"a{n}=1 " for n in range(200_000)) + "src=end>",
        "<img alt='" + "&" * 5_000_000 + "' src=end>",
        "<img srcset='" + "(" * 5_000_000 + "' src=end>",
        "<a href=x>" + "y" * 5_000_000 + "<img src=end>",
        "<!--x--><b <b>" * 300_000 + "<img src=end>",
    ],
    ids=["nested", "nested elements", "fonts in cells", "attributes", "ampersands", "srcset", "text", "tags in tags"],
)
def test_a_page_that_would_take_a_tree_minutes_or_gigabytes_is_read_in_seconds(html: str) -> None:
    started = time.perf_counter()
    assert "https://site.example/blog/end" in [m.url for m in page(html).media]
    assert time.perf_counter() - started < 15


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "<",
            "<a",
            "<a ",
            "<a b='",
            '<a b="',
            "<!--",
            "</",
            "<?",
            "<a b=",
            "<script>",
            "<script",
            "<title>",
            "\0",
            "&",
        ),
        *("<img src=a>", "<a href=javascript:1>", "<meta name=robots content=noai>", "</textarea", "\xff", "<a/=/='/"),
    ],
)
def test_ten_megabytes_of_one_piece_are_read_in_seconds(piece: str) -> None:
    started = time.perf_counter()
    page((piece * (10_000_000 // len(piece))).encode("latin-1"), None)
    assert time.perf_counter() - started < 15


def test_so_many_links_media_and_tags_of_a_page_are_taken_and_no_more() -> None:
    many = range(MAX_LINKS + 10)
    found = page("".join(f"<a href={n}>x</a><img src={n}.png>" for n in many) + "<meta name=robots content=noai>")
    assert [link.url.rpartition("/")[2] for link in found.links] == [str(n) for n in many[:MAX_LINKS]]
    assert [m.url.rpartition("/")[2] for m in found.media] == [f"{n}.png" for n in many[:MAX_MEDIA]]
    assert found.directives == {"noai"}
    assert not page("<svg>" * MAX_TAGS + "<img src=a>").media and page("<p>" * MAX_TAGS + "<img src=a>").media
