"""The files of an exported network describe what Segmenter does, and segment.py does it without this package."""

import ast
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import FORMATS, load_image, resize_image
from s2rm_jax.interop import exported_segment as standalone
from s2rm_jax.interop.torch_folder import write_preprocessing
from s2rm_jax.models.network import normalize


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    write_preprocessing(trained, "onnx", folder)
    return folder


@pytest.fixture
def settings(folder):
    return json.loads((folder / "preprocessing.json").read_text())


@pytest.fixture
def tokenizer(folder):
    return standalone.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_files(trained, folder, settings):
    assert {path.name for path in folder.iterdir()} == {
        "preprocessing.json",
        "segment.py",
        "tokenizer.json",
        "vocab.txt",
    }
    vocabulary = (folder / "vocab.txt").read_text().split("\n")[:-1]
    assert tuple(vocabulary) == trained.tokenizer.vocabulary
    text = settings["text"]
    ids = [text[name] for name in ("pad_id", "unknown_id", "start_id", "end_id")]
    assert [vocabulary[index] for index in ids] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert settings["format"] == "onnx"
    assert settings["functions"]["encode_image"]["images"] == "float32 [b, 32, 32, 3]"
    assert settings["functions"]["ground"]["tokens"] == "int32 [b, k, 16]"
    assert settings["functions"]["ground"]["returns"] == ["logits float32 [b, k, 32, 32]"]


def test_the_script_imports_only_what_its_users_have(folder):
    tree = ast.parse((folder / "segment.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for node in imports for name in _names(node)}
    allowed = {"jax", "numpy", "onnxruntime", "PIL", "safetensors", "tokenizers", "torch"}
    assert names - sys.stdlib_module_names == allowed


def test_the_script_reports_missing_packages_in_one_line(folder, tmp_path):
    shutil.copy(folder / "segment.py", tmp_path)
    (tmp_path / "tokenizers.py").write_text("raise ModuleNotFoundError(\"No module named 'tokenizers'\")")
    command = [sys.executable, tmp_path / "segment.py", "image.png", "the red circle"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    needs = "it needs: python -m pip install numpy pillow tokenizers"
    assert done.stderr == f"error: No module named 'tokenizers'; {needs}\n"


def _names(node):
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]


@pytest.mark.parametrize(
    "expression",
    [
        "the red circle",
        "The RED Circle!",
        "thé rêd cïrcle",
        "[SEP] the [PAD] star",
        "zebra crossing 图",
        "the small star left of the large blue square " * 3,
        "x" * 200,
        "red\tcircle\u200b , ' \" star",
    ],
)
def test_expressions_become_the_same_tokens(trained, tokenizer, expression):
    (tokens,), (token_mask,) = standalone.prepare_expressions([expression], tokenizer)
    wanted_tokens, wanted_mask = trained.tokenizer.encode(expression)
    np.testing.assert_array_equal(tokens, wanted_tokens, strict=True)
    np.testing.assert_array_equal(token_mask, wanted_mask, strict=True)


@pytest.mark.parametrize("expression", ["", "  \n", "\u200b"])
def test_an_expression_without_words(tokenizer, expression):
    with pytest.raises(ValueError, match="has no words"):
        standalone.prepare_expressions(["red", expression], tokenizer)


def _images():
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (23, 31, 3), dtype=np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (23, 31, 4), dtype=np.uint8))
    return {
        "rgb.jpg": rgb,
        "rgb.png": rgb,
        "cmyk.jpg": rgb.convert("CMYK"),
        "grey.png": rgb.convert("L"),
        "transparent.png": rgba,
        "transparent_grey.png": rgba.convert("LA"),
        "palette.gif": rgb.quantize(16),
        "one_bit.png": rgb.convert("1"),
        "16_bits.png": Image.fromarray(rng.integers(0, 65_536, (23, 31), dtype=np.uint16)),
        "16_bits.tiff": Image.fromarray(rng.integers(0, 65_536, (23, 31), dtype=np.uint16)),
        "16_bits_transparent.png": Image.fromarray(np.arange(23 * 31, dtype=np.uint16).reshape(23, 31)),
        "of_the_networks_size.png": rgb.resize((32, 32)),
    }


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", _images())
def test_images_become_the_same_numbers(settings, tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _images()[name].save(tmp_path / name, exif=exif, **({"transparency": 7} if "bits_transparent" in name else {}))
    found, wanted = standalone.load_image(tmp_path / name), load_image(tmp_path / name, apply_exif=True)
    np.testing.assert_array_equal(found, wanted, strict=True)
    wanted = normalize(resize_image(wanted, (32, 32)))
    np.testing.assert_array_equal(standalone.prepare_image(found, settings), wanted, strict=True)


def test_floating_point_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match=r"f\.tiff has floating-point values"):
        standalone.load_image(tmp_path / "f.tiff")


def test_values_of_more_than_16_bits_are_refused_as_by_the_segmenter(tmp_path):
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(ValueError, match=r"i\.tiff has 32-bit values"):
        standalone.load_image(tmp_path / "i.tiff")
    with pytest.raises(UserError, match=r"i\.tiff has 32-bit values"):
        load_image(tmp_path / "i.tiff")


def test_a_format_that_the_segmenter_does_not_open(tmp_path):
    """Pillow would start an external program for an EPS."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    with pytest.raises(standalone.LoadError, match=r"a\.eps is damaged or of an unsupported kind \(.*or convert it$"):
        standalone.load_image(tmp_path / "a.eps")
    assert {*standalone.FORMATS} == {*FORMATS} - {"HEIF"}  # which needs another package


def test_files_that_are_no_images_are_named(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "truncated.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "truncated.png").read_bytes()[:-30])
    (tmp_path / "empty.png").touch()
    damaged = r" is damaged or of an unsupported kind \([^\n]*\); download or copy it again, or convert it$"
    for name, message in {
        "nope.png": r" cannot be read \(No such file or directory\); check the path$",
        ".": r" cannot be read \(Is a directory\); check the path$",
        "truncated.png": damaged,
        "empty.png": damaged,
    }.items():
        with pytest.raises(standalone.LoadError, match=f"^{tmp_path / name}{message}"):
            standalone.load_image(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    assert standalone.load_image("~/good.png").shape == (4, 4, 3)


def test_an_expression_that_is_not_unicode(tokenizer):
    with pytest.raises(ValueError, match=r"^expression 'caf\\udce9' is not valid Unicode; write it in UTF-8$"):
        standalone.prepare_expressions(["red", "caf\udce9"], tokenizer)


def test_whatever_pillow_raises_is_a_damaged_image(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")  # several chunks of pixels
    before, first, after = (tmp_path / "a.png").read_bytes().partition(b"IDAT")
    (tmp_path / "a.png").write_bytes(before + first + after.replace(b"IDAT", b"\0\0\0\0"))  # Pillow: SyntaxError
    with pytest.raises(ValueError, match=r"^.*/a\.png is damaged or [^\n]* \(.+\); download or copy it again[^\n]*$"):
        standalone.load_image(tmp_path / "a.png")


@pytest.mark.parametrize("height", [9_000, 20_000])  # above it, Pillow warns or raises
def test_an_enormous_image_is_refused_without_a_warning_of_pillow(folder, tmp_path, height):
    Image.new("1", (10_000, height)).save(tmp_path / "large.png")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import segment; segment.load_image(sys.argv[2])"
    command = [sys.executable, "-c", code, folder, tmp_path / "large.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("large.png has more than 80,000,000 pixels; scale it down")
    assert "DecompressionBombWarning" not in done.stderr


def test_a_damaged_folder_is_to_be_exported_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(standalone, "load_onnx", lambda _: (None, None))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert standalone.load_network(tmp_path).settings["format"] == "onnx"
    message = rf"^the network in {tmp_path} cannot be loaded \([^\n]+\); export it again$"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=message):
        standalone.load_network(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=message):
        standalone.load_network(tmp_path)
    (tmp_path / "preprocessing.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        standalone.load_network(tmp_path)


def test_a_folder_that_does_not_exist(folder, tmp_path, monkeypatch):
    for given, message in {
        "nope": "^folder nope not found; check the path$",
        "": "^the path of the folder is empty; give",
        folder / "segment.py": r"segment\.py is a file; give its folder$",
        tmp_path: r"preprocessing\.json cannot be read \(No such file or directory\); check the path$",
    }.items():
        with pytest.raises(standalone.LoadError, match=message):
            standalone.load_network(given)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setattr(standalone, "load_onnx", lambda _: (None, None))
    assert standalone.load_network(f"~/{folder.name}").settings["format"] == "onnx"


def test_remarks_on_expressions(tokenizer):
    assert standalone.remarks("the red circle", tokenizer) == []
    unknown = "not in the vocabulary, so ignored or misread: 'zebra', '图'"
    assert standalone.remarks("the zebra the zebra 图", tokenizer)[-1] == unknown
    (truncated,) = standalone.remarks("the red circle " * 30, tokenizer)
    assert truncated.startswith("'the red circle the") and truncated.endswith(" is truncated to 16 tokens")
    assert len(truncated) < 120


def test_the_command_warns_of_remarks(folder, tokenizer, settings, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    network = _fake(tokenizer, settings)
    monkeypatch.setattr(standalone, "load_network", lambda _: network)
    monkeypatch.setattr(sys, "argv", ["segment.py", f"{tmp_path}/a.png", "the zebra", "--out", f"{tmp_path}/out"])
    standalone.main()
    assert capsys.readouterr().err == "warning: not in the vocabulary, so ignored or misread: 'zebra'\n"


def _fake(tokenizer, settings):
    def ground(features, tokens, token_mask):
        return [np.ones((*tokens.shape[:2], 32, 32), np.float32)]

    return standalone.Network(lambda images: None, ground, tokenizer, settings)


def test_one_expression_may_be_a_string(tokenizer, settings):
    image = np.zeros((5, 7, 3), np.uint8)
    assert standalone.segment(_fake(tokenizer, settings), image, "star").shape == (1, 5, 7)
    with pytest.raises(ValueError, match="no expression given; describe an object in the image"):
        standalone.segment(_fake(tokenizer, settings), image, [])


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((5, 7, 3), np.float32), r"float32 \[5, 7, 3\]"),
        (np.zeros((5, 7, 3), np.uint16), r"uint16 \[5, 7, 3\]"),
        (np.zeros((3, 5, 7), np.uint8), r"uint8 \[3, 5, 7\]"),
        (np.zeros((5, 7, 4), np.uint8), r"uint8 \[5, 7, 4\]"),
        (np.zeros((5, 7), np.uint8), r"uint8 \[5, 7\]"),
        (np.zeros((0, 7, 3), np.uint8), r"uint8 \[0, 7, 3\]"),
    ],
)
def test_an_image_of_another_shape_or_type_is_refused(tokenizer, settings, image, found):
    message = rf"^an image must be an array uint8 \[height, width, 3\], got {found}; load it with load_image\(path\)$"
    with pytest.raises(ValueError, match=message):
        standalone.segment(_fake(tokenizer, settings), image, ["star"])


@pytest.mark.parametrize("can_say_nothing", [False, True])
def test_many_expressions_go_in_rounds(settings, tokenizer, can_say_nothing):
    """The fake network marks every pixel if the length is even, and no referent if an expression has 4 tokens."""
    rounds = []

    def ground(features, tokens, token_mask):
        rounds.append(tokens.shape)
        assert features == "features" and tokens.shape == token_mask.shape
        length = token_mask.sum(-1)
        logits = np.where(length % 2 == 0, 1.0, -1.0)[..., None, None] * np.ones((32, 32), np.float32)
        return [logits.astype(np.float32), np.where(length == 4, 1.0, 0.0)][: 1 + can_say_nothing]

    network = standalone.Network(lambda images: "features", ground, tokenizer, settings)
    expressions = ["red", "red circle", "the red circle", "the large red circle"] * 9
    masks = standalone.segment(network, np.zeros((5, 7, 3), np.uint8), expressions)
    assert rounds == [(1, 32, 16), (1, 4, 16)]
    assert masks.shape == (36, 5, 7) and masks.dtype == bool
    found = [False, not can_say_nothing, False, True] * 9
    np.testing.assert_array_equal(masks.all((1, 2)), found)
    np.testing.assert_array_equal(masks.any((1, 2)), found)
