"""Image vectors by any CLIP or SigLIP of Hugging Face, and text vectors to search them. Knows no model by name.

Which model it is, is configuration: `featurize.models: {concept_clip.vit_b32: "hf://openai/clip-vit-base-patch32@main"}`,
or a folder by file://. Everything about it is read from the folder's own config.json and preprocessor_config.json.
CLIP: Radford et al. 2021, arXiv:2103.00020; SigLIP: Zhai et al. 2023, arXiv:2303.15343.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurizers.device import LANES, Array, DeviceUnavailable, FixedBatches, Network, gpu_index, threads
from featurizers.spec import Extract, Features, FeaturizerSpec, Image, TextSearch, Weights, no_features
from featurizers.weights import WeightsError, fetch

SPECS: tuple[FeaturizerSpec, ...] = ()  # there is none until a model is configured: spec_for
MODEL = "model"
GPU_LANES = LANES  # threads that may call `extract` at once
ARCHITECTURES = ("clip", "siglip")
PRECISIONS = ("float32", "float16", "bfloat16")  # of weights and arithmetic; pixels and vectors are float32
BILINEAR, BICUBIC = 2, 3  # as Pillow and preprocessor_config.json number them
TEXT_BATCH = 64
WARM_UPS = 3  # runs before a CUDA graph is captured: libraries set themselves up in the first ones


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


def spec_for(variant: str, model_uri: str, precision: str = "float32") -> FeaturizerSpec:
    """The spec of the model at `model_uri`, run in `precision`, under the name `concept_clip.<variant>@1`.

    Fetches the model. Raises WeightsError where it cannot be had, or is not a CLIP or SigLIP in safetensors, and
    ValueError for a precision that is not in PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, allowed: {', '.join(PRECISIONS)}")
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
        batch_size=64,  # of a GPU, not measured; on a CPU the engine takes a few at a time
        precision=precision,
        weights=(Weights(name=MODEL, uri=model_uri, sha256=None, licence="see the model's card", source=model_uri),),
        settings=(("architecture", config.model_type), ("side", wanted.side), ("resample", wanted.resample)),
    )


def _load_model(folder: Path, device: str) -> Any:
    """The model in float32 on `device`, ready for inference.

    Raises WeightsError where a tensor of it is missing, DeviceUnavailable where PyTorch does not see the GPU.
    """
    _read_config(folder)
    import torch
    from transformers import AutoModel

    index = gpu_index(device)
    if index is None:
        torch.set_num_threads(threads())
    elif index >= torch.cuda.device_count():
        raise DeviceUnavailable(f"{device}: PyTorch sees {torch.cuda.device_count()} GPUs")
    model, report = AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise WeightsError(
            f"{folder} lacks {len(report['missing_keys'])} tensors: {sorted(report['missing_keys'])[:3]}"
        )
    return model.eval().to(device)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def open_network(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Network:
    """The model as a function from N >= 1 uint8 pictures of its size to one output, (N, dim) float32 of any norm.

    float32 is full float32, without TF32. On a GPU in batches of `spec.batch_size`, FixedBatches.
    """
    import torch

    folder = weights[MODEL]
    wanted = read_preprocessing(folder)
    dtype = getattr(torch, spec.precision)
    model = _load_model(folder, device).to(dtype)
    mean, deviation = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (wanted.mean, wanted.deviation)
    )

    def forward(pixels: Any) -> Any:  # uint8 (N, side, side, 3) on the device
        scaled = pixels.permute(0, 3, 1, 2).float() / 255
        output = model.get_image_features(pixel_values=((scaled - mean) / deviation).to(dtype))
        return output.pooler_output.float()

    if gpu_index(device) is not None:
        torch.backends.cudnn.allow_tf32 = False
        model.to(memory_format=torch.channels_last)  # as the pixels lie; one convolution, that of the patches
        shape = (wanted.side, wanted.side, 3)
        return FixedBatches(
            lambda size: GraphLane(forward, device, shape=(size, *shape), dim=spec.dim), spec.batch_size
        )

    def run(images: Sequence[Image]) -> list[Array]:
        with torch.inference_mode():
            return [forward(torch.from_numpy(np.stack(images))).numpy()]

    return run


class GraphLane:
    """A Lane of a PyTorch model: one CUDA graph, captured once, and copies over a stream that is the lane's own.

    A graph costs one launch for a model of hundreds of kernels. torch.compile would also fuse some of them (1.17 times
    as fast for ViT-B/32 by timm's tables), and needs a C compiler on every executor. On the CPU there is no graph.
    """

    pixels: NDArray[np.uint8]

    def __init__(self, forward: Callable[[Any], Any], device: str, *, shape: tuple[int, ...], dim: int) -> None:
        import torch

        self.size = shape[0]
        where = torch.device(device)
        is_gpu = where.type == "cuda"
        self._forward = forward
        self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=is_gpu)
        self.pixels = self._host.numpy()
        self._input = torch.zeros_like(self._host, device=where)
        self._received = torch.zeros((self.size, dim), pin_memory=is_gpu)
        self._output: Any = None
        self._stream = torch.cuda.Stream(where) if is_gpu else None
        self._graph = torch.cuda.CUDAGraph() if is_gpu else None
        if self._stream is None or self._graph is None:
            return
        torch.cuda.synchronize(where)  # the buffers are filled over the default stream
        with torch.cuda.device(where), torch.inference_mode():
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    forward(self._input)
            self._stream.synchronize()
            # Other lanes go on meanwhile, in threads of their own.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = forward(self._input)

    def send(self) -> None:
        """Start to copy `pixels` to the device; the stream keeps the order."""
        import torch

        with torch.cuda.stream(self._stream):  # does nothing for None
            self._input.copy_(self._host, non_blocking=True)

    def compute(self) -> None:
        """Start to run the model over what was sent."""
        import torch

        if self._graph is None:
            with torch.inference_mode():
                self._output = self._forward(self._input)
            return
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def receive(self) -> list[Array]:
        """(size, dim) on the host once all is done, overwritten by the next call."""
        import torch

        with torch.cuda.stream(self._stream), torch.inference_mode():
            self._received.copy_(self._output, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        return [self._received.numpy()]


def load(spec: FeaturizerSpec, weights: Mapping[str, Path], device: str) -> Extract:
    """One feature for each picture: its vector of unit norm in the space of `text_vectors`; no label and no score.

    Runs on torch. Raises WeightsError for a folder that is not what its spec says, DeviceUnavailable.
    """
    from PIL import Image as PillowImage

    wanted = read_preprocessing(weights[MODEL])
    network = open_network(spec, weights, device)
    resample = PillowImage.Resampling(wanted.resample)
    shape = (wanted.side, wanted.side, 3)

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
        return Features(image=np.arange(len(images), dtype=np.int32), vector=_unit(network(images)[0]))

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
            batches.append(_unit(model.get_text_features(**inputs).pooler_output.float().cpu().numpy()))
    return np.concatenate(batches)


def text_search(spec: FeaturizerSpec, weights: Mapping[str, Path], *, n_labels: int = 0) -> TextSearch:
    """Search by words in the model's own space; a picture's vector is the one that is stored."""
    return TextSearch(
        of_texts=lambda texts: text_vectors(texts, weights), of_frame=lambda vector, label, score: vector[0]
    )
