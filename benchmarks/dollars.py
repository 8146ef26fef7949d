"""Row S3: the share of a full run's dollars that no measured line explains, by a clock outside. Judges no price."""

from __future__ import annotations

import tempfile

from benchmarks.plan import lakelens
from benchmarks.row import Row, machine

MOST = 0.05  # of wall clock x machine price may be unexplained
WHAT = "share of the dollars of the demo's pipeline that no measured line explains; ratio: .05 over it"
NOT_TIME = ("storage", "traffic", "moved", "requests", "unexplained", "total")  # what is not the machine's time


def rows() -> list[Row]:
    """S3: the demo into a lake of its own, as a process whose whole time is paid for."""
    from jobs.config import load_config
    from jobs.dollars import machine_usd_per_s
    from jobs.session import local_cores

    config = load_config()
    n_cores = local_cores(config.spark.master)
    assert n_cores is not None
    with tempfile.TemporaryDirectory(prefix="lakelens-dollars-") as folder:
        run, wall_s = lakelens("demo", "--lake", f"{folder}/lake", "--port", "0")
    usd: dict[str, float] = run["usd"]
    paid_usd = machine_usd_per_s(config.prices, n_cores=n_cores) * wall_s
    explained = {line: dollars for line, dollars in usd.items() if line not in NOT_TIME}
    left_usd = paid_usd - sum(explained.values())
    share = abs(left_usd) / paid_usd
    return [
        Row(
            id="S3",
            what=WHAT,
            unit="share",
            ours=round(share, 4),
            peer=MOST,
            ratio=round(MOST / share, 3),
            reach=1.0,
            peer_version="the limit",
            settings={
                "wall_s": round(wall_s, 1),
                "n_cores": n_cores,
                "paid_usd": round(paid_usd, 6),
                "left_usd": round(left_usd, 6),
                "unexplained_by_the_run_itself": round(usd["unexplained"] / paid_usd, 4),
                "shares": {line: round(dollars / paid_usd, 4) for line, dollars in explained.items()},
                **machine(),
            },
        )
    ]
