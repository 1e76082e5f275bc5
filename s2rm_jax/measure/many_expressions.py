"""Several expressions per image through the Segmenter: their speed, and the programs that requests compile."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError, counted
from s2rm_jax.measure.harness import Cells, Section, Subject, Timings, time_alternately
from s2rm_jax.segmenter import BUCKETS

EXPRESSIONS = 7.2  # mean per image of RefCOCO val, modelled as 7 for four images of five and 8 for the fifth
_SHARE_OF_8 = EXPRESSIONS - 7
_COUNTS = (1, 2, 4, 7, 8)


def many_expressions(subject: Subject, rounds: int) -> list[Section]:
    """Measure one `encode` and one `segment` for 7.2 expressions, and 7.2 calls of `segment` with one each."""
    height, width = subject.config.input.image_size
    timings = time_alternately(_calls(subject, _COUNTS), rounds)
    seconds = {count: timings.median(f"segment {count}") for count in _COUNTS}
    unpadded = [count for count in _COUNTS if count in BUCKETS]
    slope = float(np.polyfit(unpadded, [seconds[count] for count in unpadded], 1)[0])
    per_image = _per_image(timings)
    gain = per_image.ratio("single calls", "together").median
    together, single = per_image.median("together"), timings.median("single")
    by_count: list[Cells] = [
        [f"{counted(count, 'expression')} on an encoded image", seconds[count], ""] for count in _COUNTS
    ]
    rows: list[Cells] = [
        ["one call with one expression", single, 1 / single],
        ["encoding alone", timings.median("encode"), ""],
        *by_count,
        [f"{EXPRESSIONS} expressions together", together, EXPRESSIONS / together],
        [f"{EXPRESSIONS} single calls", EXPRESSIONS * single, 1 / single],
    ]
    text = (
        f"`Segmenter` on an image of 480 x 640, network input {height} x {width}. {EXPRESSIONS} expressions per image "
        f"are the mean of RefCOCO val, modelled as {1 - _SHARE_OF_8:.1f} times 7 and {_SHARE_OF_8:.1f} times 8. Seven "
        "expressions are padded to eight, for which a program is kept. Together they reach "
        f"**{gain:.2f} times** the expressions per second of single calls (target: at least 4). Each further "
        f"expression costs {slope:.3g} s, the slope over 1 to 8 expressions: **{100 * slope / single:.1f} %** of the "
        "first (target: at most 15 %)."
    )
    figures = {
        "together / single, expressions a second": gain,
        "one more / first": slope / single,
        "expressions/s": EXPRESSIONS / together,
    }
    head = ["", "seconds", "expressions per second"]
    return [Section("Many expressions on one image", text, head, rows, figures)]


def _calls(subject: Subject, counts: Collection[int]) -> dict[str, Callable[[], object]]:
    """Return calls of the Segmenter: "segment COUNT" on an encoded image, "single" on an image, and "encode".

    Each call has new expressions, because the Segmenter keeps those that it has encoded.
    """
    segmenter, image = subject.segmenter(), subject.image(480, 640)
    encoded, asked = segmenter.encode(image), itertools.count(step=max(counts))

    def segment(image: Any, count: int) -> object:
        return segmenter.segment(image, subject.expressions(count, first=next(asked)))

    return {
        **{f"segment {count}": partial(segment, encoded, count) for count in counts},
        "single": partial(segment, image, 1),
        "encode": partial(segmenter.encode, image),
    }


def _per_image(timings: Timings) -> Timings:
    """Return the seconds per image with 7.2 expressions in each round, together and by single calls."""
    rounds = zip(*(timings.seconds[name] for name in ("encode", "segment 7", "segment 8")), strict=True)
    together = tuple(encode + (1 - _SHARE_OF_8) * seven + _SHARE_OF_8 * eight for encode, seven, eight in rounds)
    return Timings({"together": together, "single calls": tuple(EXPRESSIONS * s for s in timings.seconds["single"])})


def _sizes(config: ConfigDict) -> tuple[int, ...]:
    """Return the sizes of Swin, BERT and the image, which must be LAVT's: those of the default configuration."""
    vision, text = config.vision, config.text
    encoders = (vision.embed_dim, *vision.depths, vision.window_size, text.hidden_size, text.num_layers)
    return (*encoders, *config.input.image_size)


def against_lavt(subject: Subject, rounds: int, lavt: str | None) -> list[Section]:
    """Measure LAVT's own code in eager PyTorch alongside the Segmenter, in the same process and rounds.

    `lavt` is a checkout of github.com/yz93/LAVT-RIS.

    Raises:
        UserError: there is no checkout, PyTorch is not installed, or the sizes differ.
    """
    if _sizes(subject.config) != _sizes(default_config()):
        raise UserError("--suite=lavt needs the default encoders and image size, because LAVT has the same")
    actions = {"LAVT": _lavt_network(lavt, subject.config), **_calls(subject, (7, 8))}
    timings = time_alternately(actions, rounds)
    per_image = _per_image(timings)
    both = Timings({"LAVT": tuple(EXPRESSIONS * s for s in timings.seconds["LAVT"]), **per_image.seconds})
    ratio, alone = both.ratio("LAVT", "together"), both.ratio("LAVT", "single calls")
    rows: list[Cells] = [
        ["LAVT", timings.median("LAVT"), ""],
        ["ours, one expression alone", timings.median("single"), str(alone)],
        [f"ours, {EXPRESSIONS} expressions together", per_image.median("together") / EXPRESSIONS, str(ratio)],
    ]
    text = (
        "LAVT's code with random weights of Swin-Base and BERT-base, in eager PyTorch, float32, as its test.py runs "
        "it: BERT and then the whole network for each expression, from an image that is already resized and "
        f"normalized. Ours, in {subject.config.dtype}, is `Segmenter` from an image of 480 x 640 to masks of its size. "
        f"Ratios are within rounds, with quartiles. Per expression at {EXPRESSIONS} expressions per image, ours is "
        f"**{ratio.median:.1f} times** as fast."
    )
    head = ["", "s/expression", "LAVT / ours"]
    return [Section("Comparison with LAVT", text, head, rows, {"LAVT / ours": ratio.median})]


def _lavt_network(checkout: str | None, config: ConfigDict) -> Callable[[], Any]:
    """Return a forward pass of the code in `checkout` for one expression, on the GPU if JAX uses one."""
    if not checkout or not (Path(checkout) / "lib" / "segmentation.py").is_file():
        raise UserError("--lavt: no lib/segmentation.py there; give a checkout of github.com/yz93/LAVT-RIS")
    try:
        import torch
    except ImportError as error:
        raise UserError("--suite=lavt: PyTorch is not installed: pip install -e '.[torch]'") from error
    # All that the network takes from timm, mmcv and mmsegmentation, whose old versions cannot be installed any more.
    # Stochastic depth is off in inference, and no weights are loaded.
    stand_ins = {name: ModuleType(name) for name in ("timm", "timm.models", "mmseg")}
    contents: dict[str, dict[str, Any]] = {
        "timm.models.layers": {
            "DropPath": lambda rate: torch.nn.Identity(),
            "to_2tuple": lambda number: (number, number),
            "trunc_normal_": torch.nn.init.trunc_normal_,
        },
        "mmseg.utils": {"get_root_logger": None},
        "lib.mmcv_custom": {"load_checkpoint": None},
    }
    for name, content in contents.items():
        stand_ins[name] = ModuleType(name)
        vars(stand_ins[name]).update(content)
    sys.modules.update(stand_ins)
    sys.path.insert(0, checkout)
    try:
        bert = importlib.import_module("bert.modeling_bert")
        settings = importlib.import_module("bert.configuration_bert").BertConfig()
        lib = importlib.import_module("lib.segmentation")
    except ImportError as error:
        raise UserError(f"--lavt: {checkout} cannot be imported ({error}); install what is missing") from error
    finally:
        sys.path.remove(checkout)
        for name in stand_ins:
            del sys.modules[name]
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    with redirect_stdout(sys.stderr):  # it prints what it builds
        network = lib.lavt("", Namespace(swin_type="base", window12=True, mha="", fusion_drop=0.0)).eval().to(device)
    encoder = bert.BertModel(settings).eval().to(device)
    images = torch.randn(1, 3, *config.input.image_size, device=device)
    tokens = torch.ones(1, config.text.max_tokens, dtype=torch.long, device=device)

    def infer() -> Any:
        with torch.inference_mode():
            words = encoder(tokens, attention_mask=tokens)[0].permute(0, 2, 1)
            return network(images, words, l_mask=tokens.unsqueeze(-1)).cpu()  # waits for the device

    return infer


_COMPILED = "/jax/core/compile/backend_compile_duration"  # one event per program


@contextmanager
def record_compilations() -> Iterator[list[float]]:
    """Record the seconds of each program that is compiled inside."""
    seconds: list[float] = []

    def record(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(record)


def serving_programs(subject: Subject, rounds: int) -> list[Section]:
    """Count the programs compiled for 6 x `rounds` images of random sizes, each with 1 to 8 expressions."""
    segmenter, rng, most = subject.segmenter(), np.random.default_rng(5), 8
    seconds: list[float] = []
    with record_compilations() as compilations:
        for index in range(6 * rounds):
            height, width = rng.integers(100, 1500, 2).tolist()
            texts = subject.expressions(int(rng.integers(1, most + 1)), first=index * most)
            start = time.perf_counter()
            segmenter.segment(subject.image(height, width), texts)
            seconds.append(time.perf_counter() - start)
    programs, bound = len(compilations), 1 + 2 * sum(size < 2 * most for size in BUCKETS)
    text = (
        f"{len(seconds)} successive requests with images of 100 to 1,500 pixels per side and 1 to {most} expressions. "
        f"Expected: one program for images, and two for each number of expressions among "
        f"{', '.join(map(str, BUCKETS))} up to the first that is at least {most}; so at most {bound} programs."
    )
    rows: list[Cells] = [
        ["programs compiled", programs],
        ["compilation, seconds", sum(compilations)],
        ["median request, seconds", float(np.median(seconds))],
        ["slowest request, seconds", max(seconds)],
    ]
    return [Section("Programs compiled for requests of varying sizes", text, ["", ""], rows, {"programs": programs})]
