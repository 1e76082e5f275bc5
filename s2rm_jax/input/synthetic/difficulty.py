"""How hard the scenes are: the fields of SceneConfig, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from s2rm_jax.errors import UserError

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
KINDS = ("attribute", "superlative", "relation", "two_step", "ordinal")

# Each colour and each shape is in one pair, so training knows every word of the sentences about these pairs.
HELD_OUT_PAIRS = tuple(zip(COLOURS, SHAPES, strict=True))

_CHOICES = {"shapes": SHAPES, "colours": COLOURS, "textures": TEXTURES, "sizes": SIZES, "kinds": KINDS}


@dataclass(frozen=True)
class SceneConfig:
    """What a scene may hold; the same for all splits of a dataset.

    image_size             height and width in pixels
    min_objects            how many objects a scene has at least,
    max_objects            and at most
    shapes                 what may occur, as the words that name it;
    colours                an attribute with a single value is not spoken of
    textures
    sizes
    object_scale           multiplies the size of every object; 1.0 suits 3 to 6 objects
    colours_per_scene      at most so many different colours and shapes in a scene:
    shapes_per_scene       few of them make attributes ambiguous, so that places must help
    distractors            probability that an object equals an earlier one in all attributes but one
    max_occlusion          the largest share of an object's area that others may hide
    kinds                  the kinds of sentence, which are asked for in turn
    expressions_per_scene  sentences a scene
    held_out_pairs         (colour, shape) pairs that only the compositional split shows

    Raises UserError for a value that makes no scene.
    """

    image_size: tuple[int, int] = (96, 96)
    min_objects: int = 3
    max_objects: int = 5
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    textures: tuple[str, ...] = TEXTURES
    sizes: tuple[str, ...] = SIZES
    object_scale: float = 1.0
    colours_per_scene: int = 2
    shapes_per_scene: int = 3
    distractors: float = 0.5
    max_occlusion: float = 0.25
    kinds: tuple[str, ...] = ("attribute", "superlative", "relation")
    expressions_per_scene: int = 4
    held_out_pairs: tuple[tuple[str, str], ...] = HELD_OUT_PAIRS

    def __post_init__(self):
        for name, known in _CHOICES.items():
            values, choices = getattr(self, name), ", ".join(known)
            unknown = [value for value in values if value not in known]
            _require(not unknown, f"{name} does not know {', '.join(map(repr, unknown))}; choose from {choices}")
            _require(len(values) > 0, f"{name} is empty; choose from {choices}")
            _require(len(set(values)) == len(values), f"{name} names a value twice: {', '.join(values)}")
        _require(len(self.image_size) == 2 and min(self.image_size) >= 32, "image_size must be (height, width) >= 32")
        _require(self.min_objects >= 2, f"min_objects is {self.min_objects}; a scene needs at least 2")
        _require(
            self.max_objects >= self.min_objects,
            f"max_objects ({self.max_objects}) is less than min_objects ({self.min_objects})",
        )
        _require(0.3 <= self.object_scale <= 2.0, f"object_scale is {self.object_scale}; it must be in 0.3 ... 2.0")
        _require(0 <= self.distractors <= 1, f"distractors is {self.distractors}; it is a probability in 0 ... 1")
        _require(0 <= self.max_occlusion <= 0.6, f"max_occlusion is {self.max_occlusion}; it must be in 0 ... 0.6")
        for name in ("colours_per_scene", "shapes_per_scene", "expressions_per_scene"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for pair in self.held_out_pairs:
            known_pair = len(pair) == 2 and pair[0] in COLOURS and pair[1] in SHAPES
            _require(known_pair, f"held_out_pairs has {pair!r}; a pair is (colour, shape), as ('red', 'circle')")
        _require(
            len(self.usable_held_out_pairs) < len(self.colours) * len(self.shapes),
            "held_out_pairs leaves no pair of colour and shape for training; allow more shapes or colours",
        )

    @property
    def usable_held_out_pairs(self) -> tuple[tuple[str, str], ...]:
        """The held-out pairs whose colour and shape may occur, each once."""
        pairs = dict.fromkeys(self.held_out_pairs)
        return tuple(pair for pair in pairs if pair[0] in self.colours and pair[1] in self.shapes)

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> SceneConfig:
        """Returns the defaults with these fields changed; a list counts as a tuple.

        Raises UserError for a field that does not exist, a value of another type, or a value that makes no scene.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        for name in values:
            _require(name in defaults, f"no field {name!r}; the fields are seed, length, {', '.join(defaults)}")
        return cls(**{name: _as_type_of(defaults[name], value, name) for name, value in values.items()})


def _as_type_of(default: Any, value: Any, name: str) -> Any:
    """Returns the value in the type of the field's default."""
    if isinstance(default, tuple):
        _require(isinstance(value, list | tuple), f"{name} is {value!r}; it must be a list")
        if not default or not value:
            return tuple(value)
        return tuple(_as_type_of(default[0], item, name) for item in value)
    right = isinstance(value, str) if isinstance(default, str) else isinstance(value, int | float)
    _require(right and not isinstance(value, bool), f"{name} is {value!r}; it must be like {default!r}")
    if isinstance(default, int):
        _require(float(value).is_integer(), f"{name} is {value!r}; it must be a whole number")
    return type(default)(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"synthetic scenes: {message}")
