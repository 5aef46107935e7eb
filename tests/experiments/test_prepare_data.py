"""Prepared TFDS directories: what is written is read back alike by us and by TFDS, and faults are named."""

from __future__ import annotations

import gzip
import io
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import prepare_data
from experiments.images.data import load
from image_arrays import make_arrays, save

ROOT = Path(__file__).parents[2]


GOOD = make_arrays()


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to reach a host is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with a small set under cifar10's name, and its arrays."""
    root = tmp_path_factory.mktemp("prepared")
    arrays = make_arrays(30, 12, (32, 32, 3), 10)
    np.savez(root / "few.npz", **arrays, n_classes=10)
    prepare_data.from_arrays("cifar10", root / "few.npz", root / "tfds", source="a random generator")
    return root / "tfds", arrays


def test_prepared_set_is_read_by_us_and_by_tfds_alike(prepared, offline):
    import tensorflow_datasets as tfds

    root, arrays = prepared
    found = load("cifar10", data_dir=root, validation_fraction=0)
    for key, value in arrays.items():
        np.testing.assert_array_equal(getattr(found, key), value)
    assert found.n_classes == 10
    assert "a random generator" in found.source
    np.testing.assert_array_equal(load(next((root / "cifar10").iterdir()), seed=1).x_test, found.x_test)
    builder = tfds.builder("cifar10", data_dir=root)
    assert builder.is_prepared()
    assert Path(builder.data_dir) == root / "cifar10" / str(builder.version)
    for split in ("train", "test"):
        plain = tfds.data_source("cifar10", split=split, data_dir=root)
        assert [e["label"] for e in plain] == arrays[f"y_{split}"].tolist()
        np.testing.assert_array_equal(np.stack([e["image"] for e in plain]), arrays[f"x_{split}"])
        assert plain[3]["id"].decode() == f"{split}_00003"
    assert "tensorflow" not in sys.modules
    assert [entry.name for entry in root.iterdir()] == ["cifar10"]


def test_a_name_of_ones_own_and_its_version(tmp_path, monkeypatch):
    save(tmp_path / "a.npz")
    folder = prepare_data.from_arrays("my_set", tmp_path / "a.npz", tmp_path / "tfds")
    assert folder == tmp_path / "tfds" / "my_set" / "1.0.0"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    np.testing.assert_array_equal(load("my_set:1.0.0", validation_fraction=0).x_train, GOOD["x_train"])
    with pytest.raises(FileNotFoundError, match=r"my_set/2.0.0/dataset_info.json"):
        load("my_set:2.0.0")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_data.from_arrays("my_set", tmp_path / "a.npz")
    save(tmp_path / "a.npz", x_train=GOOD["x_train"][::-1])
    prepare_data.from_arrays("my_set", tmp_path / "a.npz", overwrite=True)
    np.testing.assert_array_equal(load("my_set", validation_fraction=0).x_train, GOOD["x_train"][::-1])


def test_absent_set_says_what_was_looked_for_and_how_to_get_it(prepared, tmp_path, offline):
    root, _ = prepared
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist", data_dir=root)
    message, options = str(caught.value), f"--data-dir {root}"
    assert f"{root}/mnist/<version>/dataset_info.json" in message
    assert f"python -m experiments.prepare_data from-archive mnist FOLDER_OF_THE_FOUR_GZ_FILES {options}" in message
    assert f"python -m experiments.prepare_data from-arrays mnist FILE.npz {options}" in message
    assert f"python -m experiments.prepare_data download mnist {options}" in message
    assert f"Prepared in {root}: cifar10/" in message
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'cifar10'\?"):
        load("cifra10", data_dir=tmp_path)


def test_broken_prepared_sets(prepared, tmp_path):
    source = prepared[0] / "cifar10"
    version = next(source.iterdir()).name

    def copy(name):
        folder = tmp_path / name / "cifar10" / version
        folder.mkdir(parents=True)
        for file in (source / version).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    folder = copy("cut")
    shard = next(folder.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cifar10/{version} is broken or incomplete .*--overwrite"):
        load("cifar10", data_dir=tmp_path / "cut")
    shard.unlink()
    with pytest.raises(ValueError, match="is broken or incomplete"):
        load("cifar10", data_dir=tmp_path / "cut")
    folder = copy("json")
    info = folder / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="is in tfrecord; without TensorFlow only array_record"):
        load("cifar10", data_dir=tmp_path / "json")
    info.write_text(text[:100])
    with pytest.raises(ValueError, match=r"dataset_info.json cannot be read"):
        load("cifar10", data_dir=tmp_path / "json")
    info.write_text(text)
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match="is broken or incomplete"):
        load("cifar10", data_dir=tmp_path / "json")


def test_what_does_not_fit_an_official_set_is_refused(tmp_path):
    path, root = save(tmp_path / "a.npz"), tmp_path / "tfds"
    with pytest.raises(ValueError, match=r"images \(6, 5, 3\); cifar10 is defined with \(32, 32, 3\).*my_cifar10"):
        prepare_data.from_arrays("cifar10", path, root)
    save(path, **make_arrays(12, 12, (28, 28, 1), 11))
    with pytest.raises(ValueError, match="the label 10; mnist has labels below 10"):
        prepare_data.from_arrays("mnist", path, root)
    save(path, **make_arrays(12, 12, (32, 32, 3), 3))
    with pytest.raises(ValueError, match=r"lacks coarse_label_train.*Add coarse_label_train and coarse_label_test"):
        prepare_data.from_arrays("cifar100", path, root)
    with pytest.raises(ValueError, match="not a TFDS name"):
        prepare_data.from_arrays("My Set", path, root)
    with pytest.raises(ValueError, match="no archive that is known here"):
        prepare_data.from_archive("svhn", path, root)
    with pytest.raises(ValueError, match="no set 'no_such_set' to download"):
        prepare_data.download("no_such_set", root)
    assert list(root.iterdir()) == []


def test_a_killed_preparation_leaves_nothing_that_looks_prepared(tmp_path):
    import tensorflow_datasets as tfds

    np.savez(tmp_path / "a.npz", **make_arrays(30_000, 4, (28, 28, 1), 4))
    command = [sys.executable, "-m", "experiments.prepare_data", "from-arrays", "mnist", str(tmp_path / "a.npz")]
    command += ["--data-dir", str(tmp_path / "tfds")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("tfds/.preparing-*/mnist/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="no prepared data set 'mnist'"):
        load("mnist", data_dir=tmp_path / "tfds")
    assert not tfds.builder("mnist", data_dir=tmp_path / "tfds").is_prepared()


def test_the_command_line_prepares_what_it_is_told(tmp_path, monkeypatch):
    save(tmp_path / "a.npz")
    arguments = ["from-arrays", "my_set", str(tmp_path / "a.npz"), "--data-dir", str(tmp_path / "tfds")]
    monkeypatch.setattr(sys, "argv", ["prepare_data", *arguments, "--source", "a random generator"])
    prepare_data.main()
    found = load("my_set", data_dir=tmp_path / "tfds", validation_fraction=0)
    np.testing.assert_array_equal(found.x_train, GOOD["x_train"])
    assert "a random generator" in found.source


def test_the_command_line_names_a_fault_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_data", "from-arrays", "mnist", str(tmp_path / "none.npz")])
    with pytest.raises(SystemExit) as caught:
        prepare_data.main()
    assert caught.value.code == 1
    assert "error: There is no file" in capsys.readouterr().err


def pack(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def cifar_files(name, form):
    """A small archive in the published format, and the arrays that it holds."""
    rng = np.random.default_rng(0)
    hundred = name == "cifar100"
    batches = ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files, images, labels, coarse = {}, [], [], []
    for batch in batches:
        image = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        label, group = np.arange(12) % 4, np.arange(12) % 2
        planes = image.transpose(0, 3, 1, 2).reshape(12, 3072)
        columns = ([group] if hundred else []) + [label]
        if form == "binary":
            rows = np.concatenate([*(c[:, None].astype(np.uint8) for c in columns), planes], 1)
            files[f"{batch}.bin"] = rows.tobytes()
        else:
            keys = [b"coarse_labels", b"fine_labels"] if hundred else [b"labels"]
            content = {b"data": planes} | dict(zip(keys, (c.tolist() for c in columns), strict=True))
            # the published pickles name numpy's modules as they were called before numpy 2
            files[batch] = pickle.dumps(content, 2).replace(b"numpy._core", b"numpy.core")
        images.append(image)
        labels.append(label)
        coarse.append(group)
    fine_names, coarse_names = (
        [f"fine{i}" for i in range(100 if hundred else 10)],
        [f"coarse{i}" for i in range(20)],
    )
    if form == "binary":
        files |= {"batches.meta.txt": "\n".join(fine_names).encode()} if not hundred else {}
        files |= {"fine_label_names.txt": "\n".join(fine_names).encode()} if hundred else {}
        files |= {"coarse_label_names.txt": "\n".join(coarse_names).encode()} if hundred else {}
    else:
        encoded = {b"fine_label_names" if hundred else b"label_names": [n.encode() for n in fine_names]}
        encoded |= {b"coarse_label_names": [n.encode() for n in coarse_names]}
        files["meta" if hundred else "batches.meta"] = pickle.dumps(encoded, 2)
    return (
        files,
        np.concatenate(images[:-1]),
        images[-1],
        np.concatenate(labels[:-1]),
        np.concatenate(coarse[:-1]),
    )


@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_archives(tmp_path, name, form):
    import tensorflow_datasets as tfds

    files, x_train, x_test, y_train, coarse = cifar_files(name, form)
    path = pack(tmp_path / "archive.tar.gz", files)
    prepare_data.from_archive(name, path, tmp_path / "tfds")
    found = load(name, data_dir=tmp_path / "tfds", validation_fraction=0)
    np.testing.assert_array_equal(found.x_train, x_train)
    np.testing.assert_array_equal(found.x_test, x_test)
    np.testing.assert_array_equal(found.y_train, y_train)
    assert found.n_classes == (100 if name == "cifar100" else 10)
    builder = tfds.builder(name, data_dir=tmp_path / "tfds")
    assert builder.info.features["label"].int2str(3) == "fine3"
    if name == "cifar100":
        plain = builder.as_data_source("train")
        assert [e["coarse_label"] for e in plain] == coarse.tolist()


def test_broken_cifar_archives(tmp_path):
    files = cifar_files("cifar10", "python")[0]
    path = pack(tmp_path / "a.tar.gz", files)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.tar.gz cannot be read"):
            prepare_data.from_archive("cifar10", path, tmp_path / "tfds")
    pack(path, {name: content for name, content in files.items() if name != "data_batch_3"})
    with pytest.raises(ValueError, match=r"a.tar.gz lacks 'data_batch_3'; it holds data_batch_1"):
        prepare_data.from_archive("cifar10", path, tmp_path / "tfds")
    pack(path, files | {"test_batch": b"cos\nsystem\n(S'exit 7'\ntR."})
    with pytest.raises(ValueError, match=r"os.system, which no CIFAR archive contains"):
        prepare_data.from_archive("cifar10", path, tmp_path / "tfds")
    with pytest.raises(FileNotFoundError, match=r"nowhere.tar.gz. Get https"):
        prepare_data.from_archive("cifar10", tmp_path / "nowhere.tar.gz", tmp_path / "tfds")


def test_idx_files_of_the_mnist_family(tmp_path):
    arrays = make_arrays(12, 6, (28, 28, 1), 3)
    for prefix, split in (("train", "train"), ("t10k", "test")):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"].astype(np.uint8)
        images = struct.pack(">4i", 2051, len(x), 28, 28) + x.tobytes()
        labels = struct.pack(">2i", 2049, len(y)) + y.tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    prepare_data.from_archive("fashion_mnist", tmp_path, tmp_path / "tfds")
    found = load("fashion_mnist", data_dir=tmp_path / "tfds", validation_fraction=0)
    for key, value in arrays.items():
        np.testing.assert_array_equal(getattr(found, key), value)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = file.read_bytes()
    for content in (whole[:-5], gzip.compress(gzip.decompress(whole)[:-1]), b"plain"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is no idx file"):
            prepare_data.from_archive("mnist", tmp_path, tmp_path / "tfds")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz. The folder must hold"):
        prepare_data.from_archive("mnist", tmp_path, tmp_path / "tfds")
