"""Image vectors by any CLIP or SigLIP of Hugging Face, and text vectors to search them. Knows no model by name.

Which model it is, is configuration: `featurize.models: {concept_clip.vit_b32: "hf://openai/clip-vit-base-patch32@main"}`,
or a folder by file://. Everything about it is read from the folder's own config.json and preprocessor_config.json.
CLIP: Radford et al. 2021, arXiv:2103.00020; SigLIP: Zhai et al. 2023, arXiv:2303.15343.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurizers.device import threads
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, Weights, no_features
from featurizers.weights import WeightsError, fetch

SPECS: tuple[FeaturizerSpec, ...] = ()  # there is none until a model is configured: spec_for
MODEL = "model"
ARCHITECTURES = ("clip", "siglip")
BILINEAR, BICUBIC = 2, 3  # as Pillow and preprocessor_config.json number them
TEXT_BATCH = 64


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants done with a picture before it sees it."""

    fit: Literal["crop", "squeeze"]  # centre of the picture, or all of it with its proportions changed
    side: int  # pixels of what the network sees
    short_side: int  # crop: of the picture that the centre is cut from
    resample: int  # BILINEAR or BICUBIC
    mean: tuple[float, ...]  # of a channel in 0..1
    deviation: tuple[float, ...]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise WeightsError(f"{path} cannot be read as JSON ({e}); a Hugging Face model folder is needed") from e
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, a mapping is needed")
    return value


def _square(value: Any, what: str) -> int:
    """The side of a size that is written as a number, as height and width, or as the shortest edge."""
    if isinstance(value, dict):
        sides = {value[key] for key in ("height", "width", "shortest_edge") if key in value}
        value = sides.pop() if len(sides) == 1 else value
    if isinstance(value, int) and value > 0:
        return value
    raise WeightsError(f"{what} is {value!r}, a square of whole pixels is needed")


def read_preprocessing(folder: Path) -> Preprocessing:
    """The preprocessing that the model in `folder` states; raises WeightsError for one that is not known here."""
    path = folder / "preprocessor_config.json"
    if path.exists():
        stated = _read_json(path)
    else:  # a processor saved as a whole by transformers 5
        path = folder / "processor_config.json"
        stated = _read_json(path).get("image_processor", {})
    for key in ("size", "image_mean", "image_std", "resample"):
        if key not in stated:
            raise WeightsError(f"{path}: {key} is missing")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if stated.get(key, True) is not True:
            raise WeightsError(f"{path}: {key} is {stated[key]!r}, allowed: true")
    if abs(stated.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise WeightsError(f"{path}: rescale_factor is {stated['rescale_factor']!r}, allowed: 1/255")
    resample = stated["resample"]
    size = _square(stated["size"], f"{path}: size")
    # CLIP's files of before 2022 write the shortest edge as a plain number.
    crop = stated.get("do_center_crop", False) or ("crop_size" in stated and "do_center_crop" not in stated)
    allowed = (BICUBIC,) if crop else (BILINEAR, BICUBIC)
    if resample not in allowed:
        raise WeightsError(f"{path}: resample is {resample!r}, allowed: {', '.join(map(str, allowed))}")
    side = _square(stated["crop_size"], f"{path}: crop_size") if crop else size
    if crop and size < side:
        raise WeightsError(f"{path}: size is {size}, allowed: at least crop_size = {side}")
    if not crop and isinstance(stated["size"], dict) and "shortest_edge" in stated["size"]:
        raise WeightsError(f"{path}: size states a shortest edge without a centre crop; height and width are needed")
    return Preprocessing(
        fit="crop" if crop else "squeeze",
        side=side,
        short_side=size,
        resample=resample,
        mean=tuple(map(float, stated["image_mean"])),
        deviation=tuple(map(float, stated["image_std"])),
    )


def _read_config(folder: Path) -> Any:
    """The folder's configuration, with what it leaves out filled in as transformers defines it."""
    architecture = _read_json(folder / "config.json").get("model_type")
    if architecture not in ARCHITECTURES:
        raise WeightsError(f"{folder}: model_type is {architecture!r}, allowed: {', '.join(ARCHITECTURES)}")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder} holds no *.safetensors; other formats can run code and are not loaded")
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def spec_for(variant: str, model_uri: str) -> FeaturizerSpec:
    """The spec of the model at `model_uri` under the name `concept_clip.<variant>@1`.

    Fetches the model. Raises WeightsError where it cannot be had, or is not a CLIP or SigLIP in safetensors.
    """
    folder = fetch(model_uri)
    if not folder.is_dir():
        raise WeightsError(f"{model_uri} is a file, a model folder is needed")
    config = _read_config(folder)
    wanted = read_preprocessing(folder)
    if wanted.side != config.vision_config.image_size:
        raise WeightsError(
            f"{model_uri}: its pictures are prepared at {wanted.side} pixels, "
            f"its network sees {config.vision_config.image_size}"
        )
    dim = config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size
    return FeaturizerSpec(
        family="concept_clip",
        variant=variant,
        version=1,
        kind="concept",
        dim=dim,
        image_size=wanted.side if wanted.fit == "crop" else 0,
        fit="crop" if wanted.fit == "crop" else "native",
        short_side=wanted.short_side if wanted.fit == "crop" else 0,
        batch_size=16,
        weights=(Weights(name=MODEL, uri=model_uri, sha256=None, licence="see the model's card", source=model_uri),),
        settings=(("architecture", config.model_type), ("side", wanted.side), ("resample", wanted.resample)),
    )


def _load_model(folder: Path, device: str) -> Any:
    """The model in float32 on `device`, ready for inference; raises WeightsError where a tensor of it is missing."""
    _read_config(folder)
    import torch
    from transformers import AutoModel

    if device == "cpu":
        torch.set_num_threads(threads())
    model, report = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise WeightsError(
            f"{folder} lacks {len(report['missing_keys'])} tensors: {sorted(report['missing_keys'])[:3]}"
        )
    return model.eval().to(device)


def _unit(output: Any) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = output.pooler_output.float().cpu().numpy()
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def load(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
    """One feature for each picture: its vector of unit norm in the space of `text_vectors`; no label and no score.

    Runs on torch in float32 without TF32. Raises WeightsError for a folder that is not what its spec says.
    """
    import torch
    from PIL import Image as PillowImage

    folder = weights[MODEL]
    wanted = read_preprocessing(folder)
    model = _load_model(folder, device)
    mean, deviation = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (wanted.mean, wanted.deviation)
    )
    resample = PillowImage.Resampling(wanted.resample)
    shape = (wanted.side, wanted.side, 3)
    exact = torch.backends.cudnn.flags(allow_tf32=False) if device != "cpu" else nullcontext()

    def squeezed(image: Image) -> Image:
        return np.array(PillowImage.fromarray(image).resize((wanted.side, wanted.side), resample))

    def extract(images: Sequence[Image]) -> Features:
        if not len(images):
            return no_features(spec)
        if wanted.fit == "squeeze":
            images = [squeezed(image) for image in images]
        for image in images:
            if image.shape != shape:
                raise ValueError(f"{spec.id}: picture of shape {image.shape}, allowed: {shape}")
        with torch.inference_mode(), exact:
            pixels = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255
            vector = _unit(model.get_image_features(pixel_values=(pixels - mean) / deviation))
        return Features(image=np.arange(len(images), dtype=np.int32), vector=vector)

    return extract


def text_vectors(texts: Sequence[str], weights: Mapping[str, Path], device: str = "cpu") -> NDArray[np.float32]:
    """(N, dim) unit vectors of N queries, to be compared with image vectors by cosine; cut at the model's length.

    Loads the model, so call it once with all queries. Raises WeightsError.
    """
    import torch
    from transformers import AutoTokenizer

    folder = weights[MODEL]
    model = _load_model(folder, device)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = model.config.text_config.max_position_embeddings
    is_clip = model.config.model_type == "clip"
    batches = [np.zeros((0, model.config.projection_dim if is_clip else model.config.vision_config.hidden_size), "f4")]
    for start in range(0, len(texts), TEXT_BATCH):
        tokens = tokenizer(
            list(texts[start : start + TEXT_BATCH]),
            padding="max_length",  # SigLIP was trained so, and without a mask
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).to(device)
        inputs = {key: tokens[key] for key in (("input_ids", "attention_mask") if is_clip else ("input_ids",))}
        with torch.inference_mode():
            batches.append(_unit(model.get_text_features(**inputs)))
    return np.concatenate(batches)
