"""The images of a job: folders, patterns and lists; and the share of a process."""

import importlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from etils.epath import backend
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.prediction.files import Options
from s2rm_jax.prediction.image_lists import list_items
from s2rm_jax.prediction.job import find_share, run_job
from tests.command import run_process
from tests.training.fake_bucket import BucketFileSystem

RED = {"image": "red.png", "expressions": ["the red part", "red"]}
BLUE = {"image": "more/blue.png"}
OUT = Path("/nowhere")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "red.png")
    Image.new("RGB", (6, 4), "blue").save(tmp_path / "more/blue.png")
    return tmp_path


def found(images, *expressions):
    return [(item.image, item.expressions, item.folder) for item in list_items(str(images), expressions, OUT)]


def write_text(path):
    path.write_bytes(b"\xef\xbb\xbfred.png\r\n\r\nmore/blue.png\nred.png\n")


def write_json_lines(path):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (RED, BLUE)) + "\n")


def write_parquet(path):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    parquet = importlib.import_module("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([RED, BLUE | {"expressions": None}]), path)


@pytest.mark.parametrize(
    ("name", "write", "own"),
    [("list.txt", write_text, None), ("list.jsonl", write_json_lines, 1), ("list.parquet", write_parquet, 1)],
)
def test_a_list_of_images(folder, name, write, own):
    """Paths are relative to the list; --text is for images without expressions of their own."""
    write(folder / name)
    expressions = tuple(RED["expressions"]) if own else ("a dog",)
    red, blue = str(folder / "red.png"), str(folder / "more/blue.png")
    assert found(folder / name, "a dog") == [(red, expressions, "red"), (blue, ("a dog",), "more/blue")]
    missing = blue if own else red
    with pytest.raises(UserError, match=rf"^--text is missing, and {missing} has no expressions of its own"):
        list_items(str(folder / name), [], OUT)


def test_results_of_the_job_are_not_images_of_its_pattern(folder):
    for name in ("more/blue/overlay.png", "more/blue/mask_1_a_dog.png", "more/blue/mine.png", "overlay.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    items = list_items(f"{folder}/**/*.png", ["red"], folder / "more")
    names = ["more/blue/mine.png", "more/blue.png", "overlay.png", "red.png"]
    assert sorted(item.image for item in items) == sorted(str(folder / name) for name in names)
    (folder / "list.txt").write_text("overlay.png\n")
    assert len(list_items(str(folder / "list.txt"), ["red"], folder)) == 1


def test_images_that_are_left_out_are_counted_and_named(folder, caplog):
    for name in ("overlay.png", "mask_1_a_cat.png", "how.png"):
        Image.new("RGB", (6, 4)).save(folder / name)
    with caplog.at_level(logging.WARNING):
        assert [item.folder for item in list_items(str(folder), ["red"], folder)] == ["how", "red"]
        assert len(list_items(str(folder), ["red"], OUT)) == 4
    message = caplog.messages[1]
    reason = "left out because they are in --out and named like its results: 2 (mask_1_a_cat.png, overlay.png)"
    assert message == f"{folder}: {reason}"
    message = r"has no images apart from 1 named like results in --out \(overlay\.png\); give a folder or a pattern"
    with pytest.raises(UserError, match=message):
        list_items(f"{folder}/over*.png", ["red"], folder)


def test_figures_of_the_job_are_not_images_of_its_pattern_wherever_its_folder_is_seen_from(folder):
    for name in ("more/1/how.png", "more/2/how_1.png", "more/2/how_old.png", "how.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    (folder.parent / "link").symlink_to(folder / "more")
    for out in (folder / "more", folder.parent / "link", folder / "more" / ".." / "more"):
        items = list_items(f"{folder}/**/*.png", ["red"], out, "how.png")
        names = ["how.png", "more/2/how_old.png", "more/blue.png", "red.png"]
        assert sorted(item.image for item in items) == sorted(str(folder / name) for name in names)


def test_entries_of_the_same_image_are_joined(folder):
    entries = [RED, BLUE | {"expressions": ["blue"]}, {"image": "red.png", "expressions": ["red", "a dog"]}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert [item.expressions for item in list_items(str(folder / "list.jsonl"), (), OUT)] == [
        ("the red part", "red", "a dog"),
        ("blue",),
    ]


def test_absolute_paths_addresses_and_paths_that_lead_up(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "more/list.txt").write_text(f"../red.png\n{folder}/more/blue.png\n../more/../red.png\n~/red.png\n")
    items = list_items(str(folder / "more/list.txt"), ["red"], OUT)
    assert [item.folder for item in items] == ["red", "more/blue"]
    (folder / "list.txt").write_text("https://example.org/a/b.jpg\ngs://bucket/c.png\n")
    assert [item.image for item in list_items(str(folder / "list.txt"), ["red"], OUT)] == [
        "https://example.org/a/b.jpg",
        "gs://bucket/c.png",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{", r"a\.jsonl: line 1 is not JSON \(.*\); write one object per line"),
        ("a.jsonl", json.dumps([RED]), r"a\.jsonl: line 1 needs 'image', the path or address of an image"),
        ("a.jsonl", '\n{"image": ""}', r"a\.jsonl: line 2 needs 'image'"),
        ("a.jsonl", '{"image": "a", "expressions": "red"}', r"line 1: 'expressions' must be a list of strings"),
        (
            "a.jsonl",
            '{"image": "a", "expression": "red"}',
            r"line 1: 'expression' is not a field that is read; did you mean",
        ),
        (
            "a.jsonl",
            '{"image": "a", "texts": ["red"]}',
            r"line 1: 'texts' is not a field .*; did you mean 'expressions'",
        ),
        (
            "a.jsonl",
            '{"image": "a"}\n{"image": "b", "Expresions": []}',
            r"line 2: 'Expresions' is not a field that is read",
        ),
        ("a.txt", "\n \n", r"^--images: .*a\.txt has no images"),
        (
            "a.csv",
            "red.png,the red part\n",
            r"^--images: .*a\.csv is neither an image nor a list; give .*\.jsonl or \.parq",
        ),
        ("a.parquet", "text", r"a\.parquet cannot be read \(.*\); check it and its permissions"),
        ("b.txt", None, r"no file matches .*b\.txt"),
    ],
)
def test_a_list_with_mistakes(tmp_path, name, content, message):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list_items(str(tmp_path / name), ["red"], OUT)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(("name", "write"), [("list.txt", write_text), ("list.jsonl", write_json_lines)])
def test_a_list_in_another_encoding(folder, name, write, encoding):
    write(folder / name)
    (folder / name).write_bytes((folder / name).read_text("utf-8-sig").encode(encoding))
    with pytest.raises(UserError, match=rf"^{folder}/{name} is not UTF-8 text .*; save it as UTF-8$"):
        list_items(str(folder / name), ["red"], OUT)


def test_other_fields_of_a_list_are_ignored(folder):
    """A file of annotations for training is a list too."""
    extra = {"mask": "red_mask.png", "split": "val", "id": 3}
    lines = [RED | extra | {"text": "on a sign"}, BLUE | extra | {"expression_id": 4}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [item.expressions for item in list_items(str(folder / "list.jsonl"), ["a dog"], OUT)] == [
        tuple(RED["expressions"]),
        ("a dog",),
    ]


def test_columns_of_a_parquet_file_that_look_like_expressions(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    parquet = importlib.import_module("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": ["red.png"], "sentences": [["red"]]}), folder / "list.parquet")
    with pytest.raises(UserError, match=r"list\.parquet: column 'sentences' is not a field that is read; did you mean"):
        list_items(str(folder / "list.parquet"), ["red"], OUT)


def test_an_image_without_a_suffix_is_an_image(folder):
    (folder / "red.png").rename(folder / "red")
    assert [item.image for item in list_items(str(folder / "red"), ["red"], OUT)] == [str(folder / "red")]


@pytest.mark.parametrize("address", ["file:///a.png", "ftp://example.org/a.png"])
def test_an_image_at_an_address_of_another_kind(folder, segmenter, address, tmp_path):
    (folder / "list.txt").write_text(f"{address}\n")
    part = run_job(segmenter, list_items(str(folder / "list.txt"), ["red"], OUT), (0, 1), tmp_path / "out", Options())
    message = "cannot be read: addresses of its kind are not supported; give a path, https://... or gs://..."
    assert part.failed == [{"image": address, "error": f"{address} {message}"}]


def test_lists_and_images_on_a_bucket(folder, segmenter, monkeypatch, tmp_path):
    objects = {f"bucket/data/{name}": (folder / name).read_bytes() for name in ("red.png", "more/blue.png")}
    objects |= {
        "bucket/data/list.jsonl": json.dumps(RED).encode(),
        "bucket/data/damaged.png": b"no image",
        "bucket/more/a.txt": b"",
    }
    system = BucketFileSystem(SimpleNamespace(objects=objects))
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda *_: system)
    assert found("gs://bucket/data/list.jsonl") == [("gs://bucket/data/red.png", tuple(RED["expressions"]), "red")]
    assert [image for image, *_ in found("gs://bucket/data/r*.png", "red")] == ["gs://bucket/data/red.png"]
    part = run_job(segmenter, list_items("gs://bucket/data", ["red"], OUT), (0, 1), tmp_path / "out", Options())
    assert part.count == 1 and part.failed[0]["error"].startswith("gs://bucket/data/damaged.png: the image is not an ")
    with pytest.raises(UserError, match="gs://bucket/more has no images"):
        list_items("gs://bucket/more", ["red"], OUT)
    for missing in ("gs://bucket/none", "gs://bucket/none.jsonl", "none://bucket/list.txt"):
        with pytest.raises(UserError, match=f"{missing} cannot be read"):
            list_items(missing, ["red"], OUT)
    with pytest.raises(UserError, match="is an address; give a folder"):
        list_items("https://example.org/list.txt", ["red"], OUT)


@pytest.mark.parametrize("given", ["1", "1/1", "-1/2", "a/2", "0/0", "1/2/3", ""])
def test_a_share_that_is_none(given):
    with pytest.raises(UserError, match="is not I/N with I from 0 to N - 1, such as 0/4"):
        find_share(given)


def test_the_share_comes_from_the_flag_or_the_environment(monkeypatch):
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}
    slurm |= {"SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "4"}
    assert find_share("3/8") == (3, 8)
    assert find_share(None) == (0, 1)
    devices = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: devices.append((name, value)))
    with monkeypatch.context() as patch:
        for name, value in slurm.items():
            patch.setenv(name, value)
        patch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
        assert find_share(None) == (2, 4)
        assert ("jax_cuda_visible_devices", "2") in devices
        patch.delenv("SLURM_PROCID")
        with pytest.raises(
            UserError, match=r"^--shard is missing, and .*: give --shard=I/N, or --shard=0/1 for this process alone"
        ):
            find_share(None)
        assert find_share("0/1") == (0, 1)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    with pytest.raises(UserError, match=r"--shard=\$\(JOB_COMPLETION_INDEX\)/N"):
        find_share(None)


FINDS_ITS_SHARE = """
import sys
from jax._src import xla_bridge
from s2rm_jax import predict

def find_share(given):
    print(f"opened: {xla_bridge.backends_are_initialized()}")
    sys.exit()

predict.find_share = find_share
predict.FLAGS(["predict", "--images=frames", "--text=red", "--out=out"])
predict.main()
"""


def test_the_share_is_found_before_any_accelerator_is_opened():
    """It limits the process to its own accelerators, which has no effect later."""
    done = run_process("-c", FINDS_ITS_SHARE)
    assert (done.stdout, done.stderr) == ("opened: False\n", "")
