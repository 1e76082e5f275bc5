"""Convert a trained network to PyTorch and back, export it to other runtimes, or upload it to the Hub.

    python -m s2rm_jax.convert to-pytorch   --workdir runs/mine --out mine_torch
    python -m s2rm_jax.convert from-pytorch --weights mine_torch --workdir runs/back
    python -m s2rm_jax.convert to-stablehlo --workdir runs/mine --out mine_stablehlo
    python -m s2rm_jax.convert to-onnx      --workdir runs/mine --out mine_onnx
    python -m s2rm_jax.convert to-hub       --workdir runs/mine --out mine --repo user/mine

Each command writes a new folder, completely or not at all. The folders of to-... contain a program, segment.py, that
uses the network without this package. The folder of to-hub is that of to-pytorch with a model card; with --repo it is
also uploaded to the Hugging Face Hub, see docs/hub.md. to-pytorch and from-pytorch do not need torch; to-onnx needs
pip install -e '.[onnx]'. Pretrained Swin and BERT are not converted but loaded at the start of training:
--config.vision.pretrained=PATH_OR_NAME --config.text.pretrained=PATH_OR_NAME. See docs/weights.md.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from s2rm_jax import command_line
from s2rm_jax.errors import UserError, counted

if TYPE_CHECKING:
    from s2rm_jax.interop.torch_folder import LoadedRun

CARD_FILE = "README.md"  # the Hub shows it

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "the workdir of a run (with from-pytorch: the workdir to create)", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "the folder to create", flag_values=FLAGS)
WEIGHTS = flags.DEFINE_string(
    "weights", None, "a folder that to-pytorch wrote, or a network on the Hub: hf://user/name", flag_values=FLAGS
)
REPO = flags.DEFINE_string(
    "repo",
    None,
    "with to-hub, the repository USER/NAME to upload to, which is created if it does not exist",
    flag_values=FLAGS,
)
PRIVATE = flags.DEFINE_bool("private", False, "with to-hub, create a private repository", flag_values=FLAGS)
LICENSE = flags.DEFINE_string(
    "license",
    None,
    "with to-hub, the licence of the weights by its name on the Hub, such as apache-2.0",
    flag_values=FLAGS,
)
CHECKPOINT = command_line.define_checkpoint(FLAGS)


def to_pytorch() -> None:
    """Write the network of a run as a folder that PyTorch reads."""
    from s2rm_jax.interop.torch_folder import write_pytorch
    from s2rm_jax.training.run import CONFIG_FILE

    with _export() as (trained, workdir, folder):
        write_pytorch(trained, workdir / CONFIG_FILE, folder)
    print(_usage("PyTorch", "numpy pillow safetensors tokenizers torch"))
    print(f"From Python: S2RMModel.from_pretrained({OUT.value!r}), of the torch_model.py in it")


def from_pytorch() -> None:
    """Write a folder that PyTorch reads as the workdir of a run."""
    from s2rm_jax.io import atomic_folder
    from s2rm_jax.training.run import find_run

    assert WEIGHTS.value is not None and WORKDIR.value is not None  # required
    with atomic_folder(WORKDIR.value, "--workdir") as folder:
        write_workdir(Path(find_run(WEIGHTS.value)), folder)
    next_command = f"python -m s2rm_jax.predict --workdir {shlex.quote(WORKDIR.value)} ..."
    print(f"{WORKDIR.value} holds the network at step 0. Next: {next_command}")


def to_stablehlo() -> None:
    """Write the network of a run as programs for every platform of JAX."""
    from s2rm_jax.interop.stablehlo import write_stablehlo

    with _export() as (trained, _, folder):
        write_stablehlo(trained, folder)
    print(_usage("StableHLO", "jax flatbuffers numpy pillow safetensors tokenizers"))


def to_onnx() -> None:
    """Write the network of a run as ONNX."""
    from s2rm_jax.interop.onnx import write_onnx

    with _export() as (trained, _, folder):
        error = write_onnx(trained, folder)
    print(f"ONNX Runtime's logits differ from JAX's by {error:.1e} of their norm")
    print(_usage("ONNX", "numpy onnxruntime pillow tokenizers"))


def to_hub() -> None:
    """Write the network of a run as a folder for the Hugging Face Hub, and upload it if --repo is given."""
    from s2rm_jax.hub import hub_error, is_repository
    from s2rm_jax.interop.torch_folder import write_pytorch
    from s2rm_jax.training.run import CONFIG_FILE

    assert OUT.value is not None  # required
    if REPO.value and not is_repository(REPO.value):
        raise UserError(f"--repo: {REPO.value} is not the name of a repository; give USER/NAME")
    name = REPO.value or f"USER/{Path(OUT.value).absolute().name}"
    with _export() as (run, workdir, folder):
        write_pytorch(run, workdir / CONFIG_FILE, folder)
        settings = _without_folders(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        card = model_card(name, run, _reports(workdir, run.step), LICENSE.value)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    if not REPO.value:
        print(f"{OUT.value} holds the network and its model card, {CARD_FILE}. Next: {_upload_command(name)}")
        return
    try:
        url = _upload(Path(OUT.value).expanduser(), REPO.value)
    except UserError:
        raise
    except Exception as error:  # huggingface_hub raises many kinds
        what = f"--repo: {OUT.value} is complete, but cannot be uploaded to {REPO.value} on the Hugging Face Hub"
        # Not the same command again, which refuses to replace --out.
        raise hub_error(what, error, f"run `{_upload_command(REPO.value)}`") from error
    print(f"{url} holds the network of {OUT.value}. From Python: Segmenter.from_checkpoint({REPO.value!r})")


def _upload_command(repo: str) -> str:
    """Return the command that uploads --out."""
    return f"hf upload {repo} {shlex.quote(str(OUT.value))}{' --private' if PRIVATE.value else ''}"


def _upload(folder: Path, repo: str) -> str:
    """Upload a folder in one commit, so that the repository never holds a part of it; return its address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    url = hub.create_repo(repo, private=PRIVATE.value or None, exist_ok=True)
    if PRIVATE.value and hub.repo_info(repo).private is False:  # it existed before, and stays as it was
        raise UserError(
            f"--private: {OUT.value} is complete, but {repo} exists and is public; make it private in its settings, "
            f"then run `{_upload_command(repo)}`"
        )
    files = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
    hub.create_commit(repo, files, commit_message="Upload a network of s2rm_jax")
    return str(url)


def _without_folders(settings: Any) -> Any:
    """Return a configuration without the folders of this machine: of absolute paths only the last part is kept."""
    if isinstance(settings, dict):
        return {name: _without_folders(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_without_folders(value) for value in settings]
    is_path = isinstance(settings, str) and settings.startswith(("/", "~"))
    return Path(settings).name if is_path else settings


def _reports(workdir: epath.Path, step: int | None) -> list[dict[str, Any]]:
    """Return metrics.json of the reports of `evaluate` in a workdir on the checkpoint of this step.

    If the best checkpoint is the latest one, both may have a report on the same data, of which one is returned.
    """
    from s2rm_jax.io import json_object

    contents = [json_object(file.read_bytes()) for file in sorted(workdir.glob("eval-*/metrics.json"))]
    needed = {"all", "definitions", "images", "limit", "protocol", "remarks", "source", "split", "step"}
    reports = [one for one in contents if one and needed <= one.keys() and one["step"] == step]
    same = ("source", "dataset", "split_by", "split", "protocol", "limit")
    return list({tuple(str(one.get(name)) for name in same): one for one in reports}.values())


_CARD = """---
{front}
---

# {folder}

This network segments what an English expression refers to in an image. It is an S2RM network (arXiv
2405.09006), exported by s2rm_jax {version}: {parameters:.1f} M parameters, images of {width} x {height}
pixels, expressions of up to {max_tokens} word pieces.

## Use

In JAX, with s2rm_jax installed:

```python
from s2rm_jax import Segmenter

result = Segmenter.from_checkpoint("{name}").segment("street.jpg", "the man in red")
result.masks  # bool [1, height, width]
```

In PyTorch, without s2rm_jax (`pip install huggingface_hub numpy pillow safetensors tokenizers torch`):

    hf download {name} --local-dir {folder}
    python {folder}/segment.py street.jpg "the man in red" --out masks

```python
import sys

sys.path.insert(0, "{folder}")  # the downloaded folder, with torch_model.py
from torch_model import S2RMModel

model = S2RMModel.from_pretrained("{name}")
```

`preprocessing.json` describes how images and expressions are prepared.

## Training

- Data: {data}
- Steps: {trained}; a step has {batch}
- Pretrained weights: {began}
- All settings: `config.json`

## Results

{results}

## Limits

English only. A mask is a guess, and its errors on any other data have not been measured. Do not use it to decide
anything about a person.

## Licence

Weights: {licence}. The training data has its own licences.
"""


def model_card(name: str, run: LoadedRun, reports: Sequence[dict[str, Any]], licence: str | None) -> str:
    """Return the model card of a network on the Hugging Face Hub, in Markdown.

    `name` is USER/NAME, `reports` are the contents of metrics.json of reports on the network.
    """
    import jax

    import s2rm_jax

    config = run.config
    height, width = config.input.image_size
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params)) / 1e6
    folder = name.split("/")[1]
    about = {
        "library_name": "s2rm_jax",
        "pipeline_tag": "image-segmentation",
        "language": "en",
        "tags": ["referring-image-segmentation", "s2rm", "jax", "pytorch"],
    } | ({"license": licence} if licence else {})
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in about.items())
    source = _without_folders(json.loads(json.dumps(config.input.source.to_dict())))
    data = ", ".join(f"{key} {value}" for key, value in source.items() if value not in (None, "", []))
    pretrained = {part: _without_folders(config[part].pretrained) for part in ("vision", "text")}
    began = ", ".join(f"{part} from {one}" for part, one in pretrained.items() if one) or "none"
    batch = (
        f"{counted(config.batch_size, 'image')} with {counted(config.input.expressions_per_image, 'expression')} each"
    )
    trained = f"step {run.step:,} of {config.steps:,}" if run.step else "unknown"
    return _CARD.format(
        front=front,
        name=name,
        folder=folder,
        version=s2rm_jax.__version__,
        parameters=parameters,
        width=width,
        height=height,
        max_tokens=config.text.max_tokens,
        data=data,
        trained=trained,
        batch=batch,
        began=began,
        results=_results(reports),
        licence=licence or "not stated by the author",
    )


def _results(reports: Sequence[dict[str, Any]]) -> str:
    from s2rm_jax.evaluation.protocols import PROTOCOLS
    from s2rm_jax.evaluation.tables import Table, as_markdown

    rows: list[tuple[str, ...]] = []
    notes: dict[str, None] = {}  # a set in the order of insertion
    for report in reports:
        known = PROTOCOLS.get(report["protocol"])
        titles, numbers = known.columns if known else {}, report["all"]
        data = " ".join(str(report[key]) for key in ("dataset", "split_by") if report.get(key)) or report["source"]
        images = f"{report['images']:,}" + (" (a part of the split)" if report["limit"] else "")
        for metric, title in titles.items():
            if (value := numbers.get(metric)) is not None:
                low, high = numbers.get("interval_95", {}).get(metric, (None, None))
                interval = "" if low is None else f"{low:.2f} to {high:.2f}"
                rows.append((data, report["split"], report["protocol"], title, f"{value:.2f}", interval, images))
        notes |= dict.fromkeys([report["definitions"], *report["remarks"]])
    if not rows:
        return "Not measured."
    columns = ("data", "split", "protocol", "metric", "value", "95 % interval", "images")
    table = as_markdown(Table("Metrics of these weights", columns, tuple(rows), text_columns=4))
    made = "Measured by `python -m s2rm_jax.evaluate --workdir RUN --split SPLIT --protocol PROTOCOL` on these weights."
    return "\n".join([table.strip(), "", made, *(f"\n{note}" for note in notes)])


def write_workdir(weights: Path, workdir: Path) -> None:
    """Write a folder of `to-pytorch`, perhaps trained further in PyTorch, as the workdir of a run at step 0.

    The run can be evaluated and used for prediction; training continues from its weights with a fresh optimizer. Scores
    are not calibrated, because the calibration of the folder may be that of other weights. The weights may also be a
    pytorch_model.bin, which needs torch. `workdir` is an empty folder.

    Raises:
        UserError: a file is missing or damaged, there are two files of weights, or the weights do not fit the
            config.json next to them.
        OSError: the workdir cannot be written to.
    """
    import jax

    from s2rm_jax.evaluation.calibration import UNCALIBRATED, Calibration
    from s2rm_jax.interop.torch_folder import read_pytorch
    from s2rm_jax.interop.weight_files import find_weights
    from s2rm_jax.io import require_space
    from s2rm_jax.models.network import build_network
    from s2rm_jax.parallel.mesh import make_mesh
    from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
    from s2rm_jax.training.logging import log
    from s2rm_jax.training.run import CONFIG_FILE, VOCAB_FILE, load_config, save_calibration
    from s2rm_jax.training.state import plan_state

    for name in (CONFIG_FILE, VOCAB_FILE):
        if not (weights / name).is_file():
            raise UserError(f"{weights / name} not found; --weights must be a folder that to-pytorch wrote")
    config = load_config(weights)
    plan = plan_state(build_network(config), config, make_mesh())
    file = find_weights(weights, only_one=True)
    params = read_pytorch(file, plan.abstract.params)
    log(f"Read the weights of {file}")
    # Checked first, because Orbax reports a full disk in a thousand lines.
    require_space(workdir, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.abstract)))
    for name in (CONFIG_FILE, VOCAB_FILE):
        (workdir / name).write_bytes((weights / name).read_bytes())
    if Calibration.of(config) != UNCALIBRATED:
        save_calibration(workdir, UNCALIBRATED)
        log("The weights may have changed, so scores are no longer calibrated: run evaluate --calibrate again.")
    with Checkpoints(workdir, config.checkpoint_every, config.eval.metric) as checkpoints:
        checkpoints.save(Checkpoint(0, plan.create(params), rows_seen=0, metrics=None))


@contextmanager
def _export() -> Iterator[tuple[LoadedRun, epath.Path, Path]]:
    """Load the network of --workdir and give it, its workdir, and the folder that becomes --out."""
    from s2rm_jax.io import atomic_folder
    from s2rm_jax.training.run import find_run, load_run

    assert WORKDIR.value is not None and OUT.value is not None  # required
    with atomic_folder(OUT.value, "--out") as folder:
        workdir = find_run(WORKDIR.value)
        yield load_run(workdir, CHECKPOINT.value), workdir, folder


def _usage(form: str, packages: str) -> str:
    return (
        f"{OUT.value} holds the network for {form}. To run it without s2rm_jax: pip install {packages} && "
        f'python {shlex.quote(f"{OUT.value}/segment.py")} IMAGE "the man in red" --out masks'
    )


_EXPORT = ("workdir", "out")
COMMANDS = {
    "to-pytorch": command_line.Command(to_pytorch, required=_EXPORT, optional=("checkpoint",)),
    "from-pytorch": command_line.Command(from_pytorch, required=("weights", "workdir")),
    "to-stablehlo": command_line.Command(to_stablehlo, required=_EXPORT, optional=("checkpoint",)),
    "to-onnx": command_line.Command(to_onnx, required=_EXPORT, optional=("checkpoint",)),
    "to-hub": command_line.Command(to_hub, required=_EXPORT, optional=("checkpoint", "repo", "private", "license")),
}

if __name__ == "__main__":
    command_line.run_command(COMMANDS, FLAGS, __doc__)
