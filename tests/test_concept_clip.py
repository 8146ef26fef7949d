"""Configured CLIP and SigLIP models, as tiny randomly initialised ones saved to disk; no model hub is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurizers import concept_clip
from featurizers.delivery import fit
from featurizers.device import DeviceUnavailable, FixedBatches
from featurizers.spec import FeaturizerSpec, check_features, fingerprint
from featurizers.weights import WeightsError, resolve
from jobs.config import ConfigError, load_config
from jobs.work import configured_spec

WORDS = ["a", "photo", "of", "dog", "cat", "the", "[UNK]", "[PAD]", "[EOS]"]
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "eos_token_id": WORDS.index("[EOS]"),
    "pad_token_id": WORDS.index("[PAD]"),
    "bos_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CLIP_PREPROCESSING = {
    "do_center_crop": True,
    "size": {"shortest_edge": 36},
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.45, 0.40],
    "image_std": [0.26, 0.26, 0.27],
    "resample": 3,
}
SIGLIP_PREPROCESSING = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", WORDS.index("[EOS]"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    ).save_pretrained(folder)


def save_model(architecture: str, folder: Path) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    model: Any
    if architecture == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=20))
        preprocessing = CLIP_PREPROCESSING
    else:
        model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
        preprocessing = SIGLIP_PREPROCESSING
    model.save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture(scope="module", params=["clip", "siglip"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


def loaded(folder: Path) -> tuple[FeaturizerSpec, dict[str, Path], Any]:
    spec, weights = resolve(concept_clip.spec_for("tiny", folder.as_uri()))
    return spec, weights, concept_clip.load(spec, weights, "cpu")


def pictures(spec: FeaturizerSpec, n: int) -> list[Any]:
    generator = np.random.default_rng(7)
    sizes = [(40, 60), (61, 33), (32, 32), (1, 1), (200, 50)][:n]
    return [fit(generator.integers(0, 256, (*size, 3), dtype=np.uint8), spec) for size in sizes]


def test_a_picture_has_the_vector_that_transformers_own_preprocessing_gives(model_folder: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoModel, CLIPImageProcessorPil, SiglipImageProcessorPil

    spec, _, extract = loaded(model_folder)
    picture = np.random.default_rng(1).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    processors = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}
    processor = processors[str(spec.setting["architecture"])].from_pretrained(model_folder)
    pixels = processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(model_folder).get_image_features(pixel_values=pixels).pooler_output[0]
    found = extract([fit(picture, spec)]).vector[0]
    assert found.shape == (spec.dim,)
    assert float(found @ (expected / expected.norm()).numpy()) > 1 - 1e-4


def test_dim_and_size_are_read_from_the_folder(tmp_path: Path) -> None:
    clip = concept_clip.spec_for("a", save_model("clip", tmp_path / "clip").as_uri())
    siglip = concept_clip.spec_for("b", save_model("siglip", tmp_path / "siglip").as_uri())
    assert (clip.id, clip.dim, clip.fit, clip.image_size, clip.short_side) == ("concept_clip.a@1", 20, "crop", 32, 36)
    assert (siglip.id, siglip.dim, siglip.fit, siglip.image_size) == ("concept_clip.b@1", 16, "native", 0)


def test_a_picture_has_one_unit_vector_alone_and_in_a_batch(model_folder: Path) -> None:
    spec, _, extract = loaded(model_folder)
    batch = pictures(spec, 5)
    together = extract(batch)
    check_features(together, spec, 5)
    alone = np.concatenate([extract([picture]).vector for picture in batch])
    assert np.all((alone * together.vector).sum(axis=1) > 1 - 1e-4)
    check_features(extract([]), spec, 0)


@pytest.mark.parametrize(("precision", "furthest"), [("float16", 1e-5), ("bfloat16", 1e-3)])
def test_half_precision_is_another_vector_space_with_nearly_the_same_vectors(
    model_folder: Path, precision: str, furthest: float
) -> None:
    spec, weights, extract = loaded(model_folder)
    half = replace(concept_clip.spec_for("tiny", model_folder.as_uri(), precision), weights=spec.weights)
    batch = pictures(spec, 5)
    vectors = concept_clip.load(half, weights, "cpu")(batch)
    check_features(vectors, half, 5)
    distance = 1 - (vectors.vector * extract(batch).vector).sum(axis=1)
    assert 1e-9 < distance.max() < furthest
    sampling = {"decode_profile": "exact", "frame_sampling": "none"}
    assert fingerprint(half, **sampling) != fingerprint(spec, **sampling)


def test_a_precision_that_is_not_known_is_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="precision is 'int4', allowed: float32, float16, bfloat16"):
        concept_clip.spec_for("tiny", model_folder.as_uri(), "int4")


def test_a_configured_model_is_named_by_its_uri_alone_or_with_a_precision(tmp_path: Path) -> None:
    uri = save_model("clip", tmp_path / "m").as_uri()
    plain = load_config(assignments=[f"featurize.models={{concept_clip.a: '{uri}'}}"]).featurize
    half = load_config(assignments=[f"featurize.models={{concept_clip.a: {{uri: '{uri}', precision: float16}}}}"])
    assert configured_spec("concept_clip.a@1", plain).precision == "float32"
    assert configured_spec("concept_clip.a@1", half.featurize).precision == "float16"
    with pytest.raises(ConfigError, match="precision"):
        load_config(assignments=[f"featurize.models={{concept_clip.a: {{uri: '{uri}', precision: int4}}}}"])


def test_batches_of_one_shape_give_the_vectors_that_each_picture_gives_alone(tmp_path: Path) -> None:
    import torch

    spec, _, extract = loaded(save_model("clip", tmp_path / "m"))
    batch = pictures(spec, 5)
    vectors = torch.from_numpy(extract(batch).vector)

    def forward(pixels: Any) -> Any:  # finds the picture among those known, so that a mixed-up buffer shows
        known = torch.from_numpy(np.stack(batch))
        return vectors[[int((known == one).flatten(1).all(1).int().argmax()) for one in pixels]]

    shape = (spec.image_size, spec.image_size, 3)
    run = FixedBatches(lambda size: concept_clip.GraphLane(forward, "cpu", shape=(size, *shape), dim=spec.dim), 2)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3]):
        assert np.array_equal(run([batch[i] for i in order])[0], vectors.numpy()[order])


def test_a_gpu_that_is_not_there_is_refused(model_folder: Path) -> None:
    import torch

    spec, weights, _ = loaded(model_folder)
    missing = torch.cuda.device_count()
    with pytest.raises(DeviceUnavailable, match=f"^cuda:{missing}: PyTorch sees {missing} GPUs"):
        concept_clip.load(spec, weights, f"cuda:{missing}")


def test_a_text_has_one_unit_vector_of_the_pictures_length_alone_and_in_a_batch(model_folder: Path) -> None:
    spec, weights, _ = loaded(model_folder)
    texts = ["a photo of a dog", "cat", "the " * 40]
    together = concept_clip.text_vectors(texts, weights)
    assert together.shape == (3, spec.dim)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(concept_clip.text_vectors(texts[:1], weights)[0], together[0], atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3)
    assert concept_clip.text_vectors([], weights).shape == (0, spec.dim)


def edited(folder: Path, name: str, **changes: Any) -> str:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder.as_uri()


def test_a_folder_that_is_no_clip_or_siglip_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    uri = edited(save_model("clip", tmp_path / "m"), "config.json", model_type="bert")
    with pytest.raises(WeightsError, match="model_type is 'bert', allowed: clip, siglip"):
        concept_clip.spec_for("m", uri)


def test_weights_in_a_format_that_can_run_code_are_refused(tmp_path: Path) -> None:
    folder = save_model("clip", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"no \*\.safetensors"):
        concept_clip.spec_for("m", folder.as_uri())


def test_a_model_that_lacks_tensors_is_refused_instead_of_filled_with_chance(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model("clip", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 tensors"):
        loaded(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resample": 1}, "resample is 1, allowed: 3"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"crop_size": {"height": 32, "width": 30}}, "a square of whole pixels is needed"),
        ({"size": {"shortest_edge": 20}}, "size is 20, allowed: at least crop_size = 32"),
        ({"crop_size": 24}, "prepared at 24 pixels, its network sees 32"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused_by_name(tmp_path: Path, changes: Any, said: str) -> None:
    uri = edited(save_model("clip", tmp_path / "m"), "preprocessor_config.json", **changes)
    with pytest.raises(WeightsError, match=said):
        concept_clip.spec_for("m", uri)
