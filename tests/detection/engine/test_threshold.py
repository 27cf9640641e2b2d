from detection.engine.threshold import shown_from


def test_pictures_show_what_is_above_the_best_f1_of_the_same_result() -> None:
    assert shown_from({"best_f1": {"min_score": 0.21, "F1": 0.4}}) == 0.21
    assert shown_from({"best_f1": {"min_score": None, "F1": None}}) == shown_from({}) == 0.5
