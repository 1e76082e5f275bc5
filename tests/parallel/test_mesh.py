from unittest.mock import Mock

import jax
import pytest

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.parallel.mesh import build_mesh, make_mesh


def test_the_mesh_follows_the_configuration():
    mesh = build_mesh(default_config(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1}


def test_devices_are_in_the_order_of_their_processes():
    """On TPU pods, the ids of a process need not be consecutive."""
    processes = (1, 0, 1, 0)  # by id of the device
    devices = [Mock(jax.Device, id=number, process_index=process) for number, process in enumerate(processes)]
    for given in (devices, devices[::-1]):
        assert [[device.id for device in row] for row in make_mesh(2, given).devices] == [[1, 3], [0, 2]]


@pytest.mark.parametrize("fsdp", [0, 2])
def test_fsdp_must_divide_the_devices(fsdp):
    config = default_config()
    config.mesh.fsdp = fsdp
    message = f"config.mesh.fsdp={fsdp} does not divide the number of devices, 1; possible values: 1$"
    with pytest.raises(UserError, match=message):
        build_mesh(config, jax.devices()[:1])
