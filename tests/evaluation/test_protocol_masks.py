"""At which size masks are compared, how predictions get there, and what counts as predicted."""

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.evaluation.metrics import count_pixels
from s2rm_jax.evaluation.protocols import PROTOCOLS, predicted_mask, resample, resize_logits, true_mask
from s2rm_jax.input.masks import decode_rle, rasterize


def logit(probability):
    return np.log(probability / (1 - probability))


def compared(name, segmentation, logits, height, width):
    protocol = PROTOCOLS[name]
    true = true_mask(protocol, segmentation, rasterize(segmentation, height, width))
    return count_pixels(true, predicted_mask(protocol, logits, height, width))


def test_iou_at_480_differs_from_iou_at_the_original_size():
    # An image of 1 x 2 pixels whose right one is meant, and logits -1, 3 of the same size.
    # Original: the right pixel is predicted: I = U = 1.
    # 480: between the centres, 240 columns apart, logits rise from -1 to 3 and exceed 0 after a quarter of the way.
    # Column i lies at (i + 1/2) / 240 - 1/2 of the way, so those from i = 180 on are predicted: 300 columns. Meant are
    # those from 240 on. I = 240 * 480, U = 300 * 480: IoU 0.8.
    right, logits = np.array([[False, True]]), np.array([[-1, 3]], np.float32)
    assert compared("original", right, logits, 1, 2) == (1, 1)
    assert compared("lavt480", right, logits, 1, 2) == (240 * 480, 300 * 480)
    # 448: 224 columns apart, (i + 1/2) / 224 - 1/2 > 1/4 from i = 168 on: 280 columns, of which 224 are meant.
    assert compared("caris448", right, logits, 1, 2) == (224 * 448, 280 * 448)
    # By nearest pixel at the original size of an image twice as large: columns 0, 0, 1, 1 and rows 0, 0.
    assert compared("remamber", np.repeat(np.repeat(right, 2, 0), 2, 1), logits, 2, 4) == (4, 4)


def test_a_thin_mask_may_vanish_where_the_size_is_fixed():
    # Of 960 columns, 480 keep the odd ones (centres 1, 3, 5 ...): column 100 is gone, and with it the union.
    thin = np.zeros((480, 960), bool)
    thin[:, 100] = True
    nothing = np.full((480, 480), -5, np.float32)
    assert compared("original", thin, nothing, 480, 960) == (0, 480)
    assert compared("lavt480", thin, nothing, 480, 960) == (0, 0)


def test_rela_draws_polygons_anew():
    # A rectangle over 2.4 of 4 columns. At 4 x 4 it covers two columns, hence 240 of 480 by nearest pixel; scaled by
    # 120 it covers 288.
    polygon = [[0, 0, 2.4, 0, 2.4, 4, 0, 4]]
    meant = rasterize(polygon, 4, 4)
    assert meant.sum() == 2 * 4
    assert true_mask(PROTOCOLS["lavt480"], polygon, meant).sum() == 240 * 480
    assert true_mask(PROTOCOLS["rela_gref"], polygon, meant).sum() == 288 * 480
    # What is not made of polygons has nothing to draw anew.
    rle = {"size": [4, 4], "counts": [0, 8, 8]}  # the left two columns
    assert decode_rle(rle, 4, 4).sum() == 8
    for segmentation in ([rle], rle, meant):
        assert true_mask(PROTOCOLS["rela_gref"], segmentation, meant).sum() == 240 * 480


def test_height_and_width_of_drawn_polygons_are_not_swapped():
    # The upper half of an image that is 2 high and 8 wide: scaled by 240 and 60.
    upper = [[0, 0, 8, 0, 8, 1, 0, 1]]
    true = true_mask(PROTOCOLS["rela_gref"], upper, rasterize(upper, 2, 8))
    assert true[:240].all()
    assert not true[240:].any()


def test_an_empty_list_refers_to_nothing():
    for name in PROTOCOLS:
        meant = rasterize([], 3, 5)
        assert meant.shape == (3, 5)
        assert not true_mask(PROTOCOLS[name], [], meant).any()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_pixel_is_predicted_above_the_threshold_and_not_at_it(name):
    protocol = PROTOCOLS[name]
    height, width = protocol.size or (1, 3)
    at = np.float32(0 if name != "cris" else logit(0.35))
    logits = np.full((height, width), -9, np.float32)
    logits[0, :3] = at - 1e-3, at if name != "cris" else -9, at + 1e-3
    assert np.argwhere(predicted_mask(protocol, logits, height, width)).tolist() == [[0, 2]]


def test_cris_predicts_more_than_the_others():
    logits = logit(np.array([[0.3, 0.4, 0.6]], np.float32))
    assert predicted_mask(PROTOCOLS["cris"], logits, 1, 3).tolist() == [[False, True, True]]
    assert predicted_mask(PROTOCOLS["cgformer"], logits, 1, 3).tolist() == [[False, False, True]]


def test_resizing_probabilities_is_not_resizing_logits():
    # Two columns of logits -9 and 1 become six; columns 2 and 3 lie at 1/3 and 2/3 of the way between the two centres.
    # The logit at 2/3 is -9 + 20/3 < 0. The probabilities are 0.0001 and 0.7311; the cubic weight of the second is
    # w(1/3) + w(4/3) = 43/54 - 1/9 = 37/54 at 2/3 of the way, and 17/54 at 1/3: 0.501 and 0.230, against 0.35.
    logits = np.array([[-9, 1]], np.float32)
    assert predicted_mask(PROTOCOLS["original"], logits, 1, 6).tolist() == [[False] * 4 + [True] * 2]
    assert predicted_mask(PROTOCOLS["cris"], logits, 1, 6).tolist() == [[False] * 3 + [True] * 3]


def test_extreme_logits_do_not_overflow():
    extreme = np.array([[-1e30, 1e30]], np.float32)
    for protocol in PROTOCOLS.values():
        assert predicted_mask(protocol, extreme, 1, 2).any()


@pytest.mark.parametrize("name", ["lavt480", "caris448", "rela_gref"])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (427, 640), (375, 500), (640, 359)])
def test_true_masks_are_resized_as_pillow_does(name, height, width):
    mask = np.random.default_rng(0).random((height, width)) < 0.4
    size = PROTOCOLS[name].size
    expected = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(true_mask(PROTOCOLS[name], mask, mask), np.asarray(expected) == 1)


def test_a_tie_goes_to_the_lower_column():
    # Centres of 640 -> 480 columns: (i + 1/2) * 4/3 = 6 for i = 4, between columns 5 and 6. Pillow takes column 5.
    for column, found in ((4, [3]), (5, [4]), (6, []), (7, [5])):
        mask = np.zeros((480, 640), bool)
        mask[:, column] = True
        resized = true_mask(PROTOCOLS["lavt480"], mask, mask)
        assert np.flatnonzero(resized[0]).tolist() == found
        assert resized.sum() == 480 * len(found)


def test_nearest_takes_the_pixel_at_the_floor_in_float32():
    # floor(i * 3 / 2) = 0, 1 and floor(i * 2 / 3) = 0, 0, 1.
    assert resample(np.array([[1.0, 2, 3]]), 1, 2, "nearest").tolist() == [[1, 2]]
    assert resample(np.array([[1.0, 2]]), 1, 3, "nearest").tolist() == [[1, 1, 2]]
    # 160 / 92 is 1.7391304 in float32: 69 * 1.7391304 < 120 = 69 * 160 / 92.
    assert resample(np.arange(160.0)[None], 1, 92, "nearest")[0, 68:71].tolist() == [118, 119, 121]


def test_bilinear_with_two_taps_does_not_average_a_reduced_image():
    # Four samples become two, at 1/2 and 5/2, or one, at 3/2; two become four at -1/4, 1/4, 3/4, 5/4.
    row = np.array([[1, 2, 4, 9]], np.float32)
    assert resample(row, 1, 2, "bilinear, two taps").tolist() == [[1.5, 6.5]]
    assert resample(row.T, 1, 1, "bilinear, two taps").tolist() == [[3]]
    assert resample(row[:, 1:3], 1, 4, "bilinear, two taps").tolist() == [[2, 2.5, 3.5, 4]]


@pytest.mark.parametrize("size", [(92, 427), (375, 160), (33, 31), (1, 200), (640, 480)])
@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("nearest", {}),
        ("bilinear, two taps", {"mode": "bilinear", "align_corners": False}),
        ("bicubic", {"mode": "bicubic", "align_corners": False}),
        ("bicubic, corners aligned", {"mode": "bicubic", "align_corners": True}),
    ],
)
def test_resampling_is_that_of_torch(how, options, size):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(160, 120)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size, **options)[0, 0].numpy()
    np.testing.assert_allclose(resample(values, *size, how), expected, atol=0 if how == "nearest" else 2e-4)


def test_cubic_weights():
    # Halfway between samples the four weights of the kernel with a = -0.75 are -3/32, 19/32, 19/32, -3/32. Four samples
    # become seven with corners aligned: at 0, 1/2, 1, 3/2, 2, 5/2, 3; beyond the border the last sample is repeated.
    row = np.array([[0, 0, 1, 0]], np.float32)
    aligned = resample(row, 1, 7, "bicubic, corners aligned")
    np.testing.assert_allclose(aligned, [[0, -3 / 32, 0, 19 / 32, 1, 19 / 32, 0]], atol=1e-6)
    # With half-pixel centres eight samples lie at -1/4, 1/4, 3/4, ...; at a quarter of the way the weights are
    # w(5/4) = -27/256, w(1/4) = 225/256, w(3/4) = 67/256, w(7/4) = -9/256: their sum is 1.
    centred = resample(np.array([[0, 1, 0, 0]], np.float32), 1, 8, "bicubic")
    w = {5: -27 / 256, 1: 225 / 256, 3: 67 / 256, 7: -9 / 256}
    assert sum(w.values()) == 1
    np.testing.assert_allclose(centred[0, 1:6], [w[3], w[1], w[1], w[3], w[5]], atol=1e-6)
    upright = resample(np.array([[0, 1, 0, 0]], np.float32).T, 8, 1, "bicubic")
    np.testing.assert_allclose(upright, centred.T)


@pytest.mark.parametrize("size", [(16, 21), (21, 16), (16, 16), (21, 23), (16, 9), (9, 9)])
def test_leaving_out_what_is_nowhere_positive_changes_no_pixel(size):
    rng = np.random.default_rng(0)
    for shift in (0.0, -1.5, -2.5, -9.0):
        for _ in range(20):
            logits = (rng.normal(size=(16, 16)) + shift).astype(np.float32)
            found = predicted_mask(PROTOCOLS["original"], logits, *size)
            np.testing.assert_array_equal(found, resize_logits(logits, *size) > 0)
    logits[3, 4:6] = np.nan, 5
    found = predicted_mask(PROTOCOLS["original"], logits, *size)
    np.testing.assert_array_equal(found, resize_logits(logits, *size) > 0)
