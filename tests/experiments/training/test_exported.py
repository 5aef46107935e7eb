"""Files that other programs read: tensors by name, and what is refused before anything is computed."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import compress
from experiments.records.files import RunError, check_writable, write_json
from experiments.training import exported
from ode_nets import remanifest
from ode_nets.weights import PiecewiseConstant
from small_nets import model


def test_safetensors_hold_every_variable_by_name_bit_for_bit(tmp_path):
    _, variables = model(PiecewiseConstant(2), dtype="float32")
    variables["params"]["half"] = jnp.asarray([[1.5, -2.0]], jnp.bfloat16)
    path = exported.write_tensors(tmp_path, variables)
    tensors = load_file(path)
    assert "params/block1/coefficients/conv1/kernel" in tensors
    assert len(tensors) == len(jax.tree.leaves(variables))
    for name, found in tensors.items():
        leaf = variables
        for key in name.split("/"):
            leaf = leaf[key]
        assert (found.dtype, found.shape) == (leaf.dtype, leaf.shape)
        assert found.tobytes() == np.asarray(leaf).tobytes()
    digest = path.with_name(path.name + ".sha256").read_text()
    assert digest == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def test_safetensors_of_kernels_in_eight_bits_are_values_and_scales(tmp_path):
    _, variables = model(PiecewiseConstant(2), dtype="float32")
    small = remanifest.quantize(variables)
    tensors = load_file(exported.write_tensors(tmp_path, small))
    name = "params/block1/coefficients/conv1/kernel"
    assert tensors[f"{name}/values"].dtype == np.int8
    whole = tensors[f"{name}/values"] * tensors[f"{name}/scale"]
    expected = remanifest.dequantize(small)["params"]["block1"]["coefficients"]["conv1"]["kernel"]
    np.testing.assert_array_equal(whole, expected)


ONE = {"basis": ("legendre",), "n_basis": (2,), "scheme": ("euler",), "n_steps": (3,)}


def test_a_target_in_use_is_refused_before_the_search(tmp_path):
    taken = tmp_path / "compressed" / "legendre-2-euler-3"
    taken.mkdir(parents=True)
    compress.check_target(compress.Options(tmp_path, **ONE), step=4)  # an empty folder is free
    (taken / "manifest.json").touch()
    for options in (compress.Options(tmp_path, **ONE), compress.Options(tmp_path, out=taken)):
        with pytest.raises(RunError, match=r"--overwrite.*--out"):
            compress.check_target(options, step=4)
    compress.check_target(compress.Options(tmp_path, **ONE, int8=True), step=4)
    compress.check_target(compress.Options(tmp_path, **ONE, overwrite=True), step=4)
    with pytest.raises(RunError, match="is a file"):
        compress.check_target(compress.Options(tmp_path, out=taken / "manifest.json" / "x"), step=4)


def test_the_target_of_a_search_made_before_is_known(tmp_path):
    options = compress.Options(tmp_path)
    chosen = {key: value[0] for key, value in ONE.items()}
    record = {"step": 4, "searched": compress.searched(options), "chosen": chosen}
    write_json(tmp_path / "compressed" / "front.json", record)
    assert compress.known_choice(options, 4) == chosen
    assert compress.known_choice(options, 5) is None
    assert compress.known_choice(compress.Options(tmp_path, max_drop=2.0), 4) is None
    assert compress.target(options, chosen) == tmp_path / "compressed" / "legendre-2-euler-3"


def test_a_folder_in_which_nothing_can_be_written_is_refused():
    with pytest.raises(RunError, match=r"/dev/fd.*elsewhere"):
        check_writable(Path("/dev/fd/nowhere"), "elsewhere")


def test_options_are_refused_by_the_names_of_their_flags():
    with pytest.raises(ValueError, match=r"--n-basis=\(0,\)"):
        compress.Options("run", n_basis=(0,))
