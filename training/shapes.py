"""The procedural captioned set: one coloured shape or two on a plain background, drawn on demand, so it never ends.

An image is a pure function of (seed, index).  Some combinations of shape, colour and background, and some pairs of
shapes, are never drawn for training, so that obedience to prompts never seen can be measured.
"""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from diffusion.condition import PromptConditioning, Relation

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon", "diamond", "drop")
COLOURS = {
    "red": (222, 45, 50),
    "orange": (245, 134, 32),
    "yellow": (250, 205, 40),
    "green": (46, 160, 67),
    "teal": (16, 150, 160),
    "blue": (45, 95, 205),
    "purple": (130, 60, 180),
    "pink": (238, 110, 165),
    "brown": (125, 78, 45),
    "black": (35, 35, 42),
}
BACKGROUNDS = {
    "mint": (205, 240, 218),
    "cream": (252, 240, 212),
    "sky": (205, 228, 250),
    "lilac": (230, 215, 246),
    "silver": (196, 198, 204),
    "snow": (252, 252, 252),
}
ALONE, LEFT, ABOVE = 1, 2, 3
"""Values of the relation: no second shape, the first left of the second, the first above the second."""
CONDITIONING = PromptConditioning(
    template="a {colour} {shape} on {background}",
    slots={
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "relation": ("alone", "left of", "above"),
        "second colour": tuple(COLOURS),
        "second shape": SHAPES,
        "background": tuple(BACKGROUNDS),
    },
    relation=Relation(
        second={"colour": "second colour", "shape": "second shape"},
        reversed={"right of": "left of", "below": "above"},
        template="a {colour} {shape} {relation} a {second colour} {second shape} on {background}",
    ),
)
Condition = tuple[int, int, int, int, int, int]
"""Values, each from 1, of colour, shape, relation, second colour, second shape (both 0 when alone), background."""
_SUPERSAMPLE = 4


def is_held_out(condition: Condition) -> bool:
    """Tell whether a scene is kept out of training: 60 of the 600 single shapes, and of pairs whatever contains one of these
    or one of 10 of the 100 pairs of shapes.

    Latin-square rules: every colour, shape and background, and every two of them, are still seen in training.
    """
    colour, shape, relation, second_colour, second_shape, background = condition
    if (colour + 3 * shape + 5 * background) % 10 == 0:
        return True
    if relation == ALONE:
        return False
    return (second_colour + 3 * second_shape + 5 * background) % 10 == 0 or (shape + 3 * second_shape) % 10 == 0


def draw_condition(rng: Generator, *, held_out: bool = False) -> Condition:
    """Draw a scene, half of them of one shape and half of two, from those seen in training or from those held out."""
    relation = ALONE if rng.random() < 0.5 else int(rng.integers(LEFT, ABOVE + 1))
    while True:
        values = [int(rng.integers(1, size + 1)) for size in CONDITIONING.sizes]
        values[2] = relation
        if relation == ALONE:
            values[3] = values[4] = 0
        colour, shape, relation, second_colour, second_shape, background = values
        condition = colour, shape, relation, second_colour, second_shape, background
        if is_held_out(condition) == held_out:
            return condition


def draw_image(rng: Generator, condition: Condition, resolution: int) -> np.ndarray:
    """Draw one picture: uint8 (resolution, resolution, 3).  Places, sizes and tilts come from `rng`."""
    colour, shape, relation, second_colour, second_shape, background = condition
    side = resolution * _SUPERSAMPLE
    ground = tuple(BACKGROUNDS.values())[background - 1]
    image = Image.new("RGB", (side, side), ground)
    if relation == ALONE:
        _draw_shape(rng, image, ground, colour, shape, place=0.5 + rng.uniform(-0.06, 0.06, size=2), size=(0.29, 0.40))
    else:
        for sign, of_colour, of_shape in ((-1, colour, shape), (1, second_colour, second_shape)):
            along, across = 0.5 + sign * 0.25 + rng.uniform(-0.02, 0.02), 0.5 + rng.uniform(-0.10, 0.10)
            place = np.array([along, across] if relation == LEFT else [across, along])
            _draw_shape(rng, image, ground, of_colour, of_shape, place=place, size=(0.17, 0.21))
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BOX))


def _draw_shape(
    rng: Generator,
    image: Image.Image,
    ground: tuple[int, int, int],
    colour: int,
    shape: int,
    *,
    place: np.ndarray,
    size: tuple[float, float],
) -> None:
    """Draw a shape at `place` (x, y), of a radius between `size`, both as fractions of the image."""
    side = image.width
    fill = tuple(COLOURS.values())[colour - 1]
    edge = tuple(int(0.6 * channel) for channel in fill)
    radius, tilt = side * rng.uniform(*size), rng.uniform(-0.25, 0.25)
    turn = radius * np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    pen = ImageDraw.Draw(image)
    for points, paint in zip(OUTLINES[SHAPES[shape - 1]], (fill, ground), strict=False):
        corners = [tuple(corner) for corner in side * place + points @ turn.T]
        pen.polygon(corners, fill=paint, outline=edge, width=round(0.028 * side))


def _polar(angles: np.ndarray, radius: np.ndarray | float = 1.0) -> np.ndarray:
    """Points (K, 2) at angles in radians, 0 = up, clockwise; y points down as in images."""
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


def _regular(corners: int) -> np.ndarray:
    return _polar(2 * math.pi * np.arange(corners) / corners)


def _heart() -> np.ndarray:
    a = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    y = 13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)
    return np.stack([16 * np.sin(a) ** 3, -y - 2.5], axis=1) / 15.5


def _moon() -> np.ndarray:
    outer = _polar(np.linspace(0.5 * math.pi, 2.0 * math.pi, 50))
    start, end = outer[0], outer[-1]
    bite = 0.5 * (start + end)
    reach = float(np.linalg.norm(start - end)) / 2
    towards = np.arctan2(start[0] - bite[0], -(start[1] - bite[1]))
    inner = bite + _polar(np.linspace(towards, towards - math.pi, 40) + math.pi, reach)
    return np.concatenate([outer, inner]) + np.array([0.12, 0.0])


def _drop() -> np.ndarray:
    a = np.linspace(-0.66 * math.pi, 0.66 * math.pi, 40) + math.pi
    return np.concatenate([_polar(np.zeros(1), 1.1), 0.68 * _polar(a) + np.array([0.0, 0.38])])


_ARM = 0.36
OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_regular(64),),
    "square": (0.88 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),),
    "triangle": (1.12 * _regular(3) + np.array([0.0, 0.22]),),
    "star": (1.1 * _polar(math.pi * np.arange(10) / 5, np.tile([1.0, 0.42], 5)),),
    "heart": (_heart(),),
    "ring": (_regular(64), 0.52 * _regular(48)),
    "cross": (
        np.array(
            [[-_ARM, -1], [_ARM, -1], [_ARM, -_ARM], [1, -_ARM], [1, _ARM], [_ARM, _ARM]]
            + [[_ARM, 1], [-_ARM, 1], [-_ARM, _ARM], [-1, _ARM], [-1, -_ARM], [-_ARM, -_ARM]]
        ),
    ),
    "moon": (_moon(),),
    "diamond": (np.array([[0, -1.12], [0.7, 0], [0, 1.12], [-0.7, 0]]),),
    "drop": (_drop(),),
}
"""Outline of each shape in units of its radius, x right and y down; a second outline is a hole."""
