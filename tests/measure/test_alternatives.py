"""Alternatives that are timed against each other compute the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.measure.gpu import draw_windows, einsum_attention, fused_attention
from s2rm_jax.measure.harness import jitted
from s2rm_jax.models.network import Output
from s2rm_jax.training.losses import loss_count, segmentation_loss


def assert_close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def larger(subject):
    """The subject with images that are not square."""
    config = subject.config.copy_and_resolve_references()
    config.input.image_size = (24, 32)
    return dataclasses.replace(subject, config=config)


def test_window_attention(subject):
    arguments = draw_windows(subject, 2, jnp.float32)
    assert arguments[0].shape == (2 * 4, 16, 1, 8)  # 8 x 8 positions in windows of 4 x 4, two images
    assert_close(einsum_attention(*arguments), fused_attention("xla")(*arguments))


def test_the_parts_are_the_network(parts, logits):
    function, arguments = parts["resize"].forward()
    assert_close(function(*arguments), logits)


@pytest.fixture(scope="module")
def twin(subject):
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    from s2rm_jax.measure.against_torch import TorchTwin

    twin = TorchTwin(subject)
    twin.torch.set_num_threads(1)
    return twin


def test_inference_in_pytorch(subject, twin, logits):
    found = twin.inference(subject.images(1), *subject.tokens(1, 2))()
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vision", "text", "fusion", "decoder"])
def test_parts_in_pytorch(twin, parts, name):
    function, arguments = parts[name].forward()
    found = twin.part(name, parts[name], backward=False)()
    found = found if isinstance(found, tuple) else (found,)
    for one, other in zip(found, jax.tree.leaves(jax.jit(function)(*arguments)), strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["fusion", "decoder"])
def test_parts_of_bfloat16_inputs_in_pytorch(twin, parts, name, monkeypatch):
    part = parts[name]
    inputs = list(part.inputs)
    for index in part.trained_inputs:  # what the parts before give in bfloat16
        inputs[index] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs[index])
    monkeypatch.setattr(twin, "half", True)
    found = twin.part(name, dataclasses.replace(part, inputs=tuple(inputs)), backward=False)().float().numpy()
    expected = jitted(*part.forward())()
    assert np.linalg.norm(found.reshape(expected.shape) - expected) < 0.03 * np.linalg.norm(expected)


def test_the_gradient_of_a_part_in_pytorch(twin, parts):
    name = "decoder"
    wanted = twin.part(name, parts[name], backward=True)()
    function, arguments = parts[name].backward()
    of_params, *of_inputs = jax.jit(function)(*arguments)
    gradients = [parameter.grad for parameter in getattr(twin.model, name).parameters()]
    squared = sum(float((gradient**2).sum()) for gradient in gradients if gradient is not None)
    assert squared == pytest.approx(sum(float((x**2).sum()) for x in jax.tree.leaves(of_params)), rel=1e-3)
    for tensor, gradient in zip(wanted, jax.tree.leaves(of_inputs), strict=True):
        grad = twin.torch.zeros_like(tensor) if tensor.grad is None else tensor.grad  # the last map is not read
        np.testing.assert_allclose(grad.detach(), gradient, rtol=1e-2, atol=1e-5)


def test_the_loss_in_pytorch_is_ours(subject, twin):
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(2, 3, 8, 8)).astype(np.float32), rng.random((2, 3, 8, 8)) < 0.3
    everywhere = jnp.ones((2, 3), bool)
    output = Output(jnp.asarray(logits), (), None, {}, {})
    total = segmentation_loss(output, jnp.asarray(truth), everywhere, everywhere, subject.config.loss)
    count = loss_count(jnp.asarray(truth), everywhere, subject.config.loss)
    found = twin.loss(twin.tensor(logits), twin.tensor(truth).float())
    assert float(found) == pytest.approx(float(total / count), rel=1e-5)


def test_training_steps_in_pytorch_begin_with_the_same_loss(subject, twin, first_loss):
    before = {name: tensor.clone() for name, tensor in twin.model.state_dict().items()}
    step = twin.training_step(subject.batch(), subject.config.optimizer.learning_rate)
    first, second = float(step()), float(step())
    assert first == pytest.approx(first_loss, rel=1e-4)
    assert second < first
    twin.model.load_state_dict(before)


def test_another_loss_is_refused(subject):
    from s2rm_jax.measure.against_torch import TorchTwin

    other = larger(subject)
    other.config.loss.kind = "weighted_ce"
    with pytest.raises(UserError, match=r"config\.loss"):
        TorchTwin(other)


def test_without_pytorch_the_extra_is_named(subject, monkeypatch):
    from s2rm_jax.measure.against_torch import TorchTwin

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[torch\]'"):
        TorchTwin(subject)
