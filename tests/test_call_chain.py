"""The way from the command to a loss is seven functions of ours."""

import inspect
from pathlib import Path

from detection.data.digits import write_digits
from detection.model import losses

ROOT = Path(__file__).parents[1]
CONFIG = """
backbone: {name: resnet18, norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, pre_nms_train: 64, post_nms_train: 16}
box: {samples_per_image: 16}
data: {train: [digits:train], shorter_side: 64, longer_side: 96, workers: 0}
solver: {iterations: 1, images_per_step: 2}
device: cpu
"""


def own_functions():
    """The functions of the packages on the stack, the command first."""
    frames = [frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(ROOT / "detection")]
    names = [f"{Path(frame.filename).stem}.{frame.function}" for frame in frames]
    # A context manager of torch is none of them, and a comprehension is no function.
    return tuple(name for name in reversed(names) if not name.endswith((".<listcomp>", ".<genexpr>", ".<dictcomp>")))


def test_seven_functions(tmp_path, resdet, monkeypatch) -> None:
    chains = set[tuple[str, ...]]()

    def noted(*args, **options):
        chains.add(own_functions())
        return losses.smooth_l1(*args, **options)

    for stage in ("rpn", "box_stage"):
        monkeypatch.setattr(f"detection.model.{stage}.smooth_l1", noted)
    root = write_digits(tmp_path / "data", num_train=2, num_test=1).parent
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    ended = resdet("train", tmp_path / "tiny.yaml", "--output-dir", tmp_path / "run", f"data.root={root}")
    assert ended.status == 0, ended.err
    way = ("cli.main", "train.run_training", "trainer.run", "loop.step", "faster_rcnn.forward")
    assert chains == {(*way, "rpn.losses"), (*way, "box_stage.losses")}
