"""Text, tags and attributes of HTML bytes, in linear time. Knows the WHATWG tokenizer, no tree and no link.

No tree is built, for a conforming tree can be made to hold nearly all unclosed formatting elements again in each cell
of a table: of a page of 112 kB resiliparse's HTMLTree makes 7.5 GB in 23 s, and nothing can interrupt it. Every
pattern here consumes what it has looked at (possessive quantifiers, the end of the text closes everything).
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Collection, Iterator
from html.entities import html5
from typing import NamedTuple

MAX_TEXT = 10_000  # characters kept of a text
SPACE = r" \t\n\f\r"  # ASCII whitespace of the WHATWG standards
_PRESCAN_BYTES = 1024  # HTML Standard 13.2.3.2: where a meta element or an XML declaration may name the encoding

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';,>]+)", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_DECLARED = re.compile(
    rb"<meta[\s/][^>]*?charset\s*=\s*[\"']?\s*([^\s\"'/>;]+)|^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"'>]+)",
    re.IGNORECASE,
)

_NAME = rf"(?:=[^{SPACE}/>=]*+|[^{SPACE}/>=]++)"
_VALUE = rf"""(?:"([^"]*+)(?:"|\Z)|'([^']*+)(?:'|\Z)|([^{SPACE}>"'][^{SPACE}>]*+))?+"""
_ATTRIBUTE = re.compile(rf"({_NAME})(?:[{SPACE}]*+=[{SPACE}]*+{_VALUE})?+")
_UNNAMED = _ATTRIBUTE.pattern.replace("(?:", "\0").replace("(", "(?:").replace("\0", "(?:")
_MARKUP = re.compile(
    rf"""<(?:
        (?P<end>/?)(?P<name>[A-Za-z][^{SPACE}/>]*+)(?P<attributes>(?:[{SPACE}/]++|{_UNNAMED})*+)(?P<whole>>|\Z)
        |!--(?:-?>|.*?(?:--!?>|\Z))
        |[!?/][^>]*+(?:>|\Z)
    )""",
    re.DOTALL | re.VERBOSE,
)
_READABLE_RAW = frozenset({"title", "textarea"})
# Elements whose content is text up to their end tag. (A script that holds `<!--<script>` ends one end tag later.)
_RAW = _READABLE_RAW | {"script", "style", "xmp", "iframe", "noembed", "noframes", "plaintext"}
_INLINE = {  # elements that may stand within a word
    *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins"),
    *("kbd", "mark", "nobr", "q", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt"),
    *("u", "var", "wbr"),
}
_REFERENCE = re.compile(r"&(?:#(?:[xX]([0-9a-fA-F]++)|([0-9]++));?|[A-Za-z][A-Za-z0-9]*+[;=]?)")


class Tag(NamedTuple):
    """A start or end tag; `written` is its attributes as the page has them."""

    name: str  # lower case
    closes: bool
    written: str

    def attributes(self) -> dict[str, str]:
        """Attributes by lower-case name; of one name the first counts."""
        found: dict[str, str] = {}
        for name, quoted, apostrophed, bare in _ATTRIBUTE.findall(self.written):
            found.setdefault(name.lower(), quoted or apostrophed or bare)
        return {name: _referenced(value) if "&" in value else value for name, value in found.items()}


def decoded(body: bytes, content_type: str | None) -> str:
    """The text of a page or an XML file: the encoding of its BOM, else of `content_type`, else the one it declares.

    The order of the HTML Standard, 13.2.3.1. Where no known encoding is named, UTF-8 if the bytes are that, else what
    resiliparse detects. Bytes that the encoding does not have become U+FFFD.
    """
    for bom, encoding in _BOMS:
        if body.startswith(bom):
            return body[len(bom) :].decode(encoding, "replace")
    named = _CHARSET.search(content_type or "")
    if encoding := _codec(named[1]) if named else "":
        return body.decode(encoding, "replace")
    declared = _DECLARED.search(_COMMENT.sub(b"", body[:_PRESCAN_BYTES]))
    if encoding := _codec((declared[1] or declared[2]).decode("latin-1")) if declared else "":
        # What could be read as ASCII so far is not UTF-16, whatever it says.
        return body.decode("utf-8" if encoding.startswith("utf-16") else encoding, "replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        from resiliparse.parse.encoding import detect_encoding

        return body.decode(_codec(detect_encoding(body) or "") or "cp1252", "replace")


def _codec(label: str) -> str:
    """Python's name of the encoding that the WHATWG Encoding Standard gives a label, "" for an unknown one."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    name = map_encoding_to_html5(label.strip(), fallback_utf8=False)
    try:
        return codecs.lookup(name).name if name else ""
    except LookupError:
        return ""


def tokens(text: str, names: Collection[str]) -> Iterator[Tag | str]:
    """The tags of HTML whose name is in `names`, and between them the text as written, scripts and styles apart.

    A tag that is not in `names` and does not stand within a word becomes a space. `plain_text` makes text readable.
    """
    text_from, found_all = 0, _MARKUP.finditer(text)
    while (found := next(found_all, None)) is not None:
        if found.start() > text_from:
            yield text[text_from : found.start()]
        text_from = found.end()
        closes, written, attributes, whole = found.groups()
        if not whole:
            continue
        name = written.lower()
        if name in names:
            yield Tag(name, bool(closes), attributes)
        elif name not in _INLINE:
            yield " "
        if name in _RAW and not closes:
            end = re.compile(rf"</{name}(?=[{SPACE}/>])", re.IGNORECASE).search(text, text_from)
            position = end.start() if end else len(text)
            if name in _READABLE_RAW and position > text_from:
                yield text[text_from:position]
            text_from = position
            found_all = _MARKUP.finditer(text, position)
    if text_from < len(text):
        yield text[text_from:]


def plain_text(written: str) -> str:
    """Text of `tokens` with its character references resolved and whitespace collapsed, at most MAX_TEXT characters."""
    written = written[: 10 * MAX_TEXT]
    if "&" in written:
        written = _REFERENCE.sub(lambda found: _number(found) or html.unescape(found[0]), written)
    return " ".join(written.replace("\0", "").split())[:MAX_TEXT].rstrip()


def _referenced(value: str) -> str:
    """An attribute's value with its references resolved: unlike in text, `&copy=1` is a parameter (13.2.5.73)."""
    return _REFERENCE.sub(lambda found: _number(found) or html5.get(found[0][1:], found[0]), value)


def _number(found: re.Match[str]) -> str:
    """The character of a reference by number, "" for one by name."""
    digits = (found[1] or found[2] or "").lstrip("0")
    if not (found[1] or found[2]):
        return ""
    return html.unescape(f"&#{'x' if found[1] else ''}{digits or 0};") or "\ufffd" if len(digits) < 9 else "\ufffd"
