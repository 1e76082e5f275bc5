"""Selected pixels of a mask equal those of the complete mask, in every form of masks."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from s2rm_jax.input.masks import Grid, rasterize

HEIGHT, WIDTH = 20, 30
TRIANGLE, PENTAGON = [2.0, 1.5, 25.0, 3.0, 11.5, 19.0], [0.0, 0.0, 30.0, 0.0, 30.0, 9.0, 15.0, 20.0, 0.0, 12.0]
SPECKLES = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.4
RLE = {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.asfortranarray(SPECKLES.astype(np.uint8)))["counts"]}
FORMS = {
    "polygons": [TRIANGLE, PENTAGON],
    "RLE": RLE,
    "all": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]},
    "none": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
    "covered once": {"covered_once": [TRIANGLE, PENTAGON, RLE]},
    "array": SPECKLES,
    "nothing": [],
    "a line": [[1.0, 2.0, 3.0, 4.0], TRIANGLE],
}


def crop(grid: Grid) -> Grid:
    return Grid(grid.size, grid.rows[3:17], grid.columns[5:26])


def mirror(grid: Grid) -> Grid:
    return Grid(grid.size, grid.rows, grid.columns[::-1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", [[], [crop], [mirror], [crop, mirror], [mirror, crop]])
@pytest.mark.parametrize("size", [(20, 30), (20, 12), (7, 30), (7, 12), (33, 12), (9, 47), (64, 64), (1, 1)])
def test_the_wanted_pixels_are_those_of_the_whole_mask(form, changes, size):
    grid = Grid.whole(HEIGHT, WIDTH)
    for change in changes:
        grid = change(grid)
    grid = grid.resized(size)
    found = rasterize(FORMS[form], HEIGHT, WIDTH, grid)
    np.testing.assert_array_equal(found, rasterize(FORMS[form], HEIGHT, WIDTH)[np.ix_(grid.rows, grid.columns)])
    assert found.shape == size and found.dtype == bool
