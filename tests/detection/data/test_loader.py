"""Mirrors detection/data/loader.py: what loaders give, whatever the number of their workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from detection.config.detection import DetectorDataConfig, JitterConfig
from detection.data.cards import load_dataset
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader, build_train_loader, detection_loader, load_data
from detection.data.packed_strings import PackedStrings
from detection.fields.keypoints import Keypoints
from detection.keypoints import KeypointSpec
from detection.masks import encode
from detection.padded import Targets

ROOT = Path(__file__).parents[3]
CAT = ("cat", (11, 21, 40, 50), False)
DOG = ("dog", (31, 5, 60, 30), False)
HARD = ("dog", (2, 3, 30, 40), True)
UPRIGHT = (80, 60)

CONFIG = DetectorDataConfig(
    shorter_side=48,
    longer_side=90,
    augment=({"HorizontalFlip": {"p": 0.5}}, {"ColorJitter": {"p": 1.0}}, {"RandomCrop": {"height": 55, "width": 55}}),
    workers=0,
)


@pytest.fixture
def index(make_voc: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path) -> AnnotationIndex:
    """Eight images, of which three are upright, one (row 2) has no object and one (row 5) only a difficult one."""
    objects = {"a": [CAT], "b": [DOG, HARD], "c": [], "d": [CAT, DOG], "e": [DOG], "f": [HARD], "g": [CAT], "h": [DOG]}
    make_voc(objects, sizes=dict.fromkeys("adg", UPRIGHT))
    return load_dataset([f"{write_card('voc')}:train"], tmp_path)[0]


def train_batches(index: AnnotationIndex, config: DetectorDataConfig, count: int, *, start: int = 0) -> list[Batch]:
    return list(islice(detection_loader(index, config, batch_size=2, seed=3, start=start), count))


def assert_equal(ours: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(ours, others, strict=True):
        assert (one.rows, one.paths) == (other.rows, other.paths)
        assert torch.equal(one.images.sizes, other.images.sizes)
        assert one.images.seeds is not None
        assert other.images.seeds is not None
        assert torch.equal(one.images.seeds, other.images.seeds)
        assert torch.equal(one.images.pixels, other.images.pixels)
        for name in ("boxes", "labels", "ignore", "valid"):
            assert torch.equal(getattr(one.targets, name), getattr(other.targets, name))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(index: AnnotationIndex, workers: int) -> None:
    expected = train_batches(index, CONFIG, 7)
    torch.manual_seed(99)
    assert_equal(train_batches(index, replace(CONFIG, workers=workers), 7), expected)


def test_a_run_that_starts_later_gives_the_same_batches(index: AnnotationIndex) -> None:
    assert_equal(train_batches(index, CONFIG, 4, start=5), train_batches(index, CONFIG, 9)[5:])


def test_another_seed_gives_another_order(index: AnnotationIndex) -> None:
    def order(seed: int) -> list[tuple[int, ...]]:
        loader = build_train_loader(index, CONFIG, batch_size=2, seed=seed)
        return [batch.rows for batch in islice(loader, 6)]

    assert order(0) != order(1)


def test_another_seed_gives_another_augmentation(make_index: Callable[..., AnnotationIndex], tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.png")
    one_image = make_index([[((0, 0, 50, 50), 0, False)]], paths=[str(tmp_path / "a.png")], sizes=[(256, 256)])
    config = replace(CONFIG, augment=({"ColorJitter": {"p": 1.0}},))
    first, second = (
        next(iter(build_train_loader(one_image, config, batch_size=1, seed=seed))).images.pixels for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_the_same_image_is_augmented_anew_in_every_pass(index: AnnotationIndex) -> None:
    batches = train_batches(index, replace(CONFIG, augment=({"ColorJitter": {"p": 1.0}},)), 12)
    seen = [image for batch in batches for row, image in zip(batch.rows, batch.images.pixels, strict=True) if row == 0]
    assert len(seen) >= 3
    assert not any(torch.equal(seen[0], other) for other in seen[1:])


def test_images_have_the_configured_scale(index: AnnotationIndex) -> None:
    config = replace(CONFIG, augment=())
    sizes = {size for batch in train_batches(index, config, 12) for size in batch.images.size_list()}
    assert sizes == {(48, 64), (64, 48)}


def test_training_images_have_one_of_the_sides_and_test_images_the_one(index: AnnotationIndex) -> None:
    config = replace(CONFIG, augment=(), train_shorter_sides=(30, 60))
    sizes = {min(size) for batch in train_batches(index, config, 12) for size in batch.images.size_list()}
    assert sizes == {30, 60}
    assert {min(size) for batch in build_test_loader(index, config) for size in batch.images.size_list()} == {48}
    assert_equal(train_batches(index, config, 4, start=5), train_batches(index, config, 9)[5:])


def test_jittered_images_fill_the_canvas_and_test_images_do_not(index: AnnotationIndex) -> None:
    config = replace(CONFIG, augment=(), jitter=JitterConfig(size=40))
    first, *others = train_batches(index, config, 6)
    assert {size for batch in (first, *others) for size in batch.images.size_list()} == {(40, 40)}
    assert_equal(train_batches(index, replace(config, workers=1), 6), [first, *others])
    assert next(iter(build_test_loader(index, config))).images.size_list() == [(64, 48)]


def test_images_of_a_rare_class_come_more_often(make_index: Callable[..., AnnotationIndex], tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((80, 60)).save(tmp_path / "a.png")
    rare = make_index([[((0, 0, 9, 9), int(row == 3), False)] for row in range(8)], paths=[str(tmp_path / "a.png")] * 8)
    config = replace(CONFIG, augment=(), repeat_threshold=0.5)  # sqrt(0.5 / (1 / 8)) = 2
    rows = [row for batch in train_batches(rare, config, 9) for row in batch.rows]
    assert sorted(rows) == sorted([3, 3, 0, 1, 2, 4, 5, 6, 7] * 2)


def test_pasting_without_masks_is_refused_with_the_key_and_the_data_set(index: AnnotationIndex) -> None:
    config = replace(CONFIG, copy_paste=0.5, train=("voc:train",))
    with pytest.raises(ValueError, match=r"data\.copy_paste pastes masks, which data\.train \['voc:train'\] lacks"):
        detection_loader(index, config, batch_size=2, seed=0)


def test_objects_are_pasted_whatever_the_number_of_workers(
    make_index: Callable[..., AnnotationIndex], tmp_path: Path
) -> None:
    Image.linear_gradient("L").resize((80, 60)).save(tmp_path / "a.png")
    objects = [[((10 * row, 10, 10 * row + 10, 30), row % 2, False)] for row in range(6)]
    plain = make_index(objects, paths=[str(tmp_path / "a.png")] * 6)
    stack = torch.zeros(6, 60, 80, dtype=torch.uint8)
    for row, mask in enumerate(stack):
        mask[10:30, 10 * row : 10 * row + 10] = 1
    packed = PackedStrings.pack([encode(mask.numpy())["counts"].decode() for mask in stack])
    masked, config = replace(plain, fields={"masks": packed}), replace(CONFIG, augment=(), copy_paste=1.0)
    batches = train_batches(masked, config, 6)
    assert all(batch.targets.valid.sum(dim=1).tolist() == [2, 2] for batch in batches)
    assert_equal(train_batches(masked, replace(config, workers=1), 6), batches)
    assert_equal(train_batches(masked, config, 2, start=4), batches[4:])


def test_upright_and_lying_images_are_kept_apart_only_if_asked(index: AnnotationIndex) -> None:
    def mixed(*, group: bool) -> bool:
        config = replace(CONFIG, augment=(), group_by_aspect=group)
        return any(len(set(batch.images.size_list())) == 2 for batch in train_batches(index, config, 12))

    assert not mixed(group=True)
    assert mixed(group=False)


@pytest.mark.parametrize(("skip", "rows"), [(True, {0, 1, 3, 4, 6, 7}), (False, set(range(8)))])
def test_images_without_an_object_to_learn_are_skipped_only_if_asked(
    index: AnnotationIndex, skip: bool, rows: set[int]
) -> None:
    batches = train_batches(index, replace(CONFIG, skip_empty=skip), 16)
    assert {row for batch in batches for row in batch.rows} == rows


def test_no_image_to_train_on_is_refused(make_index: Callable[..., AnnotationIndex]) -> None:
    empty = make_index([[], [((0, 0, 5, 5), 0, True)]])
    with pytest.raises(ValueError, match=r"no image to train on.*data\.skip_empty"):
        build_train_loader(empty, CONFIG, batch_size=2, seed=0)


def test_a_mistake_in_the_augmentation_is_found_before_the_first_batch(index: AnnotationIndex) -> None:
    with pytest.raises(ValueError, match="did you mean 'HorizontalFlip'"):
        build_train_loader(index, replace(CONFIG, augment=({"HorizontalFip": {}},)), batch_size=2, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_from_any_process(index: AnnotationIndex, workers: int) -> None:
    Path(index.paths[4]).write_bytes(b"no image")
    batches = iter(build_test_loader(index, replace(CONFIG, workers=workers)))
    with pytest.raises(ValueError, match=r"image .*e\.jpg can't be read"):
        list(batches)
    # Left to the garbage collector, the end of the worker takes five seconds.
    getattr(batches, "_shutdown_workers", lambda: None)()


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (2, 1), (0, 3)])
def test_testing_visits_each_image_once_without_augmentation(
    index: AnnotationIndex, workers: int, batch_size: int
) -> None:
    batches = list(build_test_loader(index, replace(CONFIG, workers=workers), batch_size=batch_size))
    assert [row for batch in batches for row in batch.rows] == list(range(8))
    first = batches[0].targets  # 60x80 upright: factor 48 / 60
    torch.testing.assert_close(first.boxes[0, first.valid[0]], torch.tensor([[10.0, 20.0, 40.0, 50.0]]) * 0.8)


def test_testing_takes_only_the_rows_it_is_given(index: AnnotationIndex) -> None:
    loader = build_test_loader(index, CONFIG, rows=[6, 2])
    assert [batch.rows for batch in loader] == [(6,), (2,)]
    assert list(build_test_loader(index, CONFIG, rows=[])) == []


def test_a_program_ends_with_workers_left(make_voc: Callable[..., Path], write_card: Callable[..., str]) -> None:
    # Workers leave SIGTERM to the training process, and Python ends what is left at exit with SIGTERM.
    root = make_voc({"a": [CAT], "b": [DOG]}).parent
    program = (
        "import pathlib, sys\n"
        "from detection.config.detection import DetectorDataConfig\n"
        "from detection.data.loader import build_train_loader\n"
        "from detection.data.cards import load_dataset\n"
        "index = load_dataset([sys.argv[1]], pathlib.Path(sys.argv[2]))[0]\n"
        "sys.kept = iter(build_train_loader(index, DetectorDataConfig(workers=1, augment=()), batch_size=1, seed=0))\n"
        "next(sys.kept)\n"
    )
    command = [sys.executable, "-c", program, f"{write_card('voc')}:train", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["masks", "keypoints"])
def test_a_training_set_without_what_the_detector_needs_is_refused_by_name(
    index: AnnotationIndex, write_card: Callable[..., str], tmp_path: Path, name: str
) -> None:
    config = replace(CONFIG, root=str(tmp_path), train=(f"{write_card('voc')}:train",))
    assert load_data(config, say=print)["train"].class_names == index.class_names
    with pytest.raises(ValueError, match=rf"data\.train \[.*\] lacks {name}, .*the data set has no {name}"):
        load_data(config, say=print, fields=(name,))


def test_keypoints_come_in_batches_padded_like_boxes(make_index: Callable[..., AnnotationIndex]) -> None:
    field = Keypoints(KeypointSpec(("nose", "tail")))
    packed = [field.pack([10, 20, 2, 30, 40, 1], (60, 80)), field.unknown((60, 80))]
    posed = replace(
        make_index([[((0, 0, 40, 50), 0, False), ((5, 5, 50, 50), 0, False)], []]),
        fields={"keypoints": PackedStrings.pack(packed)},
        keypoints=field.spec,
    )
    targets = Targets.pad([posed.target(row, fields=("keypoints",)) for row in (0, 1)])
    assert targets.keypoints is not None
    assert targets.keypoints.shape == (2, 8, 2, 3)
    assert targets.keypoints[0, 0].tolist() == [[10.5, 20.5, 2], [30.5, 40.5, 1]]
    assert not targets.keypoints[0, 1:].any()
    assert not targets.keypoints[1].any()
