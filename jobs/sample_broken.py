"""Makes the broken files of the sample, each the way that such files come about. Knows no collection."""

from __future__ import annotations

HTML = b"<!doctype html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"
TEXT = b"This folder holds the pictures of our journey.\nThe originals are on the other disk.\n"
SVG = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="200" height="200">'
    b'<circle cx="100" cy="100" r="80" fill="#0b4ea2"/></svg>\n'
)
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
)
FIXED = {"zero": b"", "html": HTML, "text": TEXT, "svg": SVG, "pdf": PDF}


def broken(make: str, whole: bytes, *, keep: float, index_first: bool) -> bytes:
    """A broken file of a kind, made of the bytes of a sound one.

    keep: share of the bytes that a cut leaves. index_first: of a cut clip, whether its index survives the cut.
    """
    from jobs import sample_clips, sample_pictures

    if make in FIXED:
        return FIXED[make]
    if make == "png_bomb":
        return sample_pictures.png_bomb()
    if make == "png_noise":
        return sample_pictures.png_noise()
    if make == "jpeg_bomb":
        return sample_pictures.jpeg_bomb(whole)
    if make == "cut_clip":
        whole = sample_clips.remuxed(whole, index_first=index_first)
    elif make != "cut":
        raise ValueError(f"{make!r} is no way to break a file")
    return whole[: round(len(whole) * keep)]
