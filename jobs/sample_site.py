"""A document of the sample, and the site that shows them: pages, robots.txt, sitemap. Knows no picture and no Spark."""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
BASE = "{base}"  # stands for the address that the site is served at
SAMPLE = "{sample}"  # stands for the URI of the sample's own folder


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of the sample and what must become of it."""

    path: str  # below the site, the folder or an archive
    source: str = "web"  # that shows it first
    url: str | None = None  # None: by its path on the site
    media_type: str | None = None  # page or sitemap; None for what must be a picture or video
    depth: int | None = None  # of a page, links from the first
    caption: str | None = None
    collection: str | None = None  # the page that shows it
    table: str | None = None  # where an error must stand: documents or features; None: it must succeed
    code: str | None = None
    objects: tuple[str, ...] = ()  # COCO classes that the picture shows
    concepts: tuple[str, ...] = ()  # ImageNet classes, any of which names the picture
    lines: tuple[str, ...] = ()  # text in the picture
    gps: str | None = None  # catalogue id of the nearest place
    photograph: str | None = None  # name of the photograph that it is a form of
    form: str | None = None  # full, small, crop_left, ...
    content: bytes | None = field(default=None, repr=False)  # None: nothing is served there


def file_url(path: str) -> str:
    """The URL of a file of the sample."""
    return f"{SAMPLE}/{urllib.parse.quote(path)}"


def again(document: Document, source: str, path: str, **said: str | None) -> Document:
    """The same bytes as another source shows them."""
    bare: dict[str, str | None] = {"url": None, "caption": None, "collection": None}
    return replace(document, source=source, path=path, **bare | said)  # type: ignore[arg-type]


def site_pages(titles: Mapping[str, str]) -> Iterator[Document]:
    """The pages of the site, by which its pictures are found as well, and its sitemap."""
    yield Document(path="", source="site", media_type="page", depth=0)
    for name in titles:
        yield Document(path=f"{name}/", source="site", media_type="page", depth=1)
    yield Document(path="sitemap.xml", source="site", media_type="sitemap", depth=0)


def _page(title: str, documents: list[Document]) -> str:
    figures = []
    for document in documents:
        name, caption = PurePosixPath(document.path).name, html.escape(document.caption or "")
        shown = f'<img src="{name}" alt="{caption}" loading="lazy">'
        if name.endswith(VIDEO_EXTENSIONS):
            shown = f'<video src="{name}" controls muted preload="metadata" title="{caption}"></video>'
        figures.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    return _html(title, "\n".join(figures))


def _html(title: str, body: str) -> str:
    style = (
        "body{font:16px/1.5 Georgia,serif;margin:2rem auto;max-width:76rem;color:#222;background:#faf9f6}"
        "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1.5rem}"
        "figure{margin:0}img,video{width:100%;border-radius:4px}figcaption{font-size:.85rem;color:#555}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head>\n<body><h1>{html.escape(title)}</h1>\n<main>\n{body}\n</main></body></html>\n"
    )


def write_site(site: Path, documents: list[Document], titles: Mapping[str, str]) -> None:
    """Write the files of documents, a page for each title, and what robots.txt and the sitemap say of them."""
    for name, title in titles.items():
        shown = [d for d in documents if d.collection == name and d.content is not None]
        (site / name).mkdir(parents=True, exist_ok=True)
        (site / name / "index.html").write_text(_page(title, shown))
    links = "\n".join(f'<p><a href="{name}/">{html.escape(title)}</a></p>' for name, title in titles.items())
    (site / "index.html").write_text(_html("A small collection of pictures", links))
    forbidden = "User-agent: *\nDisallow: /private/\nDisallow: /drafts/\n"
    (site / "robots.txt").write_text(f"{forbidden}\nSitemap: {BASE}/sitemap.xml\n")
    located = "\n".join(f"  <url><loc>{BASE}/{name}/</loc></url>" for name in titles)
    namespace = "http://www.sitemaps.org/schemas/sitemap/0.9"
    (site / "sitemap.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="{namespace}">\n{located}\n</urlset>\n'
    )
    for document in documents:
        if document.content is not None:
            path = site / document.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(document.content)
