"""Mirrors detection/visualize.py, label_overlay.py and label_colors.py."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detection.evaluation.record import Record
from detection.keypoints import KeypointSpec
from detection.label_colors import VOID_COLOR, color_map
from detection.label_overlay import OPACITY, draw_label_map, label_palette
from detection.lettering import letters_color
from detection.masks import encode
from detection.structures import VOID
from detection.visualize import draw_boxes, draw_record, save_picture

BLACK = np.zeros((480, 500, 3), np.uint8)  # too large to be grown
NAMES = ("cat", "dog")
CAT = [100.0, 200, 200, 250]
DOG = [300.0, 200, 400, 250]


def record(*boxes: list[float], scores: tuple[float, ...] = (0.9, 0.8), gt=()) -> Record:
    gt_boxes, found = (np.array(rows, np.float32).reshape(-1, 4) for rows in (gt, boxes))
    return Record(
        image_id=1,
        file_name="a.jpg",
        size=(480, 500),
        gt_boxes=gt_boxes,
        gt_labels=np.zeros(len(gt_boxes), np.int64),
        gt_ignore=np.zeros(len(gt_boxes), np.bool_),
        gt_areas=np.ones(len(gt_boxes), np.float32),
        boxes=found,
        scores=np.array(scores[: len(found)], np.float32),
        labels=np.arange(len(found), dtype=np.int64) % len(NAMES),
    )


def drawn_box(picture: NDArray[np.uint8]) -> list[int]:
    rows, columns = np.nonzero(picture.any(axis=2))
    return [columns.min(), rows.min(), columns.max(), rows.max()]


def test_ground_truth_is_a_white_frame_on_its_box() -> None:
    picture = draw_record(BLACK, record(gt=[[100, 200, 300, 250]]), NAMES)
    assert min(*picture[200, 150], *picture[225, 300]) > 200
    assert picture[225, 200].tolist() == [0, 0, 0]
    np.testing.assert_allclose(drawn_box(picture), [100, 200, 300, 250], atol=1)
    nothing = draw_record(BLACK, record(), NAMES)
    np.testing.assert_array_equal(nothing, BLACK)
    assert nothing is not BLACK


def test_detections_are_drawn_in_a_colour_per_class_with_captions_that_cover_boxes() -> None:
    picture = draw_record(BLACK, record(CAT, DOG), NAMES)
    cat, dog = picture[250, 150].tolist(), picture[250, 350].tolist()
    assert cat != dog
    assert max(cat) == max(dog) == 255
    assert drawn_box(picture)[1] < 195  # the caption stands above its box
    assert not BLACK.any()
    unsure = record(CAT, scores=(0.49,))
    assert not draw_record(BLACK, unsure, NAMES).any()
    assert draw_record(BLACK, unsure, NAMES, min_score=0.4).any()
    framed = draw_record(BLACK, record([100, 0, 200, 100]), NAMES)  # at the upper border the caption stays inside
    assert (framed[3:10, 102:110] == framed[100, 150]).all(axis=2).any()
    box = [100.0, 200, 300, 300]
    both, one = draw_record(BLACK, record(box, box), NAMES), draw_record(BLACK, record(box), NAMES)
    np.testing.assert_array_equal(both[180:198, 102:160], one[180:198, 102:160])  # the better one's is whole
    second = both[204:216, 104:150]
    assert {tuple(color) for color in second.reshape(-1, 3).tolist()} >= {(0, 0, 0)}  # and the other's lies in the box


def test_an_image_keeps_its_size_unless_asked_and_lines_and_letters_grow_with_it() -> None:
    small, truth = np.zeros((48, 60, 3), np.uint8), record(gt=[[10, 20, 30, 25]])
    assert draw_record(small, truth, NAMES).shape == (48, 60, 3)
    picture = draw_record(small, truth, NAMES, scale=10)
    assert picture.shape == (480, 600, 3)
    np.testing.assert_allclose(drawn_box(picture), [100, 200, 300, 250], atol=1)
    for size in ((4, 3000), (70_000, 1), (1, 1)):
        box = [0.0, 0.0, size[1], size[0]]
        picture = draw_record(np.zeros((*size, 3), np.uint8), record(box, box), NAMES)
        assert picture.shape == (*size, 3)
        assert picture.any()

    def drawn(side: int) -> tuple[int, int]:
        found = record([side / 4, side / 2, side * 3 / 4, side * 3 / 4])
        picture = draw_record(np.zeros((side, side, 3), np.uint8), found, NAMES)
        return int(np.count_nonzero(picture[side * 5 // 8, : side // 2, 0])), side // 2 - drawn_box(picture)[1]

    (thin, low), (thick, high) = drawn(500), drawn(4000)
    assert thick >= 2 * thin
    assert high >= 4 * low


def test_a_note_stands_at_the_lower_left_where_there_is_room_in_letters_of_contrast() -> None:
    nothing = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), NAMES)
    noted = draw_boxes(BLACK, *nothing, note="score >= 0.50")
    assert noted[-20:, :150].max() > 200
    assert not noted[:-30].any()
    assert not draw_boxes(BLACK[:60, :60], *nothing, note="score >= 0.50").any()

    def luminance(values: tuple[int, int, int]) -> float:
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in values]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for color in ((255, 255, 255), (0, 0, 0), (255, 89, 89), (89, 89, 255), (119, 119, 119)):
        low, high = sorted(map(luminance, (color, letters_color(color))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, color  # as WCAG asks for


def test_pictures_are_saved_in_a_format_that_takes_them_or_refused(tmp_path) -> None:
    path = tmp_path / "new" / "folder" / "red.png"
    save_picture(path, np.full((4, 5, 3), (250, 10, 20), np.uint8))
    with Image.open(path) as image:
        assert (image.size, image.getpixel((0, 0))) == ((5, 4), (250, 10, 20))
    assert save_picture(tmp_path / "a.jpg", np.zeros((70_000, 1, 3), np.uint8)) == tmp_path / "a.jpg.png"
    assert save_picture(tmp_path / "a.webp", np.zeros((1, 17_000, 3), np.uint8)) == tmp_path / "a.webp.png"
    assert (tmp_path / "a.webp.png").is_file()
    (tmp_path / "a.png").mkdir()
    for name in ("a.png", "a.picture"):  # a folder in the way, and an unknown suffix
        with pytest.raises(ValueError, match=name):
            save_picture(tmp_path / name, BLACK)


def test_masks_are_half_transparent_in_the_colour_of_their_class_with_an_outline() -> None:
    grey, shape = np.full((480, 500, 3), 100, np.uint8), np.zeros((480, 500), np.bool_)
    shape[210:240, 120:180] = True
    found = record(CAT, DOG, scores=(0.9, 0.4))
    plain = draw_record(grey, found, NAMES)
    picture = draw_record(grey, replace(found, masks=(encode(shape), encode(np.ones_like(shape)))), NAMES)
    color = plain[250, 150]  # of the frame
    np.testing.assert_allclose(picture[225, 150], (color.astype(float) + 100) / 2, atol=1)
    np.testing.assert_array_equal(picture[210, 150], color)  # the outline
    np.testing.assert_array_equal(picture[205, 150], grey[205, 150])
    changed = (picture != plain).any(axis=2)
    assert not changed[:200].any()  # the mask of the other detection, which is too unsure, is not drawn
    assert changed[212:238, 122:178].all()
    low = np.zeros((48, 60), np.bool_)
    low[20:30, 10:40] = True
    small = replace(record([10, 20, 40, 30]), size=(48, 60), masks=(encode(low),))
    grown = draw_record(np.zeros((48, 60, 3), np.uint8), small, NAMES, scale=10)
    assert grown[205:295, 105:395].any(axis=2).all()
    assert not grown[310:, :].any()


def test_keypoints_are_joined_and_have_the_colours_of_their_sides() -> None:
    def points(*rows: list[float]) -> NDArray[np.float32]:
        return np.array([rows], np.float32)

    face = KeypointSpec(("nose", "left_eye", "right_eye"), edges=((0, 1), (0, 2)))
    found = (BLACK, np.array([[100.0, 100, 400, 400]]), None, np.array([0]), ("cat",))
    drawn = points([200, 200, 1], [150, 300, 1], [300, 300, 0.5])
    canvas = draw_boxes(*found, keypoints=drawn, keypoint_spec=face)
    assert canvas[300, 150].tolist() == [255, 140, 0]
    assert canvas[300, 300].tolist() == [30, 144, 255]
    assert canvas[250, 175].any()  # the middle of the edge to the left eye
    assert canvas[250, 250].any()
    plain = draw_boxes(*found, keypoints=drawn)
    assert plain[300, 150].any()
    assert not plain[250, 175].any()
    unlabelled = points([200, 200, 2], [150, 300, 0], [0, 0, 0])
    canvas = draw_boxes(*found, keypoints=unlabelled, keypoint_spec=face)
    assert [bool(canvas[y, x].any()) for y, x in ((200, 200), (300, 150), (250, 175))] == [True, False, False]
    both = record([10, 10, 60, 60], [200, 200, 400, 400], scores=(0.9, 0.1))
    both = replace(both, keypoints=np.concatenate([points([30, 40, 1]), points([300, 300, 1])]))  # the latter is unsure
    canvas = draw_record(BLACK, both, NAMES)
    assert canvas[40, 30].any()
    assert not canvas[300, 300].any()


# Label maps

STUFF, WIDE = ("background", "road", "sky"), np.zeros((300, 400, 3), np.uint8)


def test_the_colour_map_is_that_of_voc() -> None:
    colors = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 128], [64, 0, 0], [0, 64, 128], [*VOID_COLOR]]
    assert color_map()[[0, 1, 2, 7, 8, 20, 255]].tolist() == colors
    assert label_palette(STUFF)[0].tolist() == [0, 0, 0]
    assert label_palette(STUFF[1:])[0].tolist() == [128, 0, 0]  # black is for the background alone


def test_classes_are_painted_with_borders_and_the_background_is_left() -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[:, 200:300], labels[:, 300:] = 1, VOID
    drawn = draw_label_map(WIDE, labels, STUFF)
    void = [round(OPACITY * part) for part in VOID_COLOR]
    assert drawn[200, [50, 250, 350]].tolist() == [[0, 0, 0], [round(OPACITY * 128), 0, 0], void]
    assert drawn[200, 199].tolist() == [255, 255, 255]  # the border
    assert drawn[:40, :90].any()  # the legend
    corner = draw_label_map(WIDE, np.full_like(labels, VOID), STUFF)[0, 0]
    assert corner.tolist() == [*VOID_COLOR]  # the ground of the letters; the picture's is mixed
    assert draw_label_map(WIDE, labels, STUFF, scale=0.5).shape == (150, 200, 3)
    assert draw_label_map(WIDE[:1, :1], np.ones((1, 1), np.uint8), STUFF).shape == (1, 1, 3)
    # The borders of segments are drawn within a class.
    labels, segments = np.full((300, 400), 1, np.uint8), np.ones((300, 400), np.int32)
    segments[:, 200:] = 70000
    drawn = draw_label_map(WIDE, labels, STUFF, outlines=segments)
    assert drawn[200, 199].tolist() == [255, 255, 255]
    assert drawn[200, 200].tolist() == drawn[200, 100].tolist()
