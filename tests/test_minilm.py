"""Sentence vectors: the same alone and in a batch, near for near meanings."""

from __future__ import annotations

import numpy as np
import pytest

from featurizers.minilm import MINILM_DIM, MINILM_WEIGHTS, TextEncoder, load_text_encoder
from featurizers.weights import fetch


@pytest.fixture(scope="module")
def encode() -> TextEncoder:
    return load_text_encoder({w.name: fetch(w.uri, w.sha256) for w in MINILM_WEIGHTS})


def test_a_text_has_the_same_vector_alone_and_beside_longer_and_shorter_ones(encode: TextEncoder) -> None:
    texts = ["Paris", "a man rides a bicycle in the rain", "", "x " * 300, "São Paulo"] * 9
    together = encode(texts)
    alone = np.concatenate([encode([text]) for text in texts[:5]])
    assert together.dtype == np.float32 and together.shape == (45, MINILM_DIM)
    assert np.all((together * np.tile(alone, (9, 1))).sum(axis=1) > 1 - 1e-6)


def test_vectors_have_unit_norm_and_the_order_of_the_texts(encode: TextEncoder) -> None:
    texts = ["a very long sentence about nothing in particular at all", "dog", "a dog in a park"]
    vectors = encode(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[1], encode(["dog"])[0], atol=1e-5)
    assert np.allclose(vectors[::-1], encode(texts[::-1]), atol=1e-5)


def test_near_meanings_are_nearer_than_others(encode: TextEncoder) -> None:
    cat, kitten, tax = encode(["a photo of a cat", "a picture of a kitten", "the tax return is due in May"])
    assert cat @ kitten > 0.6 > 0.2 > cat @ tax


def test_case_does_not_matter(encode: TextEncoder) -> None:
    lower, upper = encode(["new york", "NEW YORK"])
    assert np.allclose(lower, upper, atol=1e-6)


def test_no_texts_give_no_vectors(encode: TextEncoder) -> None:
    assert encode([]).shape == (0, MINILM_DIM)
