"""Many sentences on one picture, through the Segmenter as a person uses it, against as many single calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from s2rm_jax.benchmarks.part_floors import jitted
from s2rm_jax.benchmarks.parts import network_parts
from s2rm_jax.benchmarks.section import Row, Section
from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.benchmarks.timing import Timings, time_alternately
from s2rm_jax.segmenter import BUCKETS

SENTENCES = 7.2  # of a picture of RefCOCO val, in the mean: of five pictures, four with 7 and one with 8
_COUNTS = (1, 2, 4, 7, 8)
# LAVT's own code in PyTorch on 2 cores, float32, 480 px, Swin-B and BERT-base, and the Swin-B inside it, in one trial
# of an earlier day: only their ratio is used.
LAVT_SECONDS, LAVT_SWIN_SECONDS = 2.65, 1.45


def many_sentences(subject: Subject, rounds: int) -> list[Section]:
    """Measures `encode` once and `segment` for 7.2 sentences against 7.2 calls of `segment` with one each."""
    segmenter, picture = subject.segmenter(), subject.picture(480, 640)
    height, width = subject.config.input.image_size
    street, words = segmenter.encode(picture), subject.sentences(max(_COUNTS))
    vision = network_parts(subject, 1, 1)["vision"]
    actions: dict[str, Callable[[], object]] = {
        f"further {count}": partial(segmenter.segment, street, words[:count]) for count in _COUNTS
    }
    actions |= {
        "single": lambda: segmenter.segment(picture, words[0]),
        "encode": lambda: segmenter.encode(picture),
        "vision": jitted(*vision.forward()),
    }
    timings = time_alternately(actions, rounds)
    asked = {count: timings.median(f"further {count}") for count in _COUNTS}
    exact = [count for count in _COUNTS if count in BUCKETS]  # not those that are filled up
    further = float(np.polyfit(exact, [asked[count] for count in exact], 1)[0])
    per_picture = _per_picture(timings)
    gain = per_picture.ratio("single calls", "together").median
    together, single, encode = per_picture.median("together"), timings.median("single"), timings.median("encode")
    share = further / single
    rows: list[Row] = [
        ["one call with one sentence", single, 1 / single],
        ["encoding alone", encode, ""],
    ]
    rows += [[f"{count} sentence{'s' * (count > 1)} on an encoded picture", asked[count], ""] for count in _COUNTS]
    rows += [
        ["7.2 sentences together", together, SENTENCES / together],
        ["7.2 single calls", SENTENCES * single, 1 / single],
    ]
    text = (
        f"`Segmenter` on a picture of 480 x 640, the network's input {height} x {width}; "
        "7.2 sentences are the mean of RefCOCO val, here 0.8 times 7 and 0.2 times 8. Seven are filled up to eight, "
        f"for which a program is kept. **{gain:.2f} times** the sentences a second of single calls (wanted: at least "
        f"4). One more sentence costs {further:.3g} s, the slope over 1 to 8 of them: **{100 * share:.1f} %** of the "
        "first (wanted: at most 15 %)."
    )
    head = ["", "seconds", "sentences a second"]
    figures = {"together / single, sentences a second": gain, "one more / first": share, "sentences/s": 7.2 / together}
    return [
        Section("Many sentences on one picture", text, head, rows, figures),
        _lavt(timings.median("vision"), together),
    ]


def _per_picture(timings: Timings) -> Timings:
    """Sums up, round by round, what a picture with 7.2 sentences takes in either way."""
    rounds = zip(*(timings.seconds[name] for name in ("encode", "further 7", "further 8")), strict=True)
    together = tuple(encode + 0.8 * seven + 0.2 * eight for encode, seven, eight in rounds)
    return Timings({"together": together, "single calls": tuple(SENTENCES * s for s in timings.seconds["single"])})


def _lavt(vision: float, together: float) -> Section:
    ours, theirs = together / SENTENCES, LAVT_SECONDS / LAVT_SWIN_SECONDS * vision
    text = (
        "Expected, not measured side by side. LAVT runs its encoder again for every expression: in a trial of an "
        f"earlier day on 2 cores it took {LAVT_SECONDS} s each, of which the same Swin-B alone took "
        f"{LAVT_SWIN_SECONDS} s. Scaled by the time that our Swin takes now, which is taken to be as fast as theirs: "
        f"{LAVT_SECONDS} / {LAVT_SWIN_SECONDS} x {vision:.3g} s = {theirs:.3g} s. Ours is {together:.3g} s / "
        f"{SENTENCES} = {ours:.3g} s per expression: **{theirs / ours:.1f} times** as fast (wanted: at least 6). It "
        "holds for Swin-Base and BERT-base at 480 px only."
    )
    return Section("Expected beside LAVT", text, (), (), {"expected LAVT / ours": theirs / ours})
