"""An exported network runs where nothing of the library is."""

import subprocess
import sys

import jax
import numpy as np

from ode_nets import remanifest
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
