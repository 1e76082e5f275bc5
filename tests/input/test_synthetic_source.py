"""The synthetic source: reproducible, with disjoint splits and configurable difficulty."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import grain
import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example
from s2rm_jax.input.synthetic import SceneConfig, SyntheticSource
from s2rm_jax.input.synthetic.grammar import Reference
from s2rm_jax.input.synthetic.language import Between, Nearest, Noun, Related
from s2rm_jax.input.synthetic.scene import COLOURS, HELD_OUT_PAIRS, KINDS, SHAPES, Scene, Thing
from s2rm_jax.input.synthetic.source import Composition, compose


def thing_at(x, y, shape="circle"):
    return Thing(shape, "red", "plain", "small", float(x), float(y), 8.0)


def digest(example: Example) -> str:
    parts = [example.id.encode(), np.asarray(example.image).tobytes()]
    for expression in example.expressions:
        parts += [expression.id.encode(), expression.kind.encode(), expression.text.encode()]
        parts.append(np.packbits(expression.segmentation).tobytes())
    return sha256(b"|".join(parts)).hexdigest()


def test_an_example_is_complete():
    example = SyntheticSource("val")[12]
    assert example.id == "val-12"
    assert example.image.dtype == np.uint8 and example.image.shape == (96, 96, 3)
    assert (example.height, example.width) == (96, 96)
    assert [expression.id for expression in example.expressions] == [f"val-12-{number}" for number in range(4)]
    for expression in example.expressions:
        assert expression.segmentation.dtype == bool and expression.segmentation.shape == (96, 96)
        assert expression.segmentation.sum() > 60
        assert expression.text.startswith("the ") and expression.kind in KINDS


def test_a_scene_depends_on_nothing_but_seed_split_and_index():
    source = SyntheticSource("train")
    indices = [7, 0, 2**31 - 2, 123_456_789, 7]
    forwards = [digest(source[index]) for index in indices]
    backwards = [digest(SyntheticSource("train")[np.int64(index)]) for index in reversed(indices)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == len(set(indices))


def test_another_process_makes_the_same_scene():
    code = (
        "from s2rm_jax.input.synthetic import SyntheticSource as S; e = S('test')[3];"
        "print(e.image.astype(int).sum(), *(x.text for x in e.expressions), sep='|')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    example = SyntheticSource("test")[3]
    assert found == "|".join([str(example.image.astype(int).sum()), *(x.text for x in example.expressions)])


def test_splits_and_seeds_share_no_scene():
    sources = [SyntheticSource(split, seed=seed) for split in ("train", "val", "test") for seed in (0, 1)]
    seen = [source[index].image.tobytes() for source in sources for index in range(20)]
    assert len(set(seen)) == len(seen)


def test_threads_share_no_state():
    source = SyntheticSource("train")
    alone = [digest(source[index]) for index in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: digest(source[index % 24]), range(72)))
    assert together == alone * 3


def test_grain_shuffles_it_and_processes_can_hold_it():
    source = SyntheticSource("train")
    assert len(source) == 2**31 - 1
    dataset = grain.MapDataset.source(source).shuffle(seed=1).repeat()
    assert len({dataset[index].id for index in range(5)}) == 5
    assert digest(pickle.loads(pickle.dumps(source))[9]) == digest(source[9])


def test_lengths():
    assert [len(SyntheticSource(split)) for split in ("val", "test", "compositional")] == [512, 512, 512]
    source = SyntheticSource("val", length=3)
    assert len([*source]) == len(source) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]


def pairs_of(scene):
    return {(thing.colour, thing.shape) for thing in scene.things}


def test_held_out_pairs_are_seen_in_the_compositional_split_only():
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS) and {shape for _, shape in HELD_OUT_PAIRS} == set(
        SHAPES
    )
    config = SceneConfig()
    for split in ("train", "val", "test"):
        shown = set().union(*(pairs_of(compose(config, split, 0, index).scene) for index in range(120)))
        assert not shown & set(HELD_OUT_PAIRS)
        assert len(shown) == len(COLOURS) * len(SHAPES) - len(HELD_OUT_PAIRS)
    asked = set()
    for index in range(120):
        composed = compose(config, "compositional", 0, index)
        things = composed.scene.things
        asked |= {(things[one.referent].colour, things[one.referent].shape) for one in composed.references}
    assert asked == set(HELD_OUT_PAIRS)


def test_held_out_pairs_can_be_chosen():
    config = SceneConfig.from_fields({"held_out_pairs": [["blue", "star"]]})
    assert all(("blue", "star") in pairs_of(compose(config, "compositional", 0, index).scene) for index in range(20))
    assert not any(("blue", "star") in pairs_of(compose(config, "val", 0, index).scene) for index in range(60))


@pytest.mark.parametrize("size", [(64, 160), (150, 80), (200, 200)])
def test_images_of_any_size(size):
    example = SyntheticSource("train", image_size=size)[0]
    assert example.image.shape == (*size, 3)
    assert (example.height, example.width) == size
    assert all(expression.segmentation.shape == size for expression in example.expressions)


def test_a_grid_has_at_most_one_object_in_a_cell():
    config = SceneConfig(
        image_size=(160, 240), min_objects=9, max_objects=9, object_scale=0.6, grid=3, max_occlusion=0.6
    )
    for index in range(10):
        things = compose(config, "train", 0, index).scene.things
        assert {(int(thing.y * 3 // 160), int(thing.x * 3 // 240)) for thing in things} == {
            (row, column) for row in range(3) for column in range(3)
        }


def test_distances_to_landmarks_are_counted_in_slices():
    things = (thing_at(8, 8), thing_at(8, 24), thing_at(152, 40, "star"), thing_at(40, 100, "ring"))
    composed = Composition(Scene(160, 160, things), (), np.zeros((160, 160, 3), np.uint8), [])

    def distance(meaning, referent, slices=10):
        return composed.landmark_distance(Reference("the words", "any", meaning, referent), slices)

    circle, star, ring = Noun("circle"), Noun("star"), Noun("ring")
    assert distance(ring, 3) is None
    assert distance(Related(circle, "left of", star), 0) == 9
    assert distance(Related(star, "right of", ring), 2) == 7  # 7 columns and 4 rows
    assert distance(Related(star, "right of", ring), 2, slices=5) == 3  # columns 4 and 1, rows 1 and 3
    assert distance(Between(circle, star, ring), 1) == 9  # of 9 and 6
    assert distance(Nearest(circle, ring), 0) == 6  # 6 columns and 2 rows


def test_difficulty_is_a_flat_mapping_of_plain_values():
    fields = {"min_objects": 6, "max_objects": 8, "kinds": list(KINDS), "expressions_per_scene": 5, "object_scale": 0.8}
    source = SyntheticSource("train", seed=3, **fields)
    config = SceneConfig.from_fields(fields)
    for index in range(15):
        assert {expression.kind for expression in source[index].expressions} == set(KINDS)
        assert 6 <= len(compose(config, "train", 3, index).scene.things) <= 8
    assert digest(source[0]) == digest(SyntheticSource("train", seed=3, scene=config)[0])
    fewer = SyntheticSource("train", seed=3, scene=config, expressions_per_scene=1)
    assert len(fewer[0].expressions) == fewer.expression_count(0) == 1
    assert len(source[0].expressions) == source.expression_count(0) == 5
    assert source.referents(0) == ((0,), (1,), (2,), (3,), (4,))


def test_palettes_and_distractors():
    things = [compose(SceneConfig(), "train", 0, index).scene.things for index in range(60)]
    assert all(len({thing.colour for thing in scene}) <= 2 for scene in things)
    assert all(len({thing.shape for thing in scene}) <= 3 for scene in things)

    def share_with_a_twin(distractors):
        config = SceneConfig(distractors=distractors, colours_per_scene=4, shapes_per_scene=4, kinds=("attribute",))
        near = total = 0
        for index in range(60):
            looks = [(t.shape, t.colour, t.texture, t.size) for t in compose(config, "train", 0, index).scene.things]
            near += sum(any(sum(x != y for x, y in zip(a, b, strict=True)) == 1 for b in looks) for a in looks)
            total += len(looks)
        return near / total

    assert share_with_a_twin(1.0) > 0.95 > 0.75 > share_with_a_twin(0.0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"shape": ("circle",)}, "unknown field 'shape'; the fields are seed, length, train_length, image_size"),
        ({"shapes": ("circle", "banana")}, "shapes has unknown values 'banana'; choose from circle, square"),
        ({"kinds": ("relations",)}, "kinds has unknown values 'relations'; choose from attribute, superlative"),
        ({"textures": ()}, "textures is empty"),
        ({"colours": ("red", "blue", "red")}, "colours has a value twice"),
        ({"colours": "red"}, "colours is 'red'; it must be a list"),
        ({"min_objects": 6, "max_objects": 5}, "max_objects is 5; it must be at least min_objects=6"),
        ({"min_objects": 1}, "a scene needs at least 2"),
        ({"max_objects": 5.5}, "must be a whole number"),
        ({"max_objects": "many"}, "max_objects is 'many'; it must be like 5"),
        ({"image_size": (96, 10)}, "image_size is (96, 10); it must be (height, width), each at least 32"),
        ({"object_scale": 0.0}, "object_scale is 0.0"),
        ({"max_occlusion": 1.0}, "max_occlusion is 1.0"),
        ({"distractors": 1.5}, "distractors is 1.5"),
        ({"expressions_per_scene": 0}, "expressions_per_scene is 0"),
        ({"held_out_pairs": (("circle", "red"),)}, "a pair is (colour, shape)"),
        ({"colours": ("red",), "shapes": ("circle",)}, "leaves no pair of colour and shape for training"),
        (
            {"grid": 2, "max_objects": 5},
            "grid is 2: 4 cells for 5 objects; set a larger grid, a smaller max_objects, or grid=0",
        ),
        ({"grid": -5}, "grid is -5; it must be 0, which places objects freely, or more"),
        ({"seed": -1}, "seed is -1"),
        ({"length": 0}, "length is 0"),
    ],
)
def test_wrong_fields_are_reported(fields, message):
    with pytest.raises(UserError) as error:
        SyntheticSource("train", **fields)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_wrong_splits_are_reported():
    with pytest.raises(UserError, match="no split 'trian'; the splits are train, val, test, compositional"):
        SyntheticSource("trian")
    with pytest.raises(UserError, match="held_out_pairs has no pair"):
        SyntheticSource("compositional", held_out_pairs=())


def test_a_difficulty_that_leaves_nothing_to_say_is_reported():
    source = SyntheticSource("train", min_objects=2, max_objects=2, kinds=("ordinal",))
    with pytest.raises(UserError, match="gave none with expressions of the kinds ordinal"):
        source[0]


def test_distractors_that_are_all_held_out_are_reported():
    source = SyntheticSource(
        "train",
        min_objects=2,
        max_objects=2,
        colours=("red", "blue"),
        shapes=("circle", "square"),
        textures=("plain",),
        sizes=("small",),
        shapes_per_scene=2,
        distractors=1.0,
        held_out_pairs=(("red", "square"), ("blue", "circle")),  # each differs by one from each pair of training
    )
    with pytest.raises(UserError, match="gave none with expressions of the kinds"):
        source[0]
