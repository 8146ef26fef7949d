"""Every line of the cost is measured on its own, the lines and what they leave add up to wall clock x machine price."""

from __future__ import annotations

import random

import pytest

from jobs.config import ConfigError, Prices, load_config
from jobs.dollars import (
    Attempt,
    Held,
    core_seconds,
    cost_lines,
    cost_usd,
    cost_usd_per_million,
    engine_s,
    gpu_seconds,
    held_core_s,
    joined,
    machine_usd,
    machine_usd_per_s,
    paid,
    said,
    unexplained_share,
)
from jobs.metrics import RunMetrics, merge
from jobs.stage_times import StageTimes
from tests.rows import CONCEPT, OBJECT

PRICES = Prices(
    usd_per_core_hour=3.6, usd_per_gpu_hour={"h200": 36.0}, usd_per_gb_month=0.5, usd_per_gb_fetched=2.0,
    usd_per_gb_moved=0.25, usd_per_million_requests=100.0,
)  # fmt: skip
TIMES = StageTimes(load_s=1, read_s=2, wait_s=4, infer_s=16, write_s=3, decode_s=5, n_media=9)


def attempt(
    partition: int, began: float, ended: float, *, stage: int = 0, ok: bool = True, worked: float | None = None,
    infers: bool = False, feeds: bool = False,
) -> Attempt:  # fmt: skip
    return Attempt(
        stage=stage, partition=partition, launched_s=began, finished_s=ended, worked_s=worked, succeeded=ok,
        infers=infers, feeds=feeds,
    )  # fmt: skip


def spent(*attempts: Attempt, cores: int = 2, engine: StageTimes | None = None, cpus: int = 1) -> dict[str, float]:
    """Core seconds by line of a job of ten seconds."""
    return core_seconds(
        "check", attempts, during=(0, 10), held=[Held(cores)], cpus_per_task=cpus, engine=engine, unseen_s=0
    )


def test_a_jobs_tasks_its_tail_and_the_time_of_the_driver_are_lines_of_their_own() -> None:
    found = spent(attempt(0, 1, 4, worked=2.9), attempt(1, 1, 6, worked=4.8))
    assert found == {
        "check": pytest.approx(7.7),
        "waste": 0,
        "idle/tail": pytest.approx(2),  # from 4 to 6 one of two cores
        "idle/driver": pytest.approx(10),  # from 0 to 1 and from 6 to 10 both
    }


def test_what_executors_did_not_report_of_a_task_that_ended_well_stays_unexplained() -> None:
    found = spent(attempt(0, 0, 10, worked=9.5), attempt(1, 0, 10, worked=9.0))
    assert 20 - sum(found.values()) == pytest.approx(1.5)


def test_a_failed_task_is_waste_by_what_it_worked_and_by_its_duration_where_its_executor_died() -> None:
    found = spent(
        attempt(0, 0, 3, ok=False, worked=2.5), attempt(1, 0, 4, ok=False), attempt(0, 4, 7, worked=3), cores=2
    )
    assert found["waste"] == pytest.approx(6.5) and found["check"] == pytest.approx(3)


def test_a_task_done_twice_is_waste_but_for_its_last_success() -> None:
    found = spent(attempt(0, 0, 3, worked=3), attempt(0, 4, 8, worked=4), attempt(0, 4, 9, stage=1, worked=5))
    assert (found["waste"], found["check"]) == (pytest.approx(3), pytest.approx(9))


def test_tasks_that_ended_without_being_seen_are_neither_idle_nor_explained() -> None:
    found = core_seconds("check", [], during=(0, 10), held=[Held(2)], cpus_per_task=2, unseen_s=4)
    assert found["idle/driver"] == pytest.approx(12) and sum(found.values()) == pytest.approx(12)


def test_a_task_counts_for_each_core_that_it_holds_and_only_within_the_job() -> None:
    found = spent(attempt(0, -2, 3, worked=5), cores=4, cpus=2)
    assert found["check"] == 10 and found["idle/tail"] == pytest.approx(6) and found["idle/driver"] == pytest.approx(28)


def test_the_engines_tasks_are_divided_by_its_own_clock() -> None:
    found = spent(
        attempt(0, 0, 10, infers=True, worked=27), attempt(3, 0, 1, feeds=True, worked=0.5, stage=1), engine=TIMES
    )
    assert sum(engine_s(TIMES).values()) == 26
    assert found["decode"] == pytest.approx(20 * 5 / 21) and found["infer"] == pytest.approx(20 * 16 / 21)
    assert (found["load"], found["read"], found["write"], found.get("check", 0)) == (1, 2.5, 3, 0)


def test_a_job_without_an_engine_has_no_lines_of_one() -> None:
    assert "infer" not in spent(attempt(0, 0, 3, worked=3), engine=StageTimes())


def test_engine_tasks_that_were_done_twice_are_not_counted_twice() -> None:
    once = attempt(0, 0, 4, infers=True, worked=4)
    found = spent(once, attempt(0, 5, 9, infers=True, worked=4), engine=TIMES)
    assert found["waste"] == pytest.approx(4) and found["write"] == pytest.approx(3 / 2)


def test_executors_are_paid_from_when_they_are_added_until_they_are_removed() -> None:
    held = [Held(4, 2, 6), Held(2, 5), Held(0)]
    assert held_core_s(held, (0, 10)) == 4 * 4 + 2 * 5
    found = core_seconds("crawl", [attempt(0, 3, 7, worked=4)], during=(0, 10), held=held, cpus_per_task=1)
    assert found["idle/tail"] == pytest.approx(4 * 3 + 2 * 2 - 4) and found["idle/driver"] == pytest.approx(10)


def test_spans_that_touch_are_one() -> None:
    assert joined([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]


def of_a_run() -> RunMetrics:
    """A run of ten seconds on two cores, one of which nothing is known of for half a second."""
    core_s = {"start": 4.0, "infer": 8.0, "decode": 2.0, "waste": 0.0, "idle/driver": 5.5}
    return RunMetrics(
        n_documents={"": 1000}, infer_total_ms={CONCEPT: 10_000.0, OBJECT: 30_000.0}, fetched_bytes={"": 10**9},
        n_fetches={"": 2000}, stored_bytes={"media": 2 * 10**9}, moved_bytes={"read": 10**9, "written": 3 * 10**9},
        wall_s={"start": 2.0, "featurize": 8.0}, held_core_s={"start": 4.0, "featurize": 16.0}, core_s=core_s,
    )  # fmt: skip


def test_the_lines_and_what_they_leave_add_up_to_the_machine_storage_and_traffic() -> None:
    assert cost_usd(of_a_run(), PRICES) == {
        "start": pytest.approx(0.004),
        "decode": pytest.approx(0.002),
        f"infer/{CONCEPT}": pytest.approx(0.002),
        f"infer/{OBJECT}": pytest.approx(0.006),
        "waste": 0,
        "idle/driver": pytest.approx(0.0055),
        "unexplained": pytest.approx(0.0005),
        "storage": pytest.approx(1.0),
        "traffic": pytest.approx(2.0),
        "moved": pytest.approx(1.0),
        "requests": pytest.approx(0.2),
        "total": pytest.approx(0.020 + 4.2),
    }
    assert machine_usd(of_a_run(), PRICES) == pytest.approx(0.020)
    assert unexplained_share(of_a_run(), PRICES) == pytest.approx(0.025)
    assert cost_usd_per_million(of_a_run(), PRICES)["start"] == pytest.approx(4.0)


def test_lines_that_overlap_leave_less_than_nothing_and_their_share_counts_all_the_same() -> None:
    metrics = merge(of_a_run(), RunMetrics(core_s={"write": 2.5}))
    assert cost_usd(metrics, PRICES)["unexplained"] == pytest.approx(-0.002)
    assert unexplained_share(metrics, PRICES) == pytest.approx(0.1)
    assert "all but 10.0% of it" in paid(metrics, PRICES)


def test_dollars_of_two_runs_are_those_of_their_merged_metrics() -> None:
    random_of = random.Random(1)

    def some() -> RunMetrics:
        core_s = {line: random_of.uniform(0, 9) for line in ("start", "decode", "idle/tail")}
        return RunMetrics(core_s=core_s, held_core_s={"a": 30.0}, gpu_s={"h200/decode": 2.0}, held_gpu_s={"h200": 3.0})

    for _ in range(20):
        a, b = some(), some()
        both = cost_usd(merge(a, b), PRICES)
        assert both == pytest.approx({k: cost_usd(a, PRICES)[k] + cost_usd(b, PRICES)[k] for k in both})


def test_a_gpu_is_paid_with_the_cores_of_its_task_and_belongs_to_what_the_inferring_thread_did() -> None:
    core_s = spent(attempt(0, 0, 10, infers=True, worked=10), cores=8, cpus=8, engine=TIMES)
    gpu_s = gpu_seconds(core_s, kind="h200", gpus_per_core=1 / 8, engine=TIMES)
    assert gpu_s["h200/decode"] == pytest.approx(4) and gpu_s["h200/infer"] == pytest.approx(16)
    metrics = RunMetrics(core_s=core_s, gpu_s=gpu_s, held_core_s={"featurize": 80}, held_gpu_s={"h200": 10})
    assert machine_usd(metrics, PRICES) == pytest.approx(0.080 + 0.100)
    assert machine_usd_per_s(PRICES, n_cores=8, n_gpus=1, gpu_kind="h200") * 10 == pytest.approx(0.180)
    assert cost_usd(metrics, PRICES)["infer"] == pytest.approx(core_s["infer"] / 1000 + 0.160)


def test_without_documents_there_is_no_cost_of_a_million_and_without_a_clock_no_check() -> None:
    assert cost_usd_per_million(RunMetrics(held_core_s={"crawl": 20.0}), PRICES) == {}
    assert unexplained_share(RunMetrics(), PRICES) is None and paid(RunMetrics(), PRICES) == ""
    assert "unexplained" not in cost_usd(RunMetrics(n_documents={"": 3}), PRICES)


def test_lines_of_nothing_are_not_shown_but_for_waste_and_what_is_unexplained() -> None:
    shown = cost_lines(
        {"start": 1.0, "crawl": 0.0, "waste": 0.0, f"infer/{CONCEPT}": 2.0, "unexplained": 0.0, "total": 3.0}
    )
    assert [line for line, _, _ in shown] == ["start", "waste", f"infer/{CONCEPT}", "unexplained"]
    assert said(f"infer/{CONCEPT}") == "inference" and said("compare") == "compare"


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["spark.gpus=2"], r"^spark.gpus is 2 and spark.gpu_kind is None, allowed: a100, h100, h200, l4; "),
        (["spark.gpus=1", "spark.gpu_kind=tpu"], r"spark.gpu_kind is 'tpu', allowed: "),
        (["prices.usd_per_gpu_hour={h200: -1}"], r"prices.usd_per_gpu_hour.h200 = -1"),
        (["prices.usd_per_gpu_hour={a/b: 1}"], r"prices.usd_per_gpu_hour.a/b"),
        (["prices.usd_per_core_hour=.inf"], r"prices.usd_per_core_hour = inf"),
        (["prices.usd_per_cpu_hour=1"], r"prices.usd_per_cpu_hour is not a configuration key; allowed here: .*core"),
    ],
)
def test_a_price_that_is_not_known_is_one_error_before_anything_runs(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(assignments=assignments)


def test_a_kind_of_gpu_of_ones_own_is_one_more_price() -> None:
    config = load_config(assignments=["spark.gpus=1", "spark.gpu_kind=b200", "prices.usd_per_gpu_hour.b200=9"])
    assert machine_usd_per_s(config.prices, n_cores=0, n_gpus=2, gpu_kind=config.spark.gpu_kind) == 18 / 3600
