"""The Segmenter: sizes, scores, one encoding for all expressions, and errors for bad input."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.evaluator import Evaluator
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.models.network import build_network
from s2rm_jax.segmenter import BUCKETS, Segmenter
from s2rm_jax.training.state import parameter_shapes
from tests.conftest import ColourNetwork


@pytest.fixture
def image(make_example):
    return make_example("p", ["red"], 12, 24).image  # columns 0-8 are red, 9-23 blue


def test_masks_have_the_original_size(segmenter, image):
    result = segmenter.segment(image, ["the red part", "blue", "green"])
    assert result.expressions == ("the red part", "blue", "green")
    assert result.masks.shape == (3, 12, 24)
    red = np.broadcast_to(np.arange(24) < 9, (12, 24))
    np.testing.assert_array_equal(result.masks, [red, ~red, np.zeros_like(red)])


def test_scores_are_the_mean_probability_over_the_mask(segmenter, image):
    plain = np.zeros_like(image)
    plain[..., 0] = 255
    # Everywhere the level of red is 1, so every logit is (1 - 0.5) * 8 = 4.
    result = segmenter.segment(plain, ["red", "green"])
    assert result.scores[0] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-5)
    assert result.scores[1] == 0
    assert not result.masks[1].any()


def test_the_mask_is_empty_if_the_network_predicts_no_target(colour_world, segmenter, image):
    network, _, params, tokenizer, config = colour_world

    class NoTarget(type(network)):
        """Predict that expressions with "the" refer to nothing, with the highest logit for those with "part"."""

        def fuse_and_decode(self, features, words, token_mask, image_size):
            tokens = words[..., 0]
            the, part = ((tokens == tokenizer.vocabulary.index(word)).any(-1) for word in ("the", "part"))
            answer = super().fuse_and_decode(features, words, token_mask, image_size)
            return answer._replace(no_target_logits=-0.01 + 0.02 * the + 2000.0 * part)

    result = Segmenter(NoTarget(network.on_trace), params, tokenizer, config).segment(
        image, ["red", "the red", "the red part"]
    )
    assert result.masks.any((1, 2)).tolist() == [True, False, False]
    np.testing.assert_allclose(result.no_target, [1 / (1 + np.exp(0.01)), 1 / (1 + np.exp(-0.01)), 1], rtol=1e-5)
    assert result.scores[0] > 0.5 and result.scores[1:].tolist() == [0, 0]
    assert segmenter.segment(image, "red").no_target is None


def test_one_expression_may_be_a_plain_string(segmenter, image):
    one, listed = segmenter.segment(image, "red"), segmenter.segment(image, ["red"])
    assert one.expressions == listed.expressions == ("red",)
    np.testing.assert_array_equal(one.masks, listed.masks)


def test_path_pil_and_array_give_the_same(segmenter, image, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    masks = [segmenter.segment(source, "red").masks for source in (image, Image.fromarray(image), path, str(path))]
    for other in masks[1:]:
        np.testing.assert_array_equal(masks[0], other)


def test_exif_orientation_is_applied(segmenter, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: the left columns become the upper rows
    path = tmp_path / "turned.png"
    Image.fromarray(image).save(path, exif=exif)
    result = segmenter.segment(path, "red")
    assert result.masks.shape == (1, 24, 12)
    np.testing.assert_array_equal(result.masks[0], np.broadcast_to(np.arange(24)[:, None] < 9, (24, 12)))


def test_one_encoding_for_all_expressions_and_few_programs(segmenter, colour_world, image, monkeypatch):
    encodings = []
    encode = segmenter._encode_images
    monkeypatch.setattr(segmenter, "_encode_images", lambda *args: encodings.append(1) or encode(*args))
    for count in (1, 2, 3, 4, 5, 7, 8, BUCKETS[-1] + 3):
        encodings.clear()
        result = segmenter.segment(image, ["red", "blue"] * (count // 2) + ["red"] * (count % 2))
        assert len(encodings) == 1
        assert result.masks.shape[0] == count
        assert result.masks[:, 0, 0].tolist() == [i % 2 == 0 for i in range(count)]  # the upper left corner is red
    # One program per bucket, whatever the number of expressions; 35 expressions are 32 and 4 (one of them padding).
    # "red" is encoded in the first call and "blue" in the second.
    programs = [f"fuse_and_decode {count}" for count in (1, 2, 4, 8, 32)]
    assert colour_world.traced_methods == ["encode_image", "encode_text 1", *programs]


def test_an_expression_is_encoded_once_for_many_images(segmenter, colour_world, image, monkeypatch):
    encoded, encode = [], segmenter._encode_texts
    monkeypatch.setattr(segmenter, "_encode_texts", lambda *args: encoded.append(len(args[1])) or encode(*args))
    first = segmenter.segment(image, ["red", "blue"])
    again = segmenter.segment([image[:, ::-1], image], ["blue", "the red", "red", "the red"])
    assert encoded == [2, 1]  # only "the red" is new in the second call
    assert [result.masks[:, 0, 0].tolist() for result in again] == [
        [True, False, False, False],
        [False, True, True, True],
    ]
    np.testing.assert_array_equal(again[1].masks[[2, 0]], first.masks)
    segmenter._words.limit = 2
    segmenter.segment(image, "red")
    segmenter.segment(image, ["green", "red"])  # leaves out "blue", which was used least recently
    segmenter.segment(image, ["red", "green"])
    assert encoded == [2, 1, 1]
    assert segmenter.segment(image, "blue").masks[0, 0].tolist() == first.masks[1, 0].tolist()
    assert encoded == [2, 1, 1, 1]


def test_compile_leaves_nothing_to_compile(segmenter, colour_world, image):
    segmenter.compile(2, 3)
    programs = list(colour_world.traced_methods)
    assert sorted(programs) == ["encode_image", *(f"encode_text {n}" for n in (1, 2, 4, 8)), "fuse_and_decode 4"]
    for texts in (
        [["red", "the red", "part"], ["blue", "the blue", "the part"]],  # six new expressions
        [["green", "the green", "part green"]] * 2,  # three
        [["blue part", "red part", "red"]] * 2,
        [["part red"] * 3] * 2,
        [["red"] * 3] * 2,  # none
    ):
        segmenter.segment([image, image], texts)
    assert colour_world.traced_methods == programs


class WeightedNetwork(ColourNetwork):
    """A network with an array among its fields, so that it has no hash."""

    weights: np.ndarray

    def __call__(self, images, tokens, token_mask, train=False):
        return super().__call__(images, tokens, token_mask)


def test_a_network_of_the_user_may_have_an_array_as_a_field(colour_world, make_example, source_of):
    network, _, params, tokenizer, config = colour_world
    network = WeightedNetwork(network.on_trace, np.ones(3))
    with pytest.raises(TypeError, match="unhashable"):
        hash(network)
    example = make_example("p", ["red"])
    mask = Segmenter(network, params, tokenizer, config).segment(example.image, "red").masks[0]
    np.testing.assert_array_equal(mask, np.arange(8) < 3 * np.ones((4, 1)))
    report = Evaluator(network, tokenizer, config)(params, source_of([example]))
    assert report.metrics["mean_iou"] == 75
    assert parameter_shapes(network, config)["sharpness"].shape == ()


def test_an_image_is_encoded_once_for_many_calls(segmenter, colour_world, image):
    encoded = segmenter.encode(image)
    np.testing.assert_array_equal(encoded.image, image)
    for expressions in ("red", ["blue", "red"], ["green"]):
        asked, at_once = segmenter.segment(encoded, expressions), segmenter.segment(image, expressions)
        np.testing.assert_array_equal(asked.masks, at_once.masks)
        np.testing.assert_array_equal(asked.scores, at_once.scores)
    programs = ["encode_image", "encode_text 1", "fuse_and_decode 1", "fuse_and_decode 2"]
    assert colour_world.traced_methods == programs  # at most one expression is new


def test_an_image_may_be_the_bytes_of_a_file(segmenter, image, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    np.testing.assert_array_equal(segmenter.encode(path.read_bytes()).image, image)


def test_a_list_of_images_gives_the_results_of_one_by_one(tiny_workdir, tmp_path):
    segmenter = Segmenter.from_checkpoint(tiny_workdir, "latest")
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (40 + 3 * i, 56 - i, 3), dtype=np.uint8) for i in range(7)]
    Image.fromarray(arrays[1]).save(tmp_path / "image.png")
    images = [arrays[0], tmp_path / "image.png", Image.fromarray(arrays[2]), segmenter.encode(arrays[3]), *arrays[4:]]
    asked = [["the star", "the red circle", "the leftmost square"][: 1 + i % 3] for i in range(7)]
    together = segmenter.segment(images, asked)
    assert [result.expressions for result in together] == [tuple(texts) for texts in asked]
    for image, texts, result in zip(arrays, asked, together, strict=True):
        alone = segmenter.segment(image, texts)
        np.testing.assert_array_equal(result.masks, alone.masks)
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-5)
    for image, encoded in zip(arrays, segmenter.encode(arrays), strict=True):
        for several, one in zip(encoded.features, segmenter.encode(image).features, strict=True):
            np.testing.assert_allclose(several, one, atol=1e-5)


def test_expressions_are_the_same_for_all_images_or_one_sequence_for_each(segmenter, image):
    same = segmenter.segment([image, image[:, ::-1]], ["red", "blue"])
    assert [result.expressions for result in same] == [("red", "blue")] * 2
    assert [result.masks[:, 0, 0].tolist() for result in same] == [[True, False], [False, True]]
    assert [result.expressions for result in segmenter.segment([image] * 2, "red")] == [("red",)] * 2
    each = segmenter.segment([image] * 2, [["red", "blue", "green"], "blue"])
    assert [result.masks[:, 0, 0].tolist() for result in each] == [[True, False, False], [False]]
    assert segmenter.segment([], "red") == segmenter.encode([]) == []
    with pytest.raises(UserError, match="expressions has 1 sequences for 2 images; give one per image"):
        segmenter.segment([image] * 2, [["red"]])
    with pytest.raises(UserError, match="expressions is empty"):
        segmenter.segment([image] * 2, [["red"], []])


def test_any_number_of_images_and_expressions_takes_few_programs(segmenter, colour_world, image, monkeypatch):
    rows, ground = [], segmenter._ground

    def counted(params, features, words, token_mask, **named):
        rows.append(token_mask.shape[0] * token_mask.shape[1])
        return ground(params, features, words, token_mask, **named)

    monkeypatch.setattr(segmenter, "_ground", counted)
    for images in (*range(1, 12), 16, 17, 40):
        for expressions in (1, 2, 3, 5, 8, 9, 17, 33):
            results = segmenter.segment([image] * images, ["red"] * expressions)
            assert [len(result.masks) for result in results] == [expressions] * images
    assert max(rows) == BUCKETS[-1]  # which bounds the memory
    methods = Counter(method.split()[0] for method in colour_world.traced_methods)
    assert methods == {"encode_image": 5, "encode_text": 1, "fuse_and_decode": 20}


def test_encode_waits_for_the_device(segmenter, image, monkeypatch):
    waited = []

    class Features:
        def block_until_ready(self):
            waited.append(self)

    monkeypatch.setattr(segmenter, "_encode_images", lambda params, pixels: [(Features(),) for _ in pixels])
    one, several = segmenter.encode(image), segmenter.encode([image] * 3)
    assert waited == [*one.features, *(encoded.features[0] for encoded in several)]


def test_threads_do_not_compile_a_program_twice(segmenter, colour_world, image):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: segmenter.segment([image] * 2, "red"), range(8)))
    assert all(result.masks[0, 0, 0] for pair in results for result in pair)
    assert colour_world.traced_methods == ["encode_image", "encode_text 1", "fuse_and_decode 1"]


def test_each_network_has_its_own_fingerprint(colour_world, segmenter):
    network, _, params, tokenizer, config = colour_world
    other = Segmenter(network, {"sharpness": params["sharpness"] + 1}, tokenizer, config)
    again = Segmenter(network, dict(params), tokenizer, config)
    assert segmenter.fingerprint() == again.fingerprint() != other.fingerprint()
    first, second = (
        Segmenter(network, {"frozen": jnp.ones(3), "sharpness": params["sharpness"] + more}, tokenizer, config)
        for more in (0, 1)
    )
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize("expressions", [[], ()])
def test_no_expression(segmenter, image, expressions):
    with pytest.raises(UserError, match="expressions is empty"):
        segmenter.segment(image, expressions)


def test_expressions_may_come_from_an_iterator(segmenter, image):
    wanted = segmenter.segment(image, ["red", "blue"])
    for given in ((text for text in ["red", "blue"]), iter(["red", "blue"]), {"red": 1, "blue": 2}.keys()):
        found = segmenter.segment(image, given)
        assert found.expressions == ("red", "blue")
        np.testing.assert_array_equal(found.masks, wanted.masks)
    first, second = segmenter.segment([image, image], ((text for text in [one]) for one in ("red", "blue")))
    assert (first.expressions, second.expressions) == (("red",), ("blue",))
    with pytest.raises(UserError, match="expressions is empty"):
        segmenter.segment(image, iter(()))


@pytest.mark.parametrize(
    ("expressions", "kind"),
    [(None, "NoneType"), (3, "int"), (b"red", "bytes"), (["red", None], "NoneType"), ([["red", 3]], "int")],
)
@pytest.mark.parametrize("images", [1, 2])
def test_expressions_that_are_no_strings(segmenter, image, expressions, kind, images):
    with pytest.raises(UserError, match=rf"^an expression must be a string, got {kind}; give one string or a list of"):
        segmenter.segment([image] * images, expressions)


@pytest.mark.parametrize("expressions", ["", "   ", ["red", ""]])
def test_empty_expression(segmenter, image, expressions):
    with pytest.raises(UserError, match="no words"):
        segmenter.segment(image, expressions)


@pytest.mark.parametrize("expression", ["caf\udce9", "\ud83d", "人 \udfff"])
def test_an_expression_that_is_not_unicode(segmenter, image, expression):
    for use in (segmenter.remarks, lambda text: segmenter.segment(image, text)):
        with pytest.raises(UserError, match="is not valid Unicode; write it in UTF-8"):
            use(expression)


def test_missing_image(segmenter, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png"):
        segmenter.segment(tmp_path / "nowhere.png", "red")


@pytest.mark.parametrize(("wrong", "kind"), [(None, "NoneType"), (["red"], "list")])
def test_remarks_are_on_one_string(segmenter, wrong, kind):
    with pytest.raises(UserError, match=f"^an expression must be a string, got {kind}; give one string$"):
        unwrap(Segmenter.remarks)(segmenter, wrong)  # without the type checks of tests


def test_remarks(segmenter):
    assert segmenter.remarks("the red part") == []
    too_long, unknown = segmenter.remarks("the red part the red zebra")  # 6 words, [CLS] and [SEP]; 6 are taken
    assert "8 tokens" in too_long
    assert "first 6" in too_long
    assert "'zebra'" in unknown
    assert "'red'" not in unknown


def test_a_mask_does_not_depend_on_the_other_expressions(tiny_workdir):
    segmenter = Segmenter.from_checkpoint(tiny_workdir, "latest")
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    expressions = ["the red circle", "the small star left of the blue square", "the leftmost square"]
    together = segmenter.segment(image, expressions)
    for row, expression in enumerate(expressions):
        alone = segmenter.segment(image, expression)
        np.testing.assert_array_equal(alone.masks[0], together.masks[row])
        assert alone.scores[0] == pytest.approx(together.scores[row], abs=1e-5)


def test_explaining_changes_no_mask_and_names_every_part(tiny_workdir):
    segmenter = Segmenter.from_checkpoint(tiny_workdir, "latest")
    encoded = segmenter.encode(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    expressions = ["the red circle", "the leftmost square", "the star"]
    plain, explained = segmenter.segment(encoded, expressions), segmenter.segment(encoded, expressions, explain=True)
    np.testing.assert_array_equal(plain.masks, explained.masks)
    assert plain.explanations is None
    assert [e.words for e in explained.explanations] == [
        ("[CLS]", *expression.split(), "[SEP]") for expression in expressions
    ]
    for explanation in explained.explanations:
        assert explanation.directions == ("downwards", "leftwards", "upwards", "rightwards")
        assert explanation.word_attention.shape == (len(explanation.words), 4, 4)  # 32 pixels at stride 8
        np.testing.assert_allclose(explanation.word_attention.sum(0), 1, atol=1e-6)
        for pair in ("language_parses_vision", "vision_parses_language"):
            assert explanation.group_maps[pair].shape == (4, 4, 4)
            assert (explanation.group_maps[pair] > 0).all()
            np.testing.assert_allclose(explanation.balance_weights[pair].sum(0), 1, atol=1e-6)
        assert [stage.shape for stage in explanation.stages] == [(4, 4), (32, 32)]
        assert all(((stage >= 0) & (stage <= 1)).all() for stage in explanation.stages)


def test_the_parameters_are_transferred_to_the_device_once(tiny_workdir):
    loaded = Segmenter.from_checkpoint(tiny_workdir, "latest")
    config = loaded.config
    params = jax.device_get(loaded._params)  # arrays of NumPy, as a checkpoint may give them
    segmenter = Segmenter(build_network(config), params, Tokenizer(tiny_workdir / "vocab.txt", 16), config)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(segmenter._params))
    image = np.zeros((40, 56, 3), np.uint8)
    with jax.transfer_guard("disallow"):
        result = segmenter.segment(image, ["the red circle", "the leftmost square", "the star"])
    assert result.masks.shape == (3, 40, 56)


def test_a_missing_run_or_checkpoint_is_an_error(tiny_workdir, tmp_path):
    with pytest.raises(UserError, match=r"config\.json not found"):
        Segmenter.from_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_workdir / "config.json").read_bytes())
    (tmp_path / "vocab.txt").write_bytes((tiny_workdir / "vocab.txt").read_bytes())
    with pytest.raises(UserError, match="no checkpoint"):
        Segmenter.from_checkpoint(tmp_path)
    with pytest.raises(UserError, match=rf"train first .*, or restore {tmp_path}/model\.safetensors if this"):
        Segmenter.from_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()  # of a run that was stopped early
    with pytest.raises(UserError, match=r"no checkpoint in .*/checkpoints: train first \([^)]*\)$"):
        Segmenter.from_checkpoint(tmp_path)


def test_a_vocabulary_that_is_missing_or_damaged_is_to_be_restored(tiny_workdir, tmp_path):
    """Any other vocabulary, such as one of BERT, would be wrong."""
    (tmp_path / "config.json").write_bytes((tiny_workdir / "config.json").read_bytes())
    vocabulary, words = tmp_path / "vocab.txt", (tiny_workdir / "vocab.txt").read_text()
    restore = r"; restore the file, because the network was trained with its words$"
    with pytest.raises(UserError, match=rf"^vocabulary {vocabulary} not found{restore}"):
        Segmenter.from_checkpoint(tmp_path)
    vocabulary.write_text(words.replace("[SEP]\n", ""))
    with pytest.raises(UserError, match=rf"^{vocabulary} is not a BERT vocabulary: it lacks \[SEP\]{restore}"):
        Segmenter.from_checkpoint(tmp_path)
    vocabulary.write_text(words + "[SEP]\n")
    with pytest.raises(
        UserError, match=rf"^{vocabulary} has '\[SEP\]' twice, but every entry of a vocabulary must be unique{restore}"
    ):
        Segmenter.from_checkpoint(tmp_path)
    vocabulary.write_text("[CLS]\n" + words.replace("[CLS]\n", ""))
    with pytest.raises(UserError, match=rf"^{vocabulary} must begin with .*, but it begins with '\[CLS\]'{restore}"):
        Segmenter.from_checkpoint(tmp_path)
    vocabulary.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=rf"^{vocabulary} is not a vocabulary: it is not UTF-8 text{restore}"):
        Segmenter.from_checkpoint(tmp_path)


def test_a_checkpoint_is_the_best_or_the_latest(warm):
    """In a process of its own, because types are checked by the tests, but not where the package is used."""
    done = warm.run("-c", "from s2rm_jax import Segmenter; Segmenter.from_checkpoint(which='last')")
    expected = "which is 'last'; it must be 'best', 'latest' or a step"
    assert done.stderr.splitlines()[-1] == f"s2rm_jax.errors.UserError: {expected}"
