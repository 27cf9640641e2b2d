"""Mirrors data/split.py."""

import numpy as np
import pytest

from detection.data.split import class_counts, divide, group_images, join_groups

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def names_of(count):
    return [str(row) for row in range(count)]


def lengths(found):
    return {name: len(rows) for name, rows in found.items()}


def test_every_image_is_in_one_set_and_the_sets_have_their_shares_by_the_seed() -> None:
    counts = np.random.default_rng(0).integers(0, 3, (200, 4))
    found = divide(names_of(200), counts, SHARES, seed=0)
    assert sorted(row for rows in found.values() for row in rows) == list(range(200))
    assert lengths(found) == pytest.approx({"train": 160, "val": 20, "test": 20}, abs=3)
    none = np.zeros((50, 1), dtype=np.int64)
    one, again, other = (divide(names_of(50), none, SHARES, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert lengths(one) == {"train": 40, "val": 5, "test": 5}
    for count in range(4):
        found = lengths(divide(names_of(count), np.ones((count, 1), dtype=np.int64), SHARES, seed=0))
        assert (sum(found.values()), found["train"] >= min(count, 1)) == (count, True)


def test_a_rare_class_is_in_every_set() -> None:
    counts = np.zeros((300, 2), dtype=np.int64)
    counts[:, 0], counts[:10, 1] = 1, 1
    for seed in range(5):
        found = divide(names_of(300), counts, SHARES, seed=seed)
        rare = {name: int((counts[rows, 1] > 0).sum()) for name, rows in found.items()}
        assert rare == {"train": 8, "val": 1, "test": 1}


def test_groups_stay_together_and_the_sets_keep_their_sizes() -> None:
    groups = [f"video{row // 10}" for row in range(200)]
    found = divide(groups, np.ones((200, 1), dtype=np.int64), SHARES, seed=3)
    where = {groups[row]: name for name, rows in found.items() for row in rows}
    assert all(where[groups[row]] == name for name, rows in found.items() for row in rows)
    assert lengths(found) == {"train": 160, "val": 20, "test": 20}
    joined = join_groups(["a", "b", "c", "d", "a"], [(0, 1), (1, 2)])
    assert joined[0] == joined[1] == joined[2] == joined[4] != joined[3]


def test_groups_follow_from_names_folders_versions_or_a_pattern() -> None:
    numbers = range(60)
    for names, rule, count in [
        ([f"/data/clip{number // 5}_{number:05d}.jpg" for number in numbers], "number", 12),
        ([f"/data/drive{number // 5}/{number}-{'abcdefgh'[number % 8]}.jpg" for number in numbers], "folder", 12),
        ([f"/data/IMG_{number:04d}.jpg" for number in numbers], "itself", 60),
        ([f"/data/{'ab'[number % 2]}_{number}.jpg" for number in numbers], "itself", 60),  # two can't be divided
    ]:
        groups, said = group_images(names)
        assert (rule in said, len(set(groups))) == (True, count)
    names = [f"/data/img-{number}_jpg.rf.{version * 8}.jpg" for number in range(20) for version in "0a"]
    groups, _ = group_images(names)
    assert (groups[::2], len(set(groups))) == (groups[1::2], 20)
    names = ["/d/cam1_a.jpg", "/d/cam1_b.jpg", "/d/cam2_a.jpg", "/d/else.jpg"]
    for pattern in (r"(cam\d)_", r"cam\d"):
        assert group_images(names, pattern=pattern)[0] == ["cam1", "cam1", "cam2", "/d/else"]
    with pytest.raises(ValueError, match=r"cam\("):
        group_images(names, pattern="cam(")


def test_ignored_objects_do_not_count(make_index) -> None:
    index = make_index([[((0, 0, 9, 9), 0, False), ((0, 0, 9, 9), 1, True)], [], [((0, 0, 9, 9), 1, False)] * 2])
    assert class_counts(index).tolist() == [[1, 0], [0, 0], [0, 2]]
