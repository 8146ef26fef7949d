"""Draws signs and pages whose text is known, so that reading can be checked. Knows no collection and no place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

Draw = Callable[[Sequence[str]], Image.Image]  # lines of text -> an RGBA panel, transparent around
SCENE_PX = (800, 600)
HEADINGS = {"airport": ("DEPARTURES",)}  # what a style writes above the lines it is given


@cache
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@cache
def font(face: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A face of the DejaVu family that matplotlib ships, such as "Sans-Bold"."""
    return ImageFont.truetype(str(_font_folder() / f"DejaVu{face}.ttf"), size_px)


def _fitting(face: str, text: str, width_px: int, largest_px: int) -> ImageFont.FreeTypeFont:
    size = largest_px
    while size > 10 and font(face, size).getlength(text) > width_px:
        size -= 2
    return font(face, size)


def _panel(
    size: tuple[int, int], *, fill: str, edge: str | None = None, radius: int = 18, width: int = 8
) -> Image.Image:
    panel = Image.new("RGBA", size, (0, 0, 0, 0))
    box = (2, 2, size[0] - 3, size[1] - 3)
    ImageDraw.Draw(panel).rounded_rectangle(box, radius, fill=fill)
    if edge:
        inset = (10, 10, size[0] - 11, size[1] - 11)
        ImageDraw.Draw(panel).rounded_rectangle(inset, max(1, radius - 6), outline=edge, width=width)
    return panel


def _write(
    panel: Image.Image,
    lines: Sequence[str],
    faces: Sequence[tuple[str, int, str]],
    *,
    box: tuple[int, int, int, int] | None = None,
    left: bool = False,
) -> Image.Image:
    """Lines spread evenly in a box; `faces` are (face, largest size, colour), the last one for the lines left."""
    x0, y0, x1, y1 = box or (30, 24, panel.width - 30, panel.height - 24)
    draw = ImageDraw.Draw(panel)
    chosen = [faces[min(i, len(faces) - 1)] for i in range(len(lines))]
    weights = [size for _, size, _ in chosen]
    y = float(y0)
    for text, (face, largest, colour), weight in zip(lines, chosen, weights, strict=True):
        height = (y1 - y0) * weight / sum(weights)
        fitted = _fitting(face, text, x1 - x0, min(largest, int(height * 0.82)))
        at = (x0, y + height / 2) if left else ((x0 + x1) / 2, y + height / 2)
        draw.text(at, text, font=fitted, fill=colour, anchor="lm" if left else "mm")
        y += height
    return panel


def _octagon(lines: Sequence[str]) -> Image.Image:
    panel = Image.new("RGBA", (420, 420), (0, 0, 0, 0))
    for radius, colour in ((208, "#f4f4f2"), (194, "#b3161c")):
        corners = [
            (
                210 + radius * math.cos(math.pi / 8 + i * math.pi / 4),
                210 + radius * math.sin(math.pi / 8 + i * math.pi / 4),
            )
            for i in range(8)
        ]
        ImageDraw.Draw(panel).polygon(corners, fill=colour)
    return _write(panel, lines, [("Sans-Bold", 130, "#f8f8f6")], box=(48, 120, 372, 300))


def _diamond(lines: Sequence[str]) -> Image.Image:
    panel = Image.new("RGBA", (460, 460), (0, 0, 0, 0))
    for inset, colour in ((2, "#1d1b16"), (14, "#f2b705")):
        ImageDraw.Draw(panel).polygon([(230, inset), (458 - inset, 230), (230, 458 - inset), (inset, 230)], fill=colour)
    return _write(panel, lines, [("Sans-Bold", 60, "#1d1b16")], box=(110, 145, 350, 315))


def _airport(lines: Sequence[str]) -> Image.Image:
    panel = _panel((720, 110 + 90 * len(lines)), fill="#101418", radius=10)
    _write(panel, ["DEPARTURES"], [("Sans-Bold", 46, "#f3c300")], box=(36, 16, 684, 96), left=True)
    return _write(panel, lines, [("SansMono-Bold", 44, "#f0f0e8")], box=(36, 100, 684, panel.height - 12), left=True)


def _shop(lines: Sequence[str]) -> Image.Image:
    colour = ("#14453d", "#5b1f2e", "#1f3358", "#4a3a1c", "#37324f")[_seed(lines) % 5]
    panel = _panel((700, 230), fill=colour, edge="#d9b25f", radius=10, width=4)
    return _write(panel, lines, [("Serif-Bold", 76, "#f5e6c0"), ("Sans", 42, "#f5e6c0")])


def _poster(lines: Sequence[str]) -> Image.Image:
    ground, ink, accent = (
        ("#f3e3c3", "#22313f", "#c0392b"), ("#20374c", "#f7efe0", "#f4b942"), ("#e8d5b7", "#3b2a20", "#0f6b5c"),
    )[_seed(lines) % 3]  # fmt: skip
    panel = _panel((420, 540), fill=ground, radius=2)
    draw = ImageDraw.Draw(panel)
    draw.rectangle((0, 0, 420, 26), fill=accent)
    draw.ellipse((150, 52, 270, 172), fill=accent)
    return _write(
        panel, lines, [("Sans-Bold", 66, ink), ("Serif-Bold", 52, accent), ("Sans", 40, ink)], box=(30, 190, 390, 510)
    )


def _plain(
    size: Callable[[int], tuple[int, int]],
    *,
    fill: str,
    edge: str,
    faces: Sequence[tuple[str, int, str]],
    width: int = 8,
) -> Draw:
    """A rectangular panel whose size follows from its number of lines."""
    return lambda lines: _write(_panel(size(len(lines)), fill=fill, edge=edge, width=width), lines, faces)


SIGNS: dict[str, Draw] = {
    "octagon": _octagon,
    "diamond": _diamond,
    "airport": _airport,
    "shop": _shop,
    "poster": _poster,
    "town": _plain(lambda n: (560, 220), fill="#f6c500", edge="#16140f", faces=[("Sans-Bold", 96, "#16140f")]),
    "motorway": _plain(lambda n: (620, 130 * n), fill="#0b4ea2", edge="#f5f7fa", faces=[("Sans-Bold", 70, "#f5f7fa")]),
    "station": _plain(
        lambda n: (660, 100 + 90 * n),
        fill="#f7f7f3",
        edge="#14357a",
        faces=[("Sans-Bold", 78, "#14357a"), ("Sans", 48, "#14357a")],
        width=14,
    ),
    "street": _plain(
        lambda n: (600, 130), fill="#0d5a38", edge="#f4f6f2", faces=[("Sans-Bold", 58, "#f4f6f2")], width=5
    ),
    "board": _plain(
        lambda n: (540, 110 + 80 * n),
        fill="#25302b",
        edge="#8a5a2b",
        faces=[("Serif-Bold", 64, "#f7f3e8"), ("Serif-Italic", 44, "#efe9d8")],
        width=14,
    ),
    "plate": _plain(
        lambda n: (560, 240),
        fill="#c9a24b",
        edge="#5e4312",
        faces=[("Serif-Bold", 58, "#332408"), ("Serif", 40, "#332408")],
        width=4,
    ),
    "notice": _plain(
        lambda n: (540, 250),
        fill="#fbfbf8",
        edge="#c1121f",
        faces=[("Sans-Bold", 66, "#c1121f"), ("Sans", 40, "#1d1d1b")],
        width=12,
    ),
}


def _seed(lines: Sequence[str]) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:4], "big")


def sign(style: str, lines: Sequence[str], wall: Image.Image) -> Image.Image:
    """A sign of a style in front of a wall (a grey texture, tinted): 800 x 600 RGB, turned by up to two degrees."""
    chance = np.random.default_rng(_seed([style, *lines]))
    tints = (("#2c2621", "#d9c3a5"), ("#26302f", "#c8d2cf"), ("#33261f", "#d6a78a"), ("#1e2a36", "#b9cbe0"))
    dark, light = tints[int(chance.integers(len(tints)))]
    ground = ImageOps.fit(wall.convert("L"), SCENE_PX).filter(ImageFilter.GaussianBlur(1.2))
    scene = ImageOps.colorize(ImageOps.autocontrast(ground, cutoff=2), black=dark, white=light)
    panel = SIGNS[style](lines)
    scale = min(SCENE_PX[0] * 0.86 / panel.width, SCENE_PX[1] * 0.86 / panel.height, 1.25)
    panel = panel.resize((round(panel.width * scale), round(panel.height * scale)), Image.Resampling.LANCZOS)
    panel = panel.rotate(float(chance.uniform(-2, 2)), Image.Resampling.BICUBIC, expand=True)
    x = (SCENE_PX[0] - panel.width) // 2 + int(chance.integers(-12, 13))
    y = (SCENE_PX[1] - panel.height) // 2 + int(chance.integers(-12, 13))
    shadow = Image.new("RGBA", SCENE_PX, (0, 0, 0, 0))
    shadow.paste((0, 0, 0, 130), (x + 9, y + 12), panel.getchannel("A"))
    scene = Image.alpha_composite(scene.convert("RGBA"), shadow.filter(ImageFilter.GaussianBlur(9)))
    scene.alpha_composite(panel, (max(0, x), max(0, y)))
    return _with_light(scene.convert("RGB"), chance)


def page(lines: Sequence[str]) -> Image.Image:
    """A printed page, first line as its heading: 720 x 960 RGB, paper-coloured, slightly uneven in light."""
    chance = np.random.default_rng(_seed(lines))
    sheet = Image.new("RGB", (720, 960), "#f6f1e4")
    draw = ImageDraw.Draw(sheet)
    draw.text((70, 90), lines[0], font=_fitting("Serif-Bold", lines[0], 580, 52), fill="#23201b")
    draw.line((70, 165, 650, 165), fill="#8d8474", width=2)
    body = min((_fitting("Serif", text, 580, 30) for text in lines[1:]), key=lambda fitted: fitted.size)
    for i, text in enumerate(lines[1:]):
        draw.text((70, 190 + 56 * i), text, font=body, fill="#2a2722")
    return _with_light(sheet, chance)


def _with_light(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Brightness that falls off to one side, and the grain of a sensor."""
    pixels = np.asarray(picture).astype(np.float32)
    slope = np.linspace(1.04, float(chance.uniform(0.8, 0.92)), picture.width, dtype=np.float32)[None, :, None]
    grain = chance.normal(0, 2.5, pixels.shape[:2]).astype(np.float32)[..., None]
    return Image.fromarray(np.clip(pixels * slope + grain, 0, 255).astype(np.uint8))
