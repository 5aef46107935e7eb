"""An exported network runs where nothing of the library is."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import remanifest
from ode_nets.integrate import FixedStep
from ode_nets.nn import NODE18
from ode_nets.weights import PiecewiseConstant
from small_nets import IMAGES, model


def test_an_exported_net_runs_without_the_library(tmp_path):
    net, variables = model(PiecewiseConstant(2), dtype="float32")
    data = remanifest.export_inference(
        net,
        variables,
        IMAGES.shape[1:],
        preprocess=lambda x: x.astype("float32") / 255,
        dtype="uint8",
        platforms=("cpu",),
    )
    images = np.random.default_rng(4).integers(0, 256, size=(5, *IMAGES.shape[1:]), dtype=np.uint8)
    (tmp_path / "model").write_bytes(data)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['ode_nets'] = sys.modules['flax'] = None\n"
        "import numpy as np; from jax import export\n"
        "function = export.deserialize(bytearray(open('model', 'rb').read()))\n"
        "images = np.load('images.npy')\n"
        "np.save('logits.npy', np.concatenate([function.call(images[:2]), function.call(images[2:])]))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = jax.jit(net.apply)(variables, images.astype("float32") / 255)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_may_have_any_size_under_a_gradient_method_that_counts_bytes():
    """The room that ACA keeps for states depends on the size of a batch, and no gradient is exported."""
    net = NODE18(widths=(2,), n_classes=3, solver=FixedStep("heun", 2))
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    data = remanifest.export_inference(net, variables, (4, 4, 1), platforms=("cpu",))
    assert str(jax.export.deserialize(bytearray(data)).out_avals[0].shape) == "(batch, 3)"


def test_a_fixed_batch_size_takes_no_other():
    net, variables = model(PiecewiseConstant(1), dtype="float32")
    data = remanifest.export_inference(net, variables, IMAGES.shape[1:], platforms=("cpu",), batch_size=2)
    function = jax.export.deserialize(bytearray(data))
    assert function.out_avals[0].shape == (2, 3)
    with pytest.raises(ValueError, match="shape"):
        function.call(np.zeros((3, *IMAGES.shape[1:]), np.float32))


@pytest.mark.parametrize(("n", "met"), [(1, [1]), (2, [4]), (4, [4]), (5, [4, 1]), (11, [4, 4, 4])])
def test_a_padded_function_meets_its_sizes_alone_and_gives_the_rows_asked_for(n, met):
    sizes = []
    images = np.random.default_rng(0).integers(0, 256, size=(n, 3, 2), dtype=np.uint8)

    def function(batch):
        sizes.append(len(batch))
        return jnp.asarray(batch, jnp.float32).sum((1, 2))

    rows = remanifest.padded(function, sizes=(4, 1))(images)
    assert sizes == met
    np.testing.assert_array_equal(rows, images.sum((1, 2), dtype=np.float32))


def test_a_batch_of_none_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        remanifest.padded(jnp.sin)(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="sizes"):
        remanifest.padded(jnp.sin, sizes=())
