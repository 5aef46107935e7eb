"""The data room: splits, sources, faults named before the first step, and the functions used in training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.images.data import augment, epoch_permutation, load, normalize
from image_arrays import make_arrays, save

ROOT = Path(__file__).parents[3]
SPLITS = ("train", "validation", "test")


def test_digits_are_split_by_class_and_lose_no_image():
    from sklearn.datasets import load_digits

    one, two = load("digits", seed=1), load("digits", seed=2)
    assert (len(one.x_train), len(one.x_validation), len(one.x_test)) == (1294, 144, 359)
    assert one.x_train.shape[1:] == (8, 8, 1)
    assert one.x_train.dtype == np.uint8
    assert one.y_train.dtype == np.int32
    assert one.n_classes == 10
    assert one.x_train.max() == 255
    digits = load_digits()
    expected = [round(0.2 * count) for count in np.bincount(digits.target)]
    assert np.bincount(one.y_test).tolist() == expected
    whole = np.concatenate([getattr(one, f"x_{s}") for s in SPLITS]).reshape(1797, 64)
    original = np.round(digits.images * 255 / 16).astype(np.uint8).reshape(1797, 64)
    assert sorted(map(bytes, whole)) == sorted(map(bytes, original))
    np.testing.assert_array_equal(one.x_test, two.x_test)
    assert not np.array_equal(one.x_validation, two.x_validation)


def test_photographs_are_cut_into_patches_that_share_no_pixel():
    from sklearn.datasets import load_sample_images

    found = load("photographs", validation_fraction=0.0)
    assert (len(found.x_train), len(found.x_test), found.n_classes) == (416, 104, 2)
    assert found.x_test.shape[1:] == (32, 32, 3)
    assert np.bincount(found.y_train).tolist() == [208, 208]
    whole = np.concatenate([found.x_train, found.x_test])
    labels = np.concatenate([found.y_train, found.y_test])
    for label, photograph in enumerate(load_sample_images().images):
        # Cut once more, another way.
        patches = [photograph[i : i + 32, j : j + 32] for i in range(0, 416, 32) for j in range(0, 640, 32)]
        assert sorted(map(bytes, whole[labels == label])) == sorted(map(bytes, patches))


def test_validation_and_limit_take_from_the_training_part_only(tmp_path):
    x = np.zeros((40, 2, 2, 1), np.uint8)
    x[:, 0, 0, 0] = np.arange(40)
    path = save(tmp_path / "a.npz", x_train=x, x_test=np.full((20, 2, 2, 1), 99, np.uint8))
    whole = load(path, validation_fraction=0.25, seed=3)
    ids = {split: getattr(whole, f"x_{split}")[:, 0, 0, 0] for split in SPLITS}
    assert len(ids["validation"]) == 10
    assert sorted([*ids["train"], *ids["validation"]]) == list(range(40))
    assert set(ids["test"]) == {99}
    few = load(path, validation_fraction=0.25, seed=3, limit=7)
    kept = few.x_train[:, 0, 0, 0]
    assert len(kept) == 7
    assert set(kept) < set(ids["train"])
    np.testing.assert_array_equal(few.y_train, make_arrays()["y_train"][kept])
    np.testing.assert_array_equal(few.x_validation, whole.x_validation)
    np.testing.assert_array_equal(load(path, validation_fraction=0.25, seed=3, limit=7).x_train, few.x_train)
    assert len(load(path, validation_fraction=0.25, limit=30).x_train) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "not in .0, 1."),
        ({"validation_fraction": float("nan")}, "not in .0, 1."),
        ({"validation_fraction": 0.001}, "neither may be empty"),
        ({"limit": 0}, "positive integer"),
        ({"limit": 2.5}, "positive integer"),
        ({"limit": 37}, "exceeds the 36 training images"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path / "a.npz"), **options)


def test_mean_and_std_are_those_of_the_training_split(tmp_path):
    x = make_arrays()["x_train"]
    x[..., 2] = 51
    found = load(save(tmp_path / "a.npz", x_train=x))
    exact = found.x_train / 255
    np.testing.assert_allclose(found.mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std[:2], exact.std((0, 1, 2))[:2], rtol=1e-6)
    assert found.std[2] == 1
    assert found.mean.dtype == found.std.dtype == np.float32


def test_npz_round_trip(tmp_path):
    found = load(
        str(save(tmp_path / "a.npz", x_train=make_arrays()["x_train"].astype(np.int64))),
        validation_fraction=0,
    )
    for key, value in make_arrays().items():
        np.testing.assert_array_equal(getattr(found, key), value)
    assert found.x_train.dtype == np.uint8
    assert len(found.x_validation) == 0
    assert found.n_classes == 4
    assert "a.npz" in found.source


GOOD = make_arrays()


FAULTS = {
    "rank": ({"x_train": GOOD["x_train"][..., 0]}, r"x_train .*\(40, 6, 5\).*x\[..., None\]"),
    "channels first": ({"x_test": GOOD["x_test"].transpose(0, 3, 1, 2)}, "x_test .*transpose"),
    "empty": ({"x_test": GOOD["x_test"][:0], "y_test": GOOD["y_test"][:0]}, "x_test .*It is empty"),
    "sizes": ({"x_test": GOOD["x_test"][:, :4]}, r"\(6, 5, 3\), its test images \(4, 5, 3\)"),
    "floats": ({"x_train": GOOD["x_train"] / 255}, r"x_train .*float64 values from .*np.round\(255"),
    "nan": ({"x_train": np.full((40, 6, 5, 3), np.nan)}, "3600 of them NaN"),
    "beyond uint8": ({"x_train": GOOD["x_train"].astype(int) + 1}, "from 1 to 256"),
    "text": ({"x_train": GOOD["x_train"].astype(str)}, "x_train .*values; images are integers"),
    "label count": ({"y_train": GOOD["y_train"][:39]}, "39 labels for 40 images"),
    "label column": ({"y_train": GOOD["y_train"][:, None]}, r"shape \(40, 1\).*reshape"),
    "float labels": ({"y_train": GOOD["y_train"] + 0.5}, "y_train .*float64.*integers"),
    "negative": ({"y_train": GOOD["y_train"] - 1}, r"labels -1..2"),
    "unseen": ({"y_test": GOOD["y_test"] + 1}, r"y_test .*1..4; allowed are 0..3"),
    "from one": ({"y_train": GOOD["y_train"] + 1, "y_test": GOOD["y_test"] + 1}, "never is 0"),
    "declared": ({"n_classes": 3}, r"y_train .*0..3; allowed are 0..2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_arrays_are_named(tmp_path, fault):
    changes, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message) as caught:
        load(save(tmp_path / "bad.npz", **changes))
    assert "bad.npz" in str(caught.value)


def test_a_class_without_training_images_is_allowed_if_declared(tmp_path):
    assert load(save(tmp_path / "a.npz", n_classes=6)).n_classes == 6


def test_broken_npz(tmp_path):
    path = save(tmp_path / "a.npz")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (whole[: len(whole) // 2], b"", b"no zip at all", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
            load(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(path)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        load(path)
    np.savez(path, x_train=GOOD["x_train"])
    with pytest.raises(ValueError, match="lacks y_train, x_test, y_test; it holds x_train"):
        load(path)
    mixed = np.empty(2, object)
    mixed[:] = [np.zeros((3, 3, 1)), np.zeros((4, 4, 1))]
    save(path, x_train=mixed)
    with pytest.raises(ValueError, match="mixed sizes"):
        load(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz.*np.savez"):
        load(tmp_path / "nowhere.npz")


def test_epoch_permutation_depends_on_seed_and_epoch_only():
    order = jax.jit(epoch_permutation, static_argnums=2)
    first = np.asarray(order(0, 0, 50))
    assert sorted(first.tolist()) == list(range(50))
    assert first.dtype == np.int32
    np.testing.assert_array_equal(first, order(0, 0, 50))
    others = [np.asarray(order(seed, epoch, 50)) for seed, epoch in ((0, 1), (1, 0), (1, 1))]
    assert len({other.tobytes() for other in [first, *others]}) == 4
    with pytest.raises(ValueError, match="n=0"):
        epoch_permutation(0, 0, 0)


def windows(image, pad):
    """Every image that `augment` may make of one, by its bytes: (row, column, mirrored)."""
    h, w, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    shifts = [(r, c) for r in range(2 * pad + 1) for c in range(2 * pad + 1)]
    plain = {(r, c, False): padded[r : r + h, c : c + w] for r, c in shifts}
    mirrored = {(r, c, True): window[:, ::-1] for (r, c, _), window in plain.items()}
    return {window.tobytes(): at for at, window in {**plain, **mirrored}.items()}


def test_augmented_images_are_shifted_windows():
    images = np.random.default_rng(0).integers(1, 256, (32, 6, 5, 3), dtype=np.uint8)
    change = jax.jit(augment, static_argnums=2, static_argnames="flip")
    out = np.asarray(change(jax.random.key(0), images, 2))
    assert out.shape == images.shape
    assert out.dtype == np.uint8
    drawn = [windows(image, 2)[changed.tobytes()] for image, changed in zip(images, out, strict=True)]
    assert {at[0] for at in drawn} == {at[1] for at in drawn} == set(range(5))
    assert {at[2] for at in drawn} == {False, True}
    assert len(set(drawn)) > 16
    np.testing.assert_array_equal(out, change(jax.random.key(0), images, 2))
    assert not np.array_equal(out, change(jax.random.key(1), images, 2))
    floats = change(jax.random.key(0), images.astype(np.float32), 2)
    assert floats.dtype == jnp.float32
    np.testing.assert_array_equal(floats, out)
    unflipped = np.asarray(change(jax.random.key(0), images, 2, flip=False))
    assert not any(windows(a, 2)[b.tobytes()][2] for a, b in zip(images, unflipped, strict=True))
    flipped = np.asarray(change(jax.random.key(0), images, 0))
    drawn = [windows(a, 0)[b.tobytes()] for a, b in zip(images, flipped, strict=True)]
    assert set(drawn) == {(0, 0, False), (0, 0, True)}
    np.testing.assert_array_equal(augment(jax.random.key(0), jnp.asarray(images), 0, flip=False), images)


def test_augment_refuses_single_images_and_negative_pads():
    with pytest.raises(ValueError, match=r"shape \(6, 5, 3\)"):
        augment(jax.random.key(0), jnp.zeros((6, 5, 3)))
    with pytest.raises(ValueError, match="pad=-1"):
        augment(jax.random.key(0), jnp.zeros((2, 6, 5, 3)), -1)


def test_normalized_training_images_have_mean_0_and_std_1():
    digits = load("digits")
    out = normalize(jnp.asarray(digits.x_train), digits.mean, digits.std)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose([out.mean(), out.std()], [0, 1], atol=1e-5)
    with pytest.raises(ValueError, match=r"\(3,\).* need \(1,\) for both"):
        normalize(jnp.asarray(digits.x_train), np.zeros(3), np.ones(3))


def test_importing_the_data_room_imports_no_framework_beside_jax():
    heavy = ("tensorflow", "tensorflow_datasets", "torch", "matplotlib", "sklearn", "PIL", "array_record")
    code = f"import sys, experiments.images.data; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
