"""The same network with the same parameters in JAX and in PyTorch: inference, training step, and each part."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s2rm_jax.errors import UserError, counted
from s2rm_jax.input.encode import unpack_masks
from s2rm_jax.interop.parameter_names import export_arrays, network_layout
from s2rm_jax.measure.harness import Cells, Part, Section, Subject, Timings, jitted, network_parts, time_alternately
from s2rm_jax.measure.training_speed import training_step
from s2rm_jax.models.network import normalize
from s2rm_jax.training.losses import DICE_SMOOTHING


class TorchTwin:
    """The PyTorch model with the parameters of a subject, on the GPU if JAX uses one, else on all cores.

    The methods return functions to be timed, which wait for the device. With config.dtype=bfloat16 they use autocast.
    """

    def __init__(self, subject: Subject):
        """Raise UserError if PyTorch is not installed or the loss of the configuration is not supported."""
        try:
            import torch

            from s2rm_jax.interop.torch_model import S2RMModel
        except ImportError as error:
            raise UserError("--suite=torch: PyTorch is not installed: pip install -e '.[torch]'") from error
        config = subject.config
        if config.loss.kind != "bce_dice" or config.loss.coarse_weight or config.decoder.no_target_width:
            raise UserError(
                "--suite=torch needs config.loss.kind=bce_dice, config.loss.coarse_weight=0 and "
                "config.decoder.no_target_width=0"
            )
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
        """Copy an array to the device."""
        array = np.array(array)
        if array.dtype == jnp.bfloat16:  # not a dtype of torch.from_numpy
            return self.torch.from_numpy(array.astype(np.float32)).bfloat16().to(self.device)
        return self.torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array).to(self.device)

    def image_tensor(self, images: Any) -> Any:
        """Copy images [B, H, W, 3] to the device, channels first."""
        return self.tensor(np.moveaxis(np.asarray(images), -1, 1))

    def inference(self, images: Any, tokens: Any, mask: Any, compiled: bool = False) -> Callable[[], Any]:
        """Return a forward pass on normalized images, through torch.compile if `compiled`."""
        model = self.torch.compile(self.model) if compiled else self.model
        arguments = (self.image_tensor(images), self.tensor(tokens), self.tensor(mask))

        def infer() -> Any:
            with self.torch.inference_mode(), self._autocast():
                return model(*arguments).logits

        return self._synchronized(infer)

    def part(self, name: str, part: Part, backward: bool) -> Callable[[], Any]:
        """Return a part of `network_parts` on the same inputs, with its gradients if `backward`."""
        function, inputs, parameters = self._part(name, part)

        def forward() -> Any:
            with self.torch.inference_mode(), self._autocast():
                return function(*inputs)

        differentiated = [leaf for index in part.trained_inputs for leaf in _leaves(inputs[index])]

        def forward_backward() -> Any:
            for tensor in (*parameters, *differentiated):
                tensor.grad = None
                tensor.requires_grad_()
            with self._autocast():
                outputs = _leaves(function(*inputs))
                loss = sum(output.float().square().mean() for output in outputs)
            loss.backward()
            return differentiated

        return self._synchronized(forward_backward if backward else forward)

    def training_step(self, batch: Any, learning_rate: float, compiled: bool = False) -> Callable[[], Any]:
        """Return one AdamW step on a batch, with loss, gradient, update and dropout."""
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

        return self._synchronized(step)

    def loss(self, logits: Any, truth: Any) -> Any:
        """Compute the "bce_dice" loss of training/losses.py for expressions that all have a target."""
        cross_entropy = self.torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        predicted = logits.sigmoid()
        overlap, areas = (predicted * truth).sum((-2, -1)), (predicted + truth).sum((-2, -1))
        return cross_entropy + (1 - (2 * overlap + DICE_SMOOTHING) / (areas + DICE_SMOOTHING)).mean()

    def _part(self, name: str, part: Part) -> tuple[Callable[..., Any], tuple[Any, ...], list[Any]]:
        if name == "vision":
            return self.model.vision, (self.image_tensor(part.inputs[0]),), list(self.model.vision.parameters())
        inputs = jax.tree.map(self.tensor, part.inputs)
        module = self.model.get_submodule(name)
        if name == "text":
            return module, inputs, list(module.parameters())
        output = {"fusion": 0, "decoder": -1}[name]
        return lambda *x: module(*x)[output], inputs, list(module.parameters())

    def _autocast(self) -> Any:
        return self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.half)

    def _synchronized(self, action: Callable[[], Any]) -> Callable[[], Any]:
        def synchronized() -> Any:
            result = action()
            if self.on_gpu:
                self.torch.cuda.synchronize()
            return result

        return synchronized


def _leaves(tensors: Any) -> Sequence[Any]:
    return tensors if isinstance(tensors, tuple | list) else (tensors,)


_PARTS = ("vision", "text", "fusion", "decoder")  # in PyTorch, the decoder includes `resize`


def against_torch(subject: Subject, rounds: int) -> list[Section]:
    """Measure inference of one and four images, the training step of config.batch_size, and the parts.

    Raises:
        UserError: PyTorch is not installed.
    """
    twin = TorchTwin(subject)
    rows: list[Cells] = []
    figures: dict[str, float] = {}

    def add(name: str, label: str, timings: Timings) -> None:
        for other in list(timings.seconds)[1:]:
            ratio = timings.ratio("jax", other)
            rows.append([f"{label}, {other}", timings.median("jax"), timings.median(other), str(ratio)])
            figures[f"{name}: jax / {other}"] = ratio.median

    for count in (1, 4):
        add(f"inference {count}", f"inference, batch {count}", inference_timings(subject, twin, count, rounds))
    images, expressions = subject.config.batch_size, subject.config.input.expressions_per_image
    label = f"training step, batch {images}, {expressions} expressions per image"
    add("training", label, training_timings(subject, twin, rounds))
    for name, part in network_parts(subject, 1, expressions).items():
        if name not in _PARTS:
            continue
        for backward in (False, True):
            direction = "forward and backward" if backward else "forward"
            ours = part.backward() if backward else part.forward()
            timings = time_alternately({"jax": jitted(*ours), "eager": twin.part(name, part, backward)}, rounds)
            add(f"{name} {direction}", f"{name}, {direction}", timings)
    text = (
        "JAX and interop/torch_model.py with the same parameters, on all cores; each round times every alternative "
        "once. Inference is with one expression per image, parts with one image and "
        f"{counted(expressions, 'expression')}. Ratios are medians over {rounds} rounds, with quartiles; below 1, JAX "
        "is faster. Target: at most 1 on a CPU."
    )
    return [Section("Comparison with PyTorch", text, ["", "JAX, s", "PyTorch, s", "JAX / PyTorch"], rows, figures)]


def inference_timings(subject: Subject, twin: TorchTwin, count: int, rounds: int) -> Timings:
    """Time "jax", "eager" and, on a GPU, "torch.compile" on `count` images with one expression each."""
    images, (tokens, mask) = subject.images(count), subject.tokens(count, 1)
    alternatives = {
        "jax": jitted(*subject.forward(count, 1)),
        "eager": twin.inference(images, tokens, mask),
    }
    if twin.on_gpu:
        alternatives["torch.compile"] = twin.inference(images, tokens, mask, compiled=True)
    return time_alternately(alternatives, rounds, warm_up=2)


def training_timings(subject: Subject, twin: TorchTwin, rounds: int) -> Timings:
    """Time a training step of config.batch_size images in the same alternatives."""
    batch, rate = subject.batch(), subject.config.optimizer.learning_rate
    alternatives = {"jax": training_step(subject).take, "eager": twin.training_step(batch, rate)}
    if twin.on_gpu:
        alternatives["torch.compile"] = twin.training_step(batch, rate, compiled=True)
    # In both frameworks, the first steps use memory that the system still has to zero.
    return time_alternately(alternatives, rounds, warm_up=3)
