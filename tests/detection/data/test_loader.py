"""Mirrors detection/data/loader.py: what loaders give, whatever the number of their workers."""

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from detection.config.detection import DetectorDataConfig, JitterConfig
from detection.data.cards import load_dataset
from detection.data.images import ImageError
from detection.data.loader import build_test_loader, build_train_loader, detection_loader, load_data
from detection.data.packed_strings import PackedStrings
from detection.fields.keypoints import Keypoints
from detection.keypoints import KeypointSpec
from detection.masks import encode
from detection.padded import Targets

CAT, DOG = ("cat", (11, 21, 40, 50), False), ("dog", (31, 5, 60, 30), False)
HARD = ("dog", (2, 3, 30, 40), True)
JITTERED = ({"ColorJitter": {"p": 1.0}},)
CONFIG = DetectorDataConfig(
    shorter_side=48,
    longer_side=90,
    augment=({"HorizontalFlip": {"p": 0.5}}, *JITTERED, {"RandomCrop": {"height": 55, "width": 55}}),
    workers=0,
)
PLAIN = replace(CONFIG, augment=())


@pytest.fixture
def index(make_voc, write_card, tmp_path):
    """Eight images, of which three are upright, one (row 2) has no object and one (row 5) only a difficult one."""
    objects = {"a": [CAT], "b": [DOG, HARD], "c": [], "d": [CAT, DOG], "e": [DOG], "f": [HARD], "g": [CAT], "h": [DOG]}
    make_voc(objects, sizes=dict.fromkeys("adg", (80, 60)))
    return load_dataset([f"{write_card('voc')}:train"], tmp_path)[0]


@pytest.fixture
def paths(tmp_path):
    """Of one picture, eight times."""
    Image.linear_gradient("L").resize((80, 60)).save(tmp_path / "a.png")
    return [str(tmp_path / "a.png")] * 8


def train_batches(index, config, count, *, start=0, seed=3):
    return list(islice(detection_loader(index, config, batch_size=2, seed=seed, start=start), count))


def rows_of(batches):
    return [row for batch in batches for row in batch.rows]


def sizes_of(batches):
    return {size for batch in batches for size in batch.images.size_list()}


def assert_equal(ours, others) -> None:
    for one, other in zip(ours, others, strict=True):
        assert (one.rows, one.paths) == (other.rows, other.paths)
        for name in ("sizes", "seeds", "pixels"):
            assert torch.equal(getattr(one.images, name), getattr(other.images, name))
        for name in ("boxes", "labels", "ignore", "valid"):
            assert torch.equal(getattr(one.targets, name), getattr(other.targets, name))


def test_neither_the_number_of_workers_nor_the_start_changes_anything(index) -> None:
    expected = train_batches(index, CONFIG, 9)
    torch.manual_seed(99)
    for workers in (1, 2):
        assert_equal(train_batches(index, replace(CONFIG, workers=workers), 7), expected[:7])
    assert_equal(train_batches(index, CONFIG, 4, start=5), expected[5:])
    assert rows_of(train_batches(index, PLAIN, 6, seed=0)) != rows_of(train_batches(index, PLAIN, 6, seed=1))


def test_seeds_and_epochs_augment_anew_and_rare_classes_come_more_often(make_index, paths) -> None:
    one_image = make_index([[((0, 0, 50, 50), 0, False)]], paths=paths[:1])
    config = replace(CONFIG, augment=JITTERED)
    first, second = (train_batches(one_image, config, 1, seed=seed)[0].images.pixels for seed in (0, 1))
    assert not torch.equal(first[:1], second[:1])
    assert not torch.equal(first[0], first[1])  # the same image once more
    rare = make_index([[((0, 0, 9, 9), int(row == 3), False)] for row in range(8)], paths=paths)
    config = replace(PLAIN, repeat_threshold=0.5)  # sqrt(0.5 / (1 / 8)) = 2
    assert sorted(rows_of(train_batches(rare, config, 9))) == sorted([3, 3, 0, 1, 2, 4, 5, 6, 7] * 2)


def test_training_and_test_images_have_the_configured_scales(index) -> None:
    assert sizes_of(train_batches(index, PLAIN, 12)) == {(48, 64), (64, 48)}
    config = replace(PLAIN, train_shorter_sides=(30, 60))
    batches = train_batches(index, config, 12)
    assert {min(size) for size in sizes_of(batches)} == {30, 60}
    assert_equal(train_batches(index, config, 4, start=5), batches[5:9])
    assert {min(size) for size in sizes_of(build_test_loader(index, config))} == {48}
    config = replace(PLAIN, jitter=JitterConfig(size=40))
    batches = train_batches(index, config, 6)
    assert sizes_of(batches) == {(40, 40)}
    assert_equal(train_batches(index, replace(config, workers=1), 6), batches)
    assert next(iter(build_test_loader(index, config))).images.size_list() == [(64, 48)]


def test_objects_are_pasted_whatever_the_number_of_workers(index, make_index, paths) -> None:
    plain = make_index([[((10 * row, 10, 10 * row + 10, 30), row % 2, False)] for row in range(6)], paths=paths[:6])
    stack = torch.zeros(6, 60, 80, dtype=torch.uint8)
    for row, mask in enumerate(stack):
        mask[10:30, 10 * row : 10 * row + 10] = 1
    masked = replace(plain, fields={"masks": PackedStrings.pack([encode(mask.numpy())["counts"] for mask in stack])})
    config = replace(PLAIN, copy_paste=1.0)
    batches = train_batches(masked, config, 6)
    assert all(batch.targets.valid.sum(dim=1).tolist() == [2, 2] for batch in batches)
    assert_equal(train_batches(masked, replace(config, workers=1), 6), batches)
    assert_equal(train_batches(masked, config, 2, start=4), batches[4:])
    with pytest.raises(ValueError, match=r"data\.copy_paste pastes masks, which data\.train \['voc:train'\] lacks"):
        train_batches(index, replace(config, train=("voc:train",)), 1)


def test_images_are_grouped_and_skipped_only_if_asked(index) -> None:
    def mixed(*, group):
        batches = train_batches(index, replace(PLAIN, group_by_aspect=group), 12)
        return any(len(set(batch.images.size_list())) == 2 for batch in batches)

    assert (mixed(group=True), mixed(group=False)) == (False, True)
    for skip, rows in ((True, {0, 1, 3, 4, 6, 7}), (False, set(range(8)))):
        assert set(rows_of(train_batches(index, replace(PLAIN, skip_empty=skip), 16))) == rows


def test_mistakes_are_found_before_the_first_batch(index, make_index) -> None:
    empty = make_index([[], [((0, 0, 5, 5), 0, True)]])
    with pytest.raises(ValueError, match=r"no image to train on.*data\.skip_empty"):
        build_train_loader(empty, CONFIG, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="did you mean 'HorizontalFlip'"):
        build_train_loader(index, replace(CONFIG, augment=({"HorizontalFip": {}},)), batch_size=2, seed=0)


@pytest.mark.parametrize("damage", ["text", "missing", "size"])
def test_an_image_error_reads_the_same_in_one_line_from_any_process(index, draw, damage) -> None:
    path, errors = Path(index.paths[4]), []
    path.unlink()
    if damage != "missing":
        draw(path, size=(20, 30)) if damage == "size" else path.write_bytes(b"no image")
    for workers in (0, 1):
        batches = iter(build_test_loader(index, replace(CONFIG, workers=workers)))
        with pytest.raises(ImageError) as error:
            list(batches)
        # Left to the garbage collector, the end of the worker takes five seconds.
        getattr(batches, "_shutdown_workers", lambda: None)()
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"image {path} {'is 30x20 pixels, its' if damage == 'size' else 'can'}")
    assert "\n" not in errors[0]


def test_testing_visits_each_image_once_without_augmentation(index) -> None:
    for workers, batch_size in ((0, 1), (2, 1), (0, 3)):
        batches = list(build_test_loader(index, replace(CONFIG, workers=workers), batch_size=batch_size))
        assert rows_of(batches) == list(range(8))
        first = batches[0].targets  # 60x80 upright: factor 48 / 60
        torch.testing.assert_close(first.boxes[0, first.valid[0]], torch.tensor([[10.0, 20.0, 40.0, 50.0]]) * 0.8)
    assert [batch.rows for batch in build_test_loader(index, CONFIG, rows=[6, 2])] == [(6,), (2,)]
    assert list(build_test_loader(index, CONFIG, rows=[])) == []


PROGRAM = """
import pathlib, sys
from detection.config.detection import DetectorDataConfig
from detection.data.loader import build_train_loader
from detection.data.cards import load_dataset
from detection.data.images import ImageError
index = load_dataset([sys.argv[1]], pathlib.Path(sys.argv[2]))[0]
sys.kept = iter(build_train_loader(index, DetectorDataConfig(workers=1, augment=()), batch_size=1, seed=0))
next(sys.kept)
"""


@pytest.mark.slow  # another process with its own imports
def test_a_program_ends_with_workers_left(make_voc, write_card) -> None:
    # Workers leave SIGTERM to the training process, and Python ends what is left at exit with SIGTERM.
    root = make_voc({"a": [CAT], "b": [DOG]}).parent
    command = [sys.executable, "-c", PROGRAM, f"{write_card('voc')}:train", str(root)]
    options = {"cwd": Path(__file__).parents[3], "capture_output": True, "text": True}
    done = subprocess.run(command, **options, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_training_set_without_what_the_detector_needs_is_refused_by_name(index, write_card, tmp_path) -> None:
    config = replace(CONFIG, root=str(tmp_path), train=(f"{write_card('voc')}:train",))
    assert load_data(config, say=print)["train"].class_names == index.class_names
    for name in ("masks", "keypoints"):
        with pytest.raises(ValueError, match=rf"data\.train \[.*\] lacks {name}, .*the data set has no {name}"):
            load_data(config, say=print, fields=(name,))


def test_keypoints_come_in_batches_padded_like_boxes(make_index) -> None:
    field = Keypoints(KeypointSpec(("nose", "tail")))
    packed = PackedStrings.pack([field.pack([10, 20, 2, 30, 40, 1], (60, 80)), field.unknown((60, 80))])
    index = make_index([[((0, 0, 40, 50), 0, False), ((5, 5, 50, 50), 0, False)], []])
    posed = replace(index, fields={"keypoints": packed}, keypoints=field.spec)
    keypoints = Targets.pad([posed.target(row, fields=("keypoints",)) for row in (0, 1)]).keypoints
    assert keypoints is not None
    assert (keypoints.shape, keypoints[0, 0].tolist()) == ((2, 8, 2, 3), [[10.5, 20.5, 2], [30.5, 40.5, 1]])
    assert not keypoints[0, 1:].any()
    assert not keypoints[1].any()
