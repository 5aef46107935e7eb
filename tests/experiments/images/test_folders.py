"""Folders of images: the layouts that are read, what is then tested on, other sizes, and faults by name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from experiments.images.data import load


def draw(path, seed, mode="RGB", size=(5, 4)):
    """Write one random image and return its pixels as written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"RGB": (3,), "L": (), "I;16": ()}[mode]
    kind = np.uint16 if mode == "I;16" else np.uint8
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *bands)).astype(kind)
    Image.fromarray(pixels).save(path)
    return pixels


def make_folder(root, mode="RGB"):
    pixels = []
    for i, (split, name) in enumerate((s, c) for s in ("train", "test") for c in ("cat", "dog") for _ in range(3)):
        pixels.append(draw(root / split / name / f"{i:02d}.png", i, mode))
    return np.stack(pixels)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_folder(tmp_path, mode):
    pixels = make_folder(tmp_path / "set", mode)
    found = load(tmp_path / "set", validation_fraction=0)
    assert found.x_train.shape == (6, 5, 4, 3 if mode == "RGB" else 1)
    np.testing.assert_array_equal(found.x_train, pixels[:6].reshape(found.x_train.shape))
    np.testing.assert_array_equal(found.x_test, pixels[6:].reshape(found.x_test.shape))
    assert found.y_train.tolist() == found.y_test.tolist() == [0, 0, 0, 1, 1, 1]
    assert (found.n_classes, found.class_names) == (2, ("cat", "dog"))


def test_faults_in_a_folder(tmp_path):
    root = tmp_path / "set"
    make_folder(root)
    victim = root / "train" / "dog" / "03.png"
    for content in (victim.read_bytes()[:40], b""):
        victim.write_bytes(content)
        with pytest.raises(ValueError, match=r"dog/03.png is no readable image"):
            load(root)
    draw(victim, 0, "I;16")
    with pytest.raises(ValueError, match=r"03.png .*more than 8 bits"):
        load(root)
    draw(victim, 0, size=(7, 4))
    with pytest.raises(ValueError, match=r"03.png has \(7, 4\) pixels, .*00.png has \(5, 4\).*resize"):
        load(root)
    draw(victim, 0)
    draw(root / "test" / "bird" / "0.png", 0)
    with pytest.raises(ValueError, match="class 'bird'"):
        load(root)
    (root / "train" / "bird").mkdir()
    with pytest.raises(ValueError, match=r"train/bird is missing or holds no .png"):
        load(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no training images"):
        load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load(tmp_path / "nowhere")


def test_tiny_imagenet_layout(tmp_path):
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    for i, wnid in enumerate(("n01", "n01", "n02")):
        draw(tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", i, "L" if i == 0 else "RGB")
    for i in range(2):
        draw(tmp_path / "val" / "images" / f"val_{i}.JPEG", 10 + i)
    lines = ["val_0.JPEG\tn02\t0\t0\t3\t3", "val_1.JPEG\tn01\t0\t0\t3\t3"]
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("\n".join(lines) + "\n")
    found = load(tmp_path, validation_fraction=0)
    assert found.x_train.shape == (3, 5, 4, 3)
    assert found.y_train.tolist() == [0, 0, 1]
    assert found.y_test.tolist() == [1, 0]
    with Image.open(tmp_path / "val" / "images" / "val_0.JPEG") as image:
        np.testing.assert_array_equal(found.x_test[0], np.asarray(image))
    assert "validation images are the test set" in found.source
    annotations.write_text(lines[0] + "\nval_1.JPEG\tn99\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt, line 2: .*n99"):
        load(tmp_path)
    annotations.write_text("val_7.JPEG\tn01\n")
    with pytest.raises(ValueError, match=r"val_7.JPEG is no readable image"):
        load(tmp_path)
    annotations.unlink()
    with pytest.raises(ValueError, match=r"val_annotations.txt is missing"):
        load(tmp_path)


def put(root, *places, each=1):
    """Images of other colours in folders, and all by the place of each."""
    return {
        place: [draw(root / place / f"{i}.png", seed=100 * k + i) for i in range(each)]
        for k, place in enumerate(places)
    }


def same(found, *wanted):
    np.testing.assert_array_equal(found, np.concatenate([np.stack(images) for images in wanted]))


@pytest.mark.parametrize("name", ["val", "Valid", "validation", "dev"])
def test_validation_images_of_a_folder_are_those_of_the_run(tmp_path, name):
    drawn = put(tmp_path, *(f"{split}/{c}" for split in ("train", name, "test") for c in ("cat", "dog")), each=2)
    for fraction in (0.0, 0.5):
        found = load(tmp_path, validation_fraction=fraction)
        same(found.x_train, drawn["train/cat"], drawn["train/dog"])
        same(found.x_validation, drawn[f"{name}/cat"], drawn[f"{name}/dog"])
        same(found.x_test, drawn["test/cat"], drawn["test/dog"])
        assert found.y_validation.tolist() == [0, 0, 1, 1]
    assert len(load(tmp_path, limit=3).x_train) == 3


def test_validation_images_without_test_images_are_the_test_set(tmp_path):
    drawn = put(tmp_path, *(f"{split}/{c}" for split in ("train", "val") for c in ("cat", "dog")), each=4)
    found = load(tmp_path, validation_fraction=0.25)
    same(found.x_test, drawn["val/cat"], drawn["val/dog"])
    assert (len(found.x_train), len(found.x_validation)) == (6, 2)
    assert found.source.endswith("those in val are the test set")


@pytest.mark.parametrize("above", ["", "train/"])
def test_without_test_images_a_fixed_fifth_of_each_class_is_the_test_set(tmp_path, above):
    drawn = put(tmp_path, f"{above}cat", f"{above}dog", each=10)
    one, two = (load(tmp_path, seed=seed) for seed in (1, 2))
    assert [np.bincount(one.y_test).tolist(), len(one.x_train), len(one.x_validation)] == [[2, 2], 14, 2]
    np.testing.assert_array_equal(one.x_test, two.x_test)
    assert not np.array_equal(one.x_validation, two.x_validation)
    everything = np.concatenate([one.x_train, one.x_validation, one.x_test])
    assert sorted(map(bytes, everything)) == sorted(bytes(image) for images in drawn.values() for image in images)
    assert "a fixed fifth of each class is the test set" in one.source


def test_images_lie_anywhere_below_their_class(tmp_path):
    drawn = put(tmp_path, "train/cat/big/0", "train/cat/small", "train/dog/images", "test/dog")
    draw(tmp_path / "train" / "cat" / ".trash" / "0.png", seed=7)
    found = load(tmp_path, validation_fraction=0)
    same(found.x_train, *(images for place, images in drawn.items() if "train" in place))
    assert found.y_train.tolist() == [0, 0, 1]
    assert "1 of 5 files are not read: train/cat/.trash/0.png" in found.notes[0]


def test_other_sizes_are_the_scaled_middle_square(tmp_path):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, 2:6], pixels[:, 6:10] = (255, 0, 0), (0, 0, 255)
    for place, size in (("cat", 1), ("dog", 2)):
        for i in range(3):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.fromarray(np.kron(pixels, np.ones((size, size, 1), np.uint8))).save(tmp_path / place / f"{i}.png")
    with pytest.raises(ValueError, match=r"dog.* has \(16, 24\) pixels.*--image-size resizes them"):
        load(tmp_path)
    found = load(tmp_path, image_size=4, validation_fraction=0)
    assert found.x_train.shape == (4, 4, 4, 3)
    # Left half red, right half blue, but for what interpolation draws from the neighbours.
    for image in found.x_train.astype(int):
        assert np.abs(image[:, 0] - (255, 0, 0)).max() <= 20
        assert np.abs(image[:, 3] - (0, 0, 255)).max() <= 20
    assert load("digits", image_size=12).x_train.shape[1:] == (12, 12, 1)
    np.testing.assert_array_equal(load("digits", image_size=8).x_test, load("digits").x_test)
    for size in (0, 5000):
        with pytest.raises(ValueError, match=rf"image_size={size} is not in 1..4096"):
            load("digits", image_size=size)


def test_layouts_that_say_too_little_are_refused(tmp_path):
    put(tmp_path / "one", "pictures/cat", "pictures/dog", each=5)
    with pytest.raises(ValueError, match=r"one/pictures is the only folder there: give .*one/pictures itself"):
        load(tmp_path / "one")
    put(tmp_path / "alone", "cat")
    with pytest.raises(ValueError, match=r"only the folder 'cat': no training images of two classes"):
        load(tmp_path / "alone")
    put(tmp_path / "few", "cat", "dog")
    with pytest.raises(ValueError, match=r"2 in 2 classes are too few to keep a fifth"):
        load(tmp_path / "few")
    put(tmp_path / "twice", "train/cat", "train/dog", "val/cat", "valid/cat")
    with pytest.raises(ValueError, match=r"twice/val and .*twice/valid both look like the validation images"):
        load(tmp_path / "twice")
    put(tmp_path / "untrained", "val/cat", "test/cat")
    with pytest.raises(ValueError, match=r"holds test and val and no train"):
        load(tmp_path / "untrained")
    put(tmp_path / "secret", "train/cat", "train/dog", "test")
    with pytest.raises(ValueError, match=r"secret/test holds no folder of a class, so that its images have no labels"):
        load(tmp_path / "secret")


def test_a_folder_that_goes_by_a_bare_name_is_pointed_at(tmp_path, monkeypatch):
    put(tmp_path / "pets", "cat", "dog", each=5)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Of the folder pets here \./pets reads the images"):
        load("pets", data_dir=tmp_path / "none")
    assert load("./pets").n_classes == 2
