"""What is told of a featurizer without labels is told where it means something, and only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.evaluate import Frame, health_of
from jobs.health import MAX_MEDIA, MIN_MEDIA, figures, said, sample
from jobs.item_metrics import N_COMPONENTS, population_stability_index, vector_shift
from jobs.quality import Answer
from tests.test_evaluate import feature

N = MIN_MEDIA + 100


def answers(n: int = N, dim: int = 12, *, seed: int = 0, score: float = 0.5, n_empty: int = 0) -> list[Answer]:
    """One feature in each of n media, none in the first few."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.clip(random.normal(score, 0.1, n), 0, 1)
    full = [
        Answer(
            vector=vector[None], label=("cat",), score=np.array([value]), box=np.full((1, 4), np.nan), text=(None,)
        )
        for vector, value in zip(vectors, scores, strict=True)
    ]  # fmt: skip
    nothing = Answer(
        vector=np.zeros((0, dim), np.float32), label=(), score=np.zeros(0), box=np.zeros((0, 4)), text=()
    )  # fmt: skip
    return [nothing] * n_empty + full[n_empty:]


def test_empty_results_and_unused_dimensions_are_told_of_any_number_of_media() -> None:
    few = answers(40, n_empty=10)
    found = figures(None, few)
    assert found["share_of_empty"] == 0.25 and 6 < found["effective_dimensions"] <= 12
    flat = [replace(one, vector=np.pad(one.vector[:, :2], ((0, 0), (0, 10)))) for one in few]
    assert 1 < figures(None, flat)["effective_dimensions"] <= 2  # of twelve dimensions two are left
    assert figures(None, answers(3, n_empty=3)) == {"share_of_empty": 1.0}


def test_what_has_not_moved_is_below_little_and_what_has_is_above_much() -> None:
    same, other = figures(answers(), answers(seed=1)), figures(answers(), answers(seed=1, score=0.6))
    assert same["score_shift"] < 0.1 and same["vector_shift"] < 0.1
    assert other["score_shift"] > 0.25 and other["vector_shift"] < 0.1
    turned = [replace(one, vector=np.abs(one.vector)) for one in answers(seed=1)]
    assert figures(answers(), turned)["vector_shift"] > 0.25


def test_a_shift_is_not_told_of_few_media_nor_between_other_dimensions() -> None:
    n_short = N - MIN_MEDIA + 1
    for before, after in ((answers(n_empty=n_short), answers()), (answers(), answers(n_empty=n_short))):
        assert {"score_shift", "vector_shift"}.isdisjoint(figures(before, after))
    longer = figures(answers(), answers(dim=13))
    assert "score_shift" in longer and "vector_shift" not in longer
    without = [replace(one, score=np.array([np.nan])) for one in answers()]
    assert "score_shift" not in figures(without, answers()) and "vector_shift" in figures(without, answers())


@pytest.mark.parametrize("n_in_each", [1, 5])
def test_at_the_least_number_of_media_an_unchanged_distribution_looks_unchanged(n_in_each: int) -> None:
    """The limit's source: 95 of 100 pairs of samples of one distribution are below .1, "little"."""
    random = np.random.default_rng(7)

    def drawn(n: int) -> np.ndarray:
        return np.repeat(random.normal(size=n), n_in_each)

    at_limit = [population_stability_index(drawn(MIN_MEDIA), drawn(MIN_MEDIA)) for _ in range(200)]
    assert np.quantile(at_limit, 0.95) < 0.1 and 12 / MIN_MEDIA < np.mean(at_limit) < 24 / MIN_MEDIA
    at_a_fifth = [population_stability_index(drawn(MIN_MEDIA // 5), drawn(MIN_MEDIA // 5)) for _ in range(200)]
    assert np.quantile(at_a_fifth, 0.95) > 0.25


def test_so_do_vectors_of_which_the_most_shifted_component_counts() -> None:
    random = np.random.default_rng(8)

    def drawn() -> np.ndarray:
        return random.normal(size=(MIN_MEDIA, N_COMPONENTS)).astype(np.float32)

    assert np.quantile([vector_shift(drawn(), drawn()) for _ in range(100)], 0.95) < 0.1


def test_more_media_than_are_looked_at_are_always_the_same_ones() -> None:
    ids = [f"{i * 7919 % 5003:064x}" for i in range(5000)]
    assert len(sample(ids)) == MAX_MEDIA and sample(ids) == sample(ids[::-1]) == sample([*ids, *ids])
    assert sample(ids[:3]) == sorted(ids[:3])


def test_two_featurizers_are_compared_on_the_same_media() -> None:
    rows = answers(N, dim=3)
    after = {f"{i:064x}": [Frame(0, [feature(one.vector[0].tolist(), "cat", 0.5)])] for i, one in enumerate(rows)}
    moved = {
        media_id: [Frame(0, [feature(each[0].features[0]["vector"], "cat", 0.9)])]  # type: ignore[index]
        for media_id, each in reversed(after.items())
    }
    found = health_of(after, moved)
    assert found["vector_shift"] < 0.01 and found["score_shift"] > 0.25 and found["share_of_empty"] == 0
    assert said(found).startswith("0.0% of the media empty, 3 effective dimensions, scores shifted by ")
    assert health_of({}, None) == {}
    beyond = {f"f{i:063x}": [Frame(0, [])] for i in range(MAX_MEDIA)}
    assert health_of(beyond | after, None)["share_of_empty"] == 1 - N / MAX_MEDIA  # the first by id are looked at
