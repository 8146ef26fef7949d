"""What is shown of a running job: how far it is, when it ends, what it has cost, on a terminal and elsewhere."""

from __future__ import annotations

import time

import pytest

from jobs import progress
from jobs.progress import Progress, media_line, readable_s, readable_usd


def test_the_line_says_how_far_it_is_how_fast_when_it_ends_and_what_it_cost() -> None:
    line = media_line(done=812, planned=2000, n_failed=3, elapsed_s=40.6, usd=0.00096)
    assert line == "[########............] 812 of 2,000 media  20.0/s  3 errors  ETA 59 s  $0.00096"


def test_before_the_first_media_no_end_is_promised_and_a_task_tried_again_does_not_pass_the_end() -> None:
    assert "ETA -" in media_line(done=0, planned=10, n_failed=0, elapsed_s=5, usd=0)
    assert "10 of 10 media" in media_line(done=13, planned=10, n_failed=0, elapsed_s=5, usd=0)


@pytest.mark.parametrize(("seconds", "text"), [(43.4, "43 s"), (144, "2.4 min"), (600, "10 min"), (18_720, "5.2 h")])
def test_durations_are_in_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert readable_s(seconds) == text


@pytest.mark.parametrize(
    ("usd", "text"), [(1234.5, "$1,234.50"), (0.0317, "$0.032"), (0.00096, "$0.00096"), (0, "$0.00")]
)
def test_dollars_below_one_keep_two_digits_that_mean_something(usd: float, text: str) -> None:
    assert readable_usd(usd) == text


def test_elsewhere_than_on_a_terminal_a_phase_that_changes_is_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_S", 0.05)
    shown = Progress(live=False)
    counted = iter(range(1000))
    with shown.shown():
        shown("planning")
        time.sleep(0.2)
        shown(lambda: f"{next(counted)} media")
        time.sleep(0.3)
        shown("measuring")
        shown.note("what limited it")
    lines = [line.split(" s  ")[1] for line in capsys.readouterr().err.splitlines()]
    changing = [line for line in lines if line.endswith("media")]
    assert changing == [f"{i} media" for i in range(len(changing))] and len(changing) > 2
    assert [line for line in lines if line not in changing] == ["planning", "measuring", "what limited it"]
    assert [text for text, _ in shown.phases] == ["planning", "0 media", "measuring"]
