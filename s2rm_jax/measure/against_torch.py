"""The same network in JAX and in PyTorch on the same machine: whole, trained, and part by part.

The network in PyTorch with the same parameters, its parts, and its training step, as one would write them there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import unpack_masks
from s2rm_jax.interop.layout import export_arrays
from s2rm_jax.interop.parameter_names import network_layout
from s2rm_jax.measure.section import Row, Section, show_ratio
from s2rm_jax.measure.subject import Part, Subject, network_parts
from s2rm_jax.measure.timing import Timings, jitted, time_alternately
from s2rm_jax.measure.training_speed import training_step
from s2rm_jax.models.network import normalize
from s2rm_jax.training.logging import counted
from s2rm_jax.training.losses import DICE_SMOOTHING


class TorchTwin:
    """The twin of a subject, on the GPU where JAX is on one, else on all cores.

    What its methods return is timed as it is: it waits until the device is done. In bfloat16 where the configuration
    says so, by autocast, which is PyTorch's way.
    """

    def __init__(self, subject: Subject):
        """Raises UserError where PyTorch is not installed, or the loss is one that is not written here."""
        try:
            import torch

            from s2rm_jax.interop.torch_model import S2RMModel
        except ImportError as error:
            raise UserError("--suite=torch: PyTorch is not installed: pip install -e '.[torch]'.") from error
        config = subject.config
        if config.loss.kind != "bce_dice" or config.loss.coarse_weight or config.decoder.no_target_width:
            raise UserError("--suite=torch: its loss is bce_dice on the finest masks alone; let config.loss say so.")
        self.torch: Any = torch
        self.on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        torch.set_num_threads(os.cpu_count() or 1)
        self.half = config.dtype == "bfloat16"
        self.model: Any = S2RMModel(config.to_dict())
        arrays = export_arrays(network_layout(subject.params), subject.params)
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.model.to(self.device).eval()

    def tensor(self, array: Any) -> Any:
        """Copies an array to the device."""
        array = np.array(array)
        if array.dtype == jnp.bfloat16:  # which PyTorch does not take from NumPy
            return self.torch.from_numpy(array.astype(np.float32)).bfloat16().to(self.device)
        return self.torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array).to(self.device)

    def image_tensor(self, images: Any) -> Any:
        """Copies images [B, H, W, 3] to the device, channels first."""
        return self.tensor(np.moveaxis(np.asarray(images), -1, 1))

    def inference(self, images: Any, tokens: Any, mask: Any, compiled: bool = False) -> Callable[[], Any]:
        """Returns what segments the expressions of normalised images; `compiled` by torch.compile."""
        model = self.torch.compile(self.model) if compiled else self.model
        arguments = (self.image_tensor(images), self.tensor(tokens), self.tensor(mask))

        def infer() -> Any:
            with self.torch.inference_mode(), self._autocast():
                return model(*arguments).logits

        return self._finished(infer)

    def part(self, name: str, part: Part, backward: bool) -> Callable[[], Any]:
        """Returns what computes a part of `network_parts` on the same inputs, and its gradients if `backward`."""
        function, inputs, parameters = self._part(name, part)

        def forward() -> Any:
            with self.torch.inference_mode(), self._autocast():
                return function(*inputs)

        wanted = [leaf for index in part.trained_inputs for leaf in _leaves(inputs[index])]

        def forward_backward() -> Any:
            for tensor in (*parameters, *wanted):
                tensor.grad = None
                tensor.requires_grad_()
            with self._autocast():
                outputs = _leaves(function(*inputs))
                loss = sum(output.float().square().mean() for output in outputs)
            loss.backward()
            return wanted

        return self._finished(forward_backward if backward else forward)

    def training_step(self, batch: Any, learning_rate: float, compiled: bool = False) -> Callable[[], Any]:
        """Returns what takes one step of AdamW on a batch: loss, gradient, update, dropout and all."""
        model = self.torch.compile(self.model) if compiled else self.model
        optimizer = self.torch.optim.AdamW(self.model.parameters(), lr=learning_rate, fused=True)
        inputs = self.image_tensor(normalize(batch.images)), self.tensor(batch.tokens), self.tensor(batch.token_mask)
        truth = self.tensor(unpack_masks(batch.targets, batch.images.shape[1])).float()

        def step() -> Any:
            model.train()
            with self._autocast():
                logits = model(*inputs).logits
            loss = self.loss(logits.float(), truth)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.eval()
            return loss.detach()

        return self._finished(step)

    def loss(self, logits: Any, truth: Any) -> Any:
        """The "bce_dice" of training/losses.py, of expressions that all have a target."""
        cross_entropy = self.torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        found = logits.sigmoid()
        overlap, areas = (found * truth).sum((-2, -1)), (found + truth).sum((-2, -1))
        return cross_entropy + (1 - (2 * overlap + DICE_SMOOTHING) / (areas + DICE_SMOOTHING)).mean()

    def _part(self, name: str, part: Part) -> tuple[Callable[..., Any], tuple[Any, ...], list[Any]]:
        if name == "vision":
            return self.model.vision, (self.image_tensor(part.inputs[0]),), list(self.model.vision.parameters())
        inputs = jax.tree.map(self.tensor, part.inputs)
        if name == "text":
            inputs = tuple(x.flatten(0, 1) for x in inputs)
            return self.model.text, inputs, list(self.model.text.parameters())
        if name == "fusion":
            return lambda *x: self.model.fusion(*x)[0], inputs, list(self.model.fusion.parameters())
        assert name == "decoder", name
        return lambda *x: self.model.decoder(*x)[-1], inputs, list(self.model.decoder.parameters())

    def _autocast(self) -> Any:
        return self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.half)

    def _finished(self, action: Callable[[], Any]) -> Callable[[], Any]:
        def done() -> Any:
            result = action()
            if self.on_gpu:
                self.torch.cuda.synchronize()
            return result

        return done


def _leaves(tensors: Any) -> Sequence[Any]:
    return tensors if isinstance(tensors, tuple | list) else (tensors,)


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
    images, expressions = subject.config.batch_size, subject.config.input.expressions_per_image
    label = f"training step, batch {images}, {expressions} expressions an image"
    note("training", label, _training(subject, twin, rounds))
    for name, part in network_parts(subject, 1, expressions).items():
        if name not in _PARTS:
            continue
        for backward in (False, True):
            way = "forward and backward" if backward else "forward"
            ours = part.backward() if backward else part.forward()
            timings = time_alternately({"jax": jitted(*ours), "eager": twin.part(name, part, backward)}, rounds)
            note(f"{name} {way}", f"{name}, {way}", timings)
    text = (
        "The network of interop/torch_model.py with the same parameters, on all cores, side by side: each round times "
        "all alternatives once. Inference takes one expression an image, and parts one image with "
        f"{counted(expressions, 'sentence')}. A ratio is the median over {rounds} rounds, with its quartiles; "
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
