"""One row of the benchmark table, how it is printed and how it is written. Knows no benchmark."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

LATEST = Path(__file__).parent / "results" / "latest.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; a figure that was not measured is None, with the reason in `settings`."""

    id: str
    what: str
    unit: str  # of ours and peer
    ours: float | None
    peer: float | None
    ratio: float | None  # higher is better
    reach: float | None  # what `ratio` is to reach
    peer_version: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


def not_measured(row_id: str, what: str, *, unit: str, reach: float | None, reason: str) -> Row:
    """The row of something that could not be measured here."""
    return Row(
        id=row_id, what=what, unit=unit, ours=None, peer=None, ratio=None, reach=reach, settings={"reason": reason}
    )


def machine() -> dict[str, object]:
    """What the figures depend on."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load_1_min": round(os.getloadavg()[0], 1),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| id | what | ours | peer | unit | ratio | reach | |", "|---|---|---:|---:|---|---:|---:|---|"]
    for row in rows:
        figures = ["-" if value is None else f"{value:.4g}" for value in (row.ours, row.peer, row.ratio, row.reach)]
        if row.ratio is None:
            verdict = str(row.settings.get("reason", "not measured"))
        else:
            verdict = "" if row.reach is None else "reached" if row.ratio >= row.reach else "NOT REACHED"
        ours, peer, ratio, reach = figures
        lines.append(f"| {row.id} | {row.what} | {ours} | {peer} | {row.unit} | {ratio} | {reach} | {verdict} |")
    return "\n".join(lines)


def write(rows: Sequence[Row], path: Path = LATEST) -> None:
    """Write the rows as JSON, replacing those of the same id that are there and keeping the others."""
    kept = {row["id"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    kept.update({row.id: asdict(row) for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([kept[row_id] for row_id in sorted(kept)], indent=1) + "\n")
