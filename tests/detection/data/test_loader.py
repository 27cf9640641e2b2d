"""Mirrors detection/data/loader.py and workers.py: what loaders give, and what becomes of awkward workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from detection.config.detection import DetectorDataConfig, JitterConfig
from detection.data.cards import load_dataset
from detection.data.images import ImageError
from detection.data.loader import (
    build_test_loader,
    build_train_loader,
    detection_loader,
    load_data,
    load_index,
    make_loader,
)
from detection.data.packed_strings import PackedStrings
from detection.data.workers import SMALL
from detection.fields.keypoints import Keypoints
from detection.keypoints import KeypointSpec
from detection.padded import Targets

CAT, DOG, HARD = ("cat", (11, 21, 40, 50), False), ("dog", (31, 5, 60, 30), False), ("dog", (2, 3, 30, 40), True)
JITTERED = ({"ColorJitter": {"p": 1.0}},)
STEPS = ({"HorizontalFlip": {"p": 0.5}}, *JITTERED, {"RandomCrop": {"height": 55, "width": 55}})
CONFIG = DetectorDataConfig(shorter_side=48, longer_side=90, augment=STEPS, workers=0)
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


def test_objects_are_pasted_whatever_the_number_of_workers(index, make_index, paths, with_masks) -> None:
    plain = make_index([[((10 * row, 10, 10 * row + 10, 30), row % 2, False)] for row in range(6)], paths=paths[:6])
    stack = torch.zeros(6, 60, 80, dtype=torch.bool)
    for row, mask in enumerate(stack):
        mask[10:30, 10 * row : 10 * row + 10] = 1
    masked = with_masks(plain, stack)
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


def test_mistakes_are_found_before_a_batch(index, make_index, write_card, make_coco, edit_json, tmp_path) -> None:
    ignored, config = [((0, 0, 5, 5), 0, True)] * 2, replace(CONFIG, train=("own:train",))
    for images, why in (([[], ignored], "2 objects are all ignored .*iscrowd"), ([[]] * 3, "3 images have no object")):
        with pytest.raises(ValueError, match=rf"data\.train .*own:train.* has no image to train on: its {why}"):
            build_train_loader(make_index(images), config, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="did you mean 'HorizontalFlip'"):
        build_train_loader(index, replace(CONFIG, augment=({"HorizontalFip": {}},)), batch_size=2, seed=0)
    config = replace(CONFIG, root=str(tmp_path), train=(f"{write_card('voc')}:train",))
    assert load_data(config, say=print)["train"].class_names == index.class_names
    for name in ("masks", "keypoints"):
        with pytest.raises(ValueError, match=rf"data\.train \[.*\] lacks {name}, .*the data set has no {name}"):
            load_data(config, say=print, fields=(name,))
    edit_json(make_coco({1: "a.jpg"}, []), lambda content: content.pop("annotations"))
    spec, said = f"{write_card('coco')}:train", []
    assert len(load_index(config, [spec], key="data.test", say=said.append)) == 1
    assert "no ground truth, so no figure can be computed" in said[0]
    with pytest.raises(ValueError, match=r"data\.train .* has no ground truth .*annotations"):
        load_index(config, [spec], key="data.train", say=print)


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


def test_keypoints_come_in_batches_padded_like_boxes(make_index) -> None:
    field = Keypoints(KeypointSpec(("nose", "tail")))
    packed = PackedStrings.pack([field.pack([10, 20, 2, 30, 40, 1], (60, 80)), field.unknown((60, 80))])
    index = make_index([[((0, 0, 40, 50), 0, False), ((5, 5, 50, 50), 0, False)], []])
    posed = replace(index, fields={"keypoints": packed}, keypoints=field.spec)
    keypoints: Any = Targets.pad([posed.target(row, fields=("keypoints",)) for row in (0, 1)]).keypoints
    assert (keypoints.shape, keypoints[0, 0].tolist()) == ((2, 8, 2, 3), [[10.5, 20.5, 2], [30.5, 40.5, 1]])
    assert not keypoints[0, 1:].any()
    assert not keypoints[1].any()


class Awkward(Dataset[Any]):
    """Tensors; ``trouble`` happens in the worker that reads number 3."""

    def __init__(self, trouble) -> None:
        self.trouble = trouble

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key):
        if key[1] == 3:
            self.trouble()
        return torch.full((2,), key[1])


def load(trouble):
    sampler: Any = [[(number, number)] for number in range(8)]
    return make_loader(Awkward(trouble), sampler, workers=1, pin=False, collate=lambda samples: samples[0])


def test_a_killed_worker_is_told_and_raises_only_where_batches_are_read() -> None:
    batches = iter(load(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    next(batches)
    time.sleep(0.5)  # it dies here, as in the middle of a step
    with pytest.raises(ChildProcessError, match=r"loader worker \d+ was killed, .*lower data\.workers \(now 1\)"):
        list(batches)


@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up_and_ended(monkeypatch) -> None:
    monkeypatch.setattr("detection.data.workers.LONGEST_WAIT", 2.0)
    batches = iter(load(lambda: time.sleep(600)))
    said = r"returned a batch for 2 s; it was to read \(3, 3\)\. .*data\.workers=0"
    with pytest.raises(ChildProcessError, match=said):
        list(batches)
    batches = None
    assert multiprocessing.active_children() == []


def test_ctrl_c_and_other_signals_to_the_group_leave_workers_alone() -> None:
    batches = load(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGINT, signal.SIGHUP)])
    assert [int(batch[0]) for batch in batches] == list(range(8))


NO_ROOM = """
import torch
from detection.data.loader import make_loader
from detection.data import workers
workers.SMALL = {small}
data = [torch.full((4 << 20,), number, dtype=torch.uint8) for number in range(4)]
loader = make_loader(data, [[0], [1]], workers=1, pin=False, collate=lambda samples: samples[0])
for _ in range(2):
    print([int(batch.float().mean()) for batch in loader])
"""


def run_with_small_shm(small):
    """Loads batches of 4 MiB where /dev/shm has 1, which counts as small below ``small`` bytes."""
    mount = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", mount, sys.executable, NO_ROOM.format(small=small)]
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may unshare mounts")
    options = {"cwd": Path(__file__).parents[3], "capture_output": True, "text": True}
    return subprocess.run(command, **options, timeout=60, check=False)


@pytest.mark.slow
def test_batches_go_around_a_small_dev_shm_and_a_full_one_is_named_soon() -> None:
    done = run_with_small_shm(SMALL)
    assert done.stdout.splitlines() == ["[0, 1]", "[0, 1]"], done.stderr
    last = run_with_small_shm(0).stderr.strip().splitlines()[-1]
    for said in ("had no room for a batch in /dev/shm", "MiB free of 1: ", "data.workers (now 1)"):
        assert said in last
