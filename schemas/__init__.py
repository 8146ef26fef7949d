"""The tables of a lake, each a value. Knows pyarrow only: no Spark, no model."""

from schemas.documents import DOCUMENTS
from schemas.evaluations import EVALUATIONS
from schemas.features import FEATURES
from schemas.fetches import FETCHES
from schemas.frames import FRAMES
from schemas.golden import GOLDEN
from schemas.media import MEDIA
from schemas.mentions import MENTIONS
from schemas.runs import RUNS
from schemas.table import Table

TABLES: tuple[Table, ...] = (FETCHES, DOCUMENTS, MEDIA, FRAMES, FEATURES, MENTIONS, GOLDEN, EVALUATIONS, RUNS)

__all__ = [
    "DOCUMENTS",
    "EVALUATIONS",
    "FEATURES",
    "FETCHES",
    "FRAMES",
    "GOLDEN",
    "MEDIA",
    "MENTIONS",
    "RUNS",
    "TABLES",
    "Table",
]
