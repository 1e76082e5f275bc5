import jax
import pytest

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.parallel.mesh import build_mesh


def test_the_mesh_follows_the_configuration():
    mesh = build_mesh(default_config(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("fsdp", [0, 2])
def test_fsdp_must_divide_the_devices(fsdp):
    config = default_config()
    config.mesh.fsdp = fsdp
    with pytest.raises(UserError, match=f"config.mesh.fsdp={fsdp} does not divide the 1 device of this run.*one of 1"):
        build_mesh(config, jax.devices()[:1])
