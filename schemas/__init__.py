"""The tables of a lake, each a value. Knows pyarrow only: no Spark, no model."""

from schemas.documents import DOCUMENTS
from schemas.evaluations import EVALUATIONS
from schemas.features import FEATURES
from schemas.fetches import FETCHES
from schemas.frames import FRAMES
from schemas.golden import GOLDEN
from schemas.hosts import HOSTS
from schemas.media import MEDIA
from schemas.mentions import MENTIONS
from schemas.runs import RUNS
from schemas.table import Table
from schemas.takedowns import TAKEDOWNS

TABLES: tuple[Table, ...] = (
    *(FETCHES, DOCUMENTS, MEDIA, HOSTS, TAKEDOWNS),
    *(FRAMES, FEATURES, MENTIONS, GOLDEN, EVALUATIONS, RUNS),
)

__all__ = [
    "DOCUMENTS",
    "EVALUATIONS",
    "FEATURES",
    "FETCHES",
    "FRAMES",
    "GOLDEN",
    "HOSTS",
    "MEDIA",
    "MENTIONS",
    "RUNS",
    "TABLES",
    "TAKEDOWNS",
    "Table",
]
