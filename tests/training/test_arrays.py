"""Pixels in files: .npz as ADM and EDM write it, CIFAR-10 as it is distributed, and nothing is ever unpickled."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.condition import LabelConditioning, NoConditioning
from training.datasets import DataError
from training.images import ImageSet
from training.opening import open_data
from training.sources.arrays import CIFAR_CLASSES, CIFAR_IMAGE

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([4, 0, 2, 1, 1, 0, 4, 2, 2])


def opened(path: Path, resolution: int = 8) -> ImageSet:
    data = open_data(str(path), resolution)
    assert isinstance(data, ImageSet)
    return data


def epoch(data: ImageSet) -> dict[bytes, tuple[int, ...]]:
    """Every image's pixels and its condition."""
    assert data.size
    pixels = data.pixels(0, data.size, seed=0)
    return {image.tobytes(): tuple(row) for image, row in zip(pixels.images, pixels.conditions.tolist(), strict=True)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_with_its_labels_whether_compressed_or_not(save, tmp_path: Path):
    save(tmp_path / "set.npz", IMAGES, LABELS)
    data = opened(tmp_path / "set.npz")
    assert data.conditioning == LabelConditioning(labels=("0", "1", "2", "3", "4")) and data.name == "set"
    assert epoch(data) == {image.tobytes(): (label + 1,) for image, label in zip(IMAGES, LABELS.tolist(), strict=True)}
    # only where it is compressed are its pixels in memory
    assert isinstance(data.source._parts[0].store, np.ndarray) == (save is np.savez_compressed)


@given(st.integers(0, 50), st.integers(1, 12), st.integers(0, 3))
def test_a_batch_of_an_npz_is_a_function_of_seed_and_position(tmp_path_factory, start: int, count: int, seed: int):
    file = tmp_path_factory.getbasetemp() / "given.npz"
    if not file.exists():
        np.savez(file, IMAGES, LABELS)
    data = opened(file)
    whole = data.pixels(start, count, seed=seed)
    alone = [data.pixels(start + at, 1, seed=seed) for at in range(count)]
    assert np.array_equal(whole.images, np.concatenate([one.images for one in alone]))
    assert np.array_equal(whole.conditions, np.concatenate([one.conditions for one in alone]))


def test_an_npz_may_be_grey_unlabelled_and_larger_than_wanted(tmp_path: Path):
    np.savez(tmp_path / "grey.npz", arr_0=np.full((3, 20, 14, 1), 90, np.uint8))
    data = opened(tmp_path / "grey.npz")
    assert data.conditioning == NoConditioning() and data.channels == 1
    images = data.pixels(0, 3, seed=0).images
    assert images.shape == (3, 8, 8, 1) and set(images.ravel().tolist()) == {90}


def test_labels_below_nought_are_none(tmp_path: Path):
    np.savez(tmp_path / "a.npz", IMAGES[:3], np.array([-1, 1, 0]))
    assert sorted(epoch(opened(tmp_path / "a.npz")).values()) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": IMAGES}, "looked for in arr_0, the file has images"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 must be uint8 .* it is float32"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2).copy()}, r"it is uint8 \(9, 3, 8, 8\)"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "Fortran order"),
        ({"arr_0": IMAGES, "arr_1": LABELS[:4]}, "arr_1 must hold a label for each of 9 images"),
        ({"arr_0": IMAGES, "arr_1": LABELS / 2}, "arr_1 must hold a label"),
        ({"arr_0": IMAGES, "arr_1": LABELS * 100_000}, "400,001 classes are more than"),
        ({"arr_0": IMAGES[:0]}, "must be uint8"),
    ],
)
def test_arrays_of_another_layout_are_refused_with_what_was_found(arrays: dict, said: str, tmp_path: Path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "a.npz")


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, file: Path):
        self.file = str(file)

    def __reduce__(self) -> tuple:
        return open, (self.file, "w")


def test_objects_in_an_npz_are_refused_and_never_built(tmp_path: Path):
    bomb = np.array([Bomb(tmp_path / "harm")] * 9, dtype=object)
    for arrays in ({"arr_0": bomb}, {"arr_0": IMAGES, "arr_1": bomb}):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match="arr_0 must be uint8|cannot be read as .npz"):
            opened(tmp_path / "a.npz")
    assert not (tmp_path / "harm").exists()


def test_an_npz_that_is_cut_off_or_none_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", IMAGES, LABELS)
    whole = (tmp_path / "a.npz").read_bytes()
    for data in (whole[: len(whole) // 2], b"no zip", b""):
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(DataError, match="a.npz cannot be read as .npz") as caught:
            opened(tmp_path / "a.npz")
        assert str(tmp_path) not in str(caught.value)


def test_rows_lie_where_the_zip_says_whatever_its_members_are_called_and_in_which_order(tmp_path: Path):
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "labels.npy", "arr_1.npy")
        about = zipfile.ZipInfo("arr_0.npy")
        about.extra = struct.pack("<HH", 0x7075, 9) + b"x" * 9
        archive.writestr(about, (tmp_path / "images.npy").read_bytes())
    assert epoch(opened(tmp_path / "a.npz")).keys() == {image.tobytes() for image in IMAGES}


PLANES = RNG.integers(0, 256, (5, 4, CIFAR_IMAGE), dtype=np.uint8)
KINDS = RNG.integers(0, 10, (5, 4))
EXPECTED = {
    image.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): (kind + 1,)
    for image, kind in zip(PLANES.reshape(-1, CIFAR_IMAGE), KINDS.ravel().tolist(), strict=True)
}


def binary(folder: Path) -> Path:
    """Write the binary version: a label byte and an image, record after record."""
    folder.mkdir()
    for number, (images, kinds) in enumerate(zip(PLANES, KINDS, strict=True), 1):
        records = np.concatenate([kinds[:, None].astype(np.uint8), images], axis=1)
        (folder / f"data_batch_{number}.bin").write_bytes(records.tobytes())
    (folder / "test_batch.bin").write_bytes(bytes(3073))
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR_CLASSES) + "\n\n")
    return folder


def as_python2_pickles(number: int, images: np.ndarray, kinds: np.ndarray) -> bytes:
    """The bytes that Python 2's cPickle wrote, protocol 2, of the dictionary that a batch is."""

    def short(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    labels = b"]q\x05(" + b"".join(b"K" + bytes([kind]) for kind in kinds.tolist()) + b"e"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t(K\x01"
    array += b"K" + bytes([len(images)]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\n" + short("u1") + b"K\x00K\x01\x87Rq\x0b"
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", images.size)
    array += images.tobytes() + b"tb"
    names = b"]q\x0c(" + b"".join(short(f"{number}_{at}.png") for at in range(len(kinds))) + b"e"
    entries = {
        "batch_label": short(f"training batch {number} of 5"),
        "labels": labels,
        "data": array,
        "filenames": names,
    }
    return b"\x80\x02}q\x01(" + b"".join(short(key) + value for key, value in entries.items()) + b"u."


def pickled(folder: Path, write=as_python2_pickles) -> Path:
    folder.mkdir()
    for number, (images, kinds) in enumerate(zip(PLANES, KINDS, strict=True), 1):
        (folder / f"data_batch_{number}").write_bytes(write(number, images, kinds))
    (folder / "batches.meta").write_bytes(b"not read")
    return folder


@pytest.mark.parametrize("write", [binary, pickled])
def test_cifar_is_read_as_it_is_distributed(write, tmp_path: Path):
    data = opened(write(tmp_path / "cifar"), 32)
    assert data.conditioning == LabelConditioning(labels=CIFAR_CLASSES)
    assert data.size == 20 and epoch(data) == EXPECTED


def test_the_pickles_that_this_test_writes_are_pickles():
    held = pickle.loads(as_python2_pickles(1, PLANES[0], KINDS[0]), encoding="latin-1")
    assert np.array_equal(held["data"], PLANES[0]) and held["labels"] == KINDS[0].tolist() and len(held) == 4


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_batches_pickled_again_by_python_3_are_read_or_refused_but_never_wrong(protocol: int, tmp_path: Path):
    def write(number: int, images: np.ndarray, kinds: np.ndarray) -> bytes:
        return pickle.dumps({b"labels": kinds.tolist(), b"data": images}, protocol=protocol)

    try:
        data = opened(pickled(tmp_path / "cifar", write), 32)
    except DataError as error:
        assert "binary version" in str(error)
    else:
        assert epoch(data).keys() == EXPECTED.keys()


def test_nothing_in_a_pickle_is_executed(tmp_path: Path):
    def write(number: int, images: np.ndarray, kinds: np.ndarray) -> bytes:
        return pickle.dumps({"bomb": Bomb(tmp_path / "harm"), "labels": kinds.tolist(), "data": images.tobytes()}, 2)

    with pytest.raises(DataError, match=r"data_batch_1 is no python batch .* binary version \(data_batch_1.bin"):
        opened(pickled(tmp_path / "cifar", write), 32)
    assert not (tmp_path / "harm").exists()


def test_cifar_with_a_batch_missing_or_damaged_is_refused(tmp_path: Path):
    folder = binary(tmp_path / "cifar")
    (folder / "data_batch_3.bin").write_bytes((folder / "data_batch_3.bin").read_bytes()[:-7])
    with pytest.raises(DataError, match="data_batch_3.bin: 12,285 bytes are no whole number of CIFAR-10 records"):
        opened(folder, 32)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="five training batches, 4 are here"):
        opened(folder, 32)
    for name, data in (("cut", as_python2_pickles(1, PLANES[0], KINDS[0])[:-4000]), ("none", b"no pickle")):
        other = pickled(tmp_path / name)
        (other / "data_batch_2").write_bytes(data)
        with pytest.raises(DataError, match="data_batch_2 is no python batch of CIFAR-10"):
            opened(other, 32)


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path):
    folder = binary(tmp_path / "cifar")
    data = bytearray((folder / "data_batch_1.bin").read_bytes())
    data[0] = 77
    (folder / "data_batch_1.bin").write_bytes(data)
    with pytest.raises(DataError, match="label 77 is none of 10 classes"):
        opened(folder, 32)
