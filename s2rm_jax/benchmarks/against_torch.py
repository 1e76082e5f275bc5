"""The same network in JAX and in PyTorch on the same machine: whole, trained, and part by part."""

from __future__ import annotations

from collections.abc import Sequence

from s2rm_jax.benchmarks.parts import network_parts
from s2rm_jax.benchmarks.section import Row, Section, show_ratio
from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.benchmarks.timing import Timings, jitted, time_alternately
from s2rm_jax.benchmarks.torch_steps import TorchTwin
from s2rm_jax.benchmarks.training_step import training_step
from s2rm_jax.training.progress import counted

_PARTS = ("vision", "text", "fusion", "decoder")  # `resize` is a part of the decoder's last line in PyTorch


def against_torch(subject: Subject, rounds: int, batches: Sequence[int] = (1, 4)) -> list[Section]:
    """Measures inference at each size of batch, the training step of config.batch_size, and the parts.

    Raises:
        UserError: PyTorch is not installed.
    """
    twin = TorchTwin(subject)
    rows: list[Row] = []
    figures: dict[str, float] = {}

    def note(name: str, label: str, timings: Timings) -> None:
        for other in list(timings.seconds)[1:]:
            ratio = timings.ratio("jax", other)
            rows.append([f"{label}, {other}", timings.median("jax"), timings.median(other), show_ratio(ratio)])
            figures[f"{name}: jax / {other}"] = ratio.median

    for count in batches:
        note(f"inference {count}", f"inference, batch {count}", _inference(subject, twin, count, rounds))
    pictures, sentences = subject.config.batch_size, subject.config.input.expressions_per_image
    label = f"training step, batch {pictures}, {sentences} sentences a picture"
    note("training", label, _training(subject, twin, rounds))
    for name, part in network_parts(subject, 1, sentences).items():
        if name not in _PARTS:
            continue
        for backward in (False, True):
            way = "forward and backward" if backward else "forward"
            ours = part.backward() if backward else part.forward()
            timings = time_alternately({"jax": jitted(*ours), "eager": twin.part(name, part, backward)}, rounds)
            note(f"{name} {way}", f"{name}, {way}", timings)
    text = (
        "The network of interop/torch_model.py with the same parameters, on all cores, side by side: each round times "
        "all alternatives once. Inference takes one sentence a picture, and parts one picture with "
        f"{counted(sentences, 'sentence')}. A ratio is the median over {rounds} rounds, with its quartiles; "
        "below 1 JAX is faster. Wanted: at most 1 on a CPU."
    )
    return [Section("Against PyTorch", text, ["", "JAX, s", "PyTorch, s", "JAX / PyTorch"], rows, figures)]


def _inference(subject: Subject, twin: TorchTwin, count: int, rounds: int) -> Timings:
    images, (tokens, mask) = subject.images(count), subject.tokens(count, 1)
    alternatives = {
        "jax": jitted(*subject.forward(count, 1)),
        "eager": twin.inference(images, tokens, mask),
    }
    if twin.on_gpu:
        alternatives["torch.compile"] = twin.inference(images, tokens, mask, compiled=True)
    return time_alternately(alternatives, rounds, warm_up=2)


def _training(subject: Subject, twin: TorchTwin, rounds: int) -> Timings:
    batch, rate = subject.batch(), subject.config.optimizer.learning_rate
    alternatives = {"jax": training_step(subject).take, "eager": twin.training_step(batch, rate)}
    if twin.on_gpu:
        alternatives["torch.compile"] = twin.training_step(batch, rate, compiled=True)
    # The first steps find memory that the system still has to zero, in either program.
    return time_alternately(alternatives, rounds, warm_up=3)
