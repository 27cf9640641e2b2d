"""The config of detectors: training, testing, comparing.

Defaults are the paper's where it states them: see sections.py.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from detection.config.schema import MODEL, Count, Fraction, NonNegative, NonNegativeInt, Positive, checked
from detection.config.sections import BackboneConfig, DataConfig, ProgramConfig, SolverConfig

__all__ = [
    "AlternatingConfig",
    "AnchorConfig",
    "ArchitectureName",
    "BoxConfig",
    "CascadeConfig",
    "DenseConfig",
    "DetectionConfig",
    "DetectorBackboneConfig",
    "DetectorDataConfig",
    "DetectorSolverConfig",
    "JitterConfig",
    "KeypointConfig",
    "MNCConfig",
    "MaskConfig",
    "PanopticConfig",
    "PointConfig",
    "PostprocessConfig",
    "RPNConfig",
    "SemanticConfig",
]

ArchitectureName = Literal[
    "faster_rcnn",
    "mask_rcnn",
    "pointrend_rcnn",
    "keypoint_rcnn",
    "cascade_rcnn",
    "cascade_mask_rcnn",
    "mnc",
    "retinanet",
    "fcos",
    "fcn",
    "deeplabv3",
    "semantic_fpn",
    "panoptic_fpn",
    "cascade_panoptic_fpn",
]
LABELLERS = ("fcn", "deeplabv3", "semantic_fpn")  # they predict label maps and no objects
NormName = Literal["bn", "gn", "sync_bn"]
SliceSide = Annotated[int, Field(ge=64)]  # smaller ones make thousands of windows of a photograph
Overlap = Annotated[float, Field(ge=0, lt=1)]
ProposalCount = Annotated[int, Field(ge=1, le=20_000)]  # of an image; 20,000 take gigabytes


@checked
class DetectorBackboneConfig(BackboneConfig):
    # conv5_x in the trunk at stride 16 ("DC5"); box.head is then fc.
    dilate_c5: bool | None = field(default=None, metadata=MODEL)
    # Stride of c5 in the trunk: c5, and for 8 also c4, dilate their convolutions in the place of a stride.
    output_stride: Literal[8, 16, 32] | None = field(default=None, metadata=MODEL)
    # Stages with deformable 3x3 convolutions, such as [c3, c4, c5]; of networks of bottlenecks.
    deform: tuple[Literal["c2", "c3", "c4", "c5"], ...] | None = None
    deform_modulated: bool | None = None  # they also weight their samples: Deformable ConvNets v2
    fpn: bool = False  # a feature pyramid over the stages; box.head is then fc
    fpn_channels: Count = 256
    fpn_norm: NormName | None = None  # after the pyramid's convolutions; null: none
    # Levels above the stages: every second cell of the last (p2 to p6), or convolutions on c5 or p5 (p3 to p7).
    fpn_coarse: Literal["subsample", "c5", "p5"] = field(default="subsample", metadata=MODEL)


@checked
class AnchorConfig:
    # Square root of the area, pixels of the resized image; COCO adds 64. With backbone.fpn one per level, or equally
    # many, from the finest on. fcos has no anchors, but its points follow offset and rounded.
    sizes: tuple[Positive, ...] = field(default=(128.0, 256.0, 512.0), metadata=MODEL)
    ratios: tuple[Positive, ...] = field(default=(0.5, 1.0, 2.0), metadata=MODEL)  # height / width
    # Of the centre in its cell: 0.5 = middle, as py-faster-rcnn; 0 = corner, as torchvision.
    offset: float = field(default=0.5, metadata=MODEL)
    rounded: bool = field(default=False, metadata=MODEL)  # to whole pixels, as torchvision


@checked
class RPNConfig:
    channels: Count = 512  # of the 3x3 convolution
    convs: Count = 1  # 3x3 convolutions
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples_per_image: Count = 256
    positive_fraction: Fraction = 0.5
    allow_outside: bool = False  # train on anchors that cross the image border; the paper ignores them
    smooth_l1_beta: NonNegative = 1.0 / 9.0  # py-faster-rcnn's sigma 3
    # On a sum over positives / sampled anchors; the paper's lambda 10 / 2400 against 1 / 256.
    box_loss_weight: NonNegative = 1.0
    pre_nms_train: Count = 12000  # of each level of a pyramid
    pre_nms_test: Count = 6000
    post_nms_train: ProposalCount = 2000
    post_nms_test: ProposalCount = 300
    nms_iou: Fraction = 0.7
    min_size: NonNegative = 16.0  # pixels of the resized image; smaller proposals are dropped


@checked
class BoxConfig:
    # roi_align_unaligned is off by half a cell, as torchvision's detectors.
    pool: Literal["roi_pool", "roi_align", "roi_align_unaligned"] = field(default="roi_pool", metadata=MODEL)
    # RoIAlign: sampling points per cell and side; 0: one per cell of the feature map.
    sampling_ratio: NonNegativeInt = field(default=2, metadata=MODEL)
    head: Literal["tail", "fc"] = "tail"  # the backbone's layers after the trunk, or fully connected ones
    pool_size: Count = 7  # side of the pooled regions; head fc only, a tail knows its own
    head_convs: NonNegativeInt = 0  # 3x3 convolutions of 256 channels before the fully connected layers; head fc only
    head_fcs: Count = 2
    head_channels: Count = 1024
    head_norm: NormName | None = None  # after the convolutions
    class_agnostic: bool = False  # one box per region instead of one per class
    samples_per_image: Count = 64  # 2 images x 64 = the paper's mini-batch of 128 regions
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    negative_iou_low: Fraction = 0.0  # the VOC papers have 0.1 (heuristic hard negatives); 0 on COCO
    loss: Literal["smooth_l1", "giou"] = "smooth_l1"  # of the boxes
    smooth_l1_beta: NonNegative = 1.0  # 0 is L1
    # 1 / the deltas' standard deviations 0.1, 0.1, 0.2, 0.2; stage i of a cascade takes i times as much.
    coder_weights: tuple[Positive, Positive, Positive, Positive] = field(default=(10.0, 10.0, 5.0, 5.0), metadata=MODEL)
    box_loss_weight: NonNegative = 1.0
    context: bool = False  # append the whole image's vector to every region's: appendix B, global context
    # A region or anchor inside an ignored object by this share of its area is not a negative.
    ignore_overlap: Fraction = 0.7


@checked
class CascadeConfig:
    """The stages of a Cascade R-CNN."""

    ious: Annotated[tuple[Fraction, ...], Field(min_length=2)] = (0.5, 0.6, 0.7)  # from which regions are positive


@checked
class MaskConfig:
    """The mask branch of mask_rcnn; over box.head tail it shares the tail and has no convolutions.

    Source: Mask R-CNN, section 3 and figure 4.
    """

    pool_size: Count = field(default=14, metadata=MODEL)  # side of the pooled regions; a shared tail knows its own
    convs: NonNegativeInt = 4  # 3x3 convolutions before the upsampling
    channels: Count = 256
    norm: NormName | None = None  # after the convolutions
    # Where the cells of a mask lie in its box, and whether targets are rounded: detection/mask_geometry.py.
    geometry: Literal["exact", "torchvision", "detectron2"] = field(default="exact", metadata=MODEL)


@checked
class PointConfig:
    """The points of pointrend_rcnn; mask.pool_size, channels and geometry are of its coarse masks, which pool points.

    Source: PointRend, sections 3 and 4.
    """

    coarse_side: Count = 7  # of the coarse masks; those of a test have 2^steps times it
    fcs: NonNegativeInt = 2  # fully connected layers before the coarse masks
    fc_channels: Count = 1024
    layers: NonNegativeInt = 3  # that see a point alone
    channels: Count = 256
    train_points: Count = 196  # of a region
    oversample: Count = 3  # times as many are drawn, of which the most uncertain are taken
    importance: Fraction = 0.75  # share of the points that are taken so; the others are uniform
    steps: NonNegativeInt = 5  # of a test, each doubling the masks' side
    test_points: Count = 784  # the most uncertain cells, that a step looks at


@checked
class MNCConfig:
    """The masks and looks of mnc, whose regions are pooled and boxed as box.* says; mask.geometry is of its masks too.

    Source: "Instance-aware Semantic Segmentation via Multi-task Network Cascades", sections 3 and 4.
    """

    pool_size: Count = field(default=14, metadata=MODEL)  # side of the pooled regions, a multiple of the head's
    mask_side: Count = 28
    mask_channels: Count = 256  # between the two layers of the masks
    looks: Literal[1, 2] = 2  # the paper's 3 stages, or 5: again on the boxes that the first look moved
    # Mask voting among regions whose boxes have at least this IoU; null: none.
    vote_iou: Annotated[float, Field(gt=0, le=1)] | None = 0.5


@checked
class KeypointConfig:
    """The keypoint branch of keypoint_rcnn, which has layers of its own whatever box.head is.

    Source: Mask R-CNN, section 5.
    """

    # Of an object's keypoints, and pairs of them, counted from 0, that pictures join. Empty: those of the training set.
    names: tuple[str, ...] = ()
    edges: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    pool_size: Count = field(default=14, metadata=MODEL)  # side of the pooled regions; maps have four times it
    convs: NonNegativeInt = 8  # 3x3 convolutions before the upsampling
    channels: Count = 512


@checked
class DenseConfig:
    """The head of retinanet and fcos, on every level of the pyramid.

    Source: "Focal Loss for Dense Object Detection", sections 4 and 5; "FCOS", sections 3 and 4.
    """

    convs: NonNegativeInt = 4  # 3x3 convolutions before the classes, and as many before the boxes
    norm: NormName | None = None  # after each of them
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01  # probability that every class begins with
    positive_iou: Fraction = 0.5  # retinanet: of anchors
    negative_iou: Fraction = 0.4
    center_radius: Positive = 1.5  # fcos: cells from an object's centre within which points are positive
    focal_alpha: Fraction = 0.25
    focal_gamma: NonNegative = 2.0
    # The losses are divided by the positives of each image, and averaged, or by those of the batch, or by a running
    # mean of the latter that begins with 100, as those of Detectron2's RetinaNet.
    normalizer: Literal["image", "batch", "running"] = "image"
    loss: Literal["smooth_l1", "giou"] = "smooth_l1"  # of retinanet's boxes; fcos has giou
    smooth_l1_beta: NonNegative = 0.0  # 0 is L1
    box_loss_weight: NonNegative = 1.0
    pre_nms: Count = 1000  # best scores of a level that enter NMS
    clip_first: bool = True  # boxes are clipped to the image before NMS, as torchvision's; else after it


@checked
class SemanticConfig:
    """The head of fcn, deeplabv3, semantic_fpn and panoptic_fpn.

    An option left at null takes the architecture's own default.

    Source: Long et al. 2015, "Fully Convolutional Networks"; Chen et al. 2017, "Rethinking Atrous Convolution"; both in
    torchvision's form; Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", section 3.
    """

    channels: Count | None = None  # fcn: a quarter of the feature's; deeplabv3: 256; semantic_fpn, panoptic_fpn: 128
    norm: NormName | None = None  # fcn and deeplabv3: bn; semantic_fpn and panoptic_fpn: gn
    dropout: Fraction | None = None  # before the classes; fcn: 0.1; deeplabv3: 0.5, after the joined branches
    # Dilations of deeplabv3's branches; 12, 24, 36 over features of stride 8, half of them over stride 16.
    rates: tuple[Count, ...] | None = field(default=None, metadata=MODEL)
    loss_weight: NonNegative = 1.0
    aux_weight: NonNegative = 0.5  # of fcn and deeplabv3: loss of a second FCN head, on the stage before; 0: none


@checked
class PanopticConfig:
    """The stuff of panoptic networks, and how its objects and its label map become segments that do not overlap.

    Source: Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", section 3; thresholds are Detectron2's.
    """

    stuff: tuple[str, ...] = ()  # classes of the label maps that are no things.  Empty: those of the training set.
    instance_score: Fraction = 0.5  # least score of an object
    overlap: Fraction = 0.5  # share of an object that better ones may cover; else it is left out
    stuff_area: NonNegativeInt = 4096  # pixels of the image as stored; less of a class of stuff is left out


@checked
class PostprocessConfig:
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.3
    max_detections: Count = 100  # per image; with slice per window
    # Soft-NMS instead of NMS: a box's score falls by exp(-IoU^2 / sigma) with every better box of its class.
    soft_nms_sigma: Positive | None = None
    # Box voting among boxes of at least this IoU; the paper gives no value.
    vote_iou: Annotated[float, Field(gt=0, le=1)] | None = None
    refine: bool = False  # a second pass from the boxes of the first: appendix B, box refinement
    scales: tuple[Count, ...] = ()  # shorter sides, rising, that the box stage or a label network looks at: appendix B
    flip: bool = False  # average with the mirrored image
    # Side in pixels of the image as stored: it is looked at in overlapping windows, each resized as a whole image is.
    slice: SliceSide | None = None
    slice_overlap: Overlap = 0.2  # share of a side that neighbours have in common, at least
    slice_whole: bool = True  # also look at the whole image, for objects larger than a window
    # What becomes of the finds of several windows: detection/model/test_time/slices.py.
    slice_merge: Literal["ios", "nms"] = "ios"
    boundary: bool = False  # also boundary AP of masks, which takes longer than mask AP: docs/evaluate.md
    compile: bool = False  # by torch.compile, as solver.compile; in tests and looks at data.val, not in predict

    def __post_init__(self) -> None:
        if len(self.scales) == 1 or list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales takes two or more rising shorter sides, or none, got {list(self.scales)}")


@checked
class JitterConfig:
    """Large-scale jitter.  Source: Ghiasi et al. 2021, "Simple Copy-Paste", section 3."""

    size: Count = 1024  # side of the square canvas, pixels
    low: Positive = 0.1  # the image is made to fit a square of low to high times the canvas
    high: Positive = 2.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got low {self.low} and high {self.high}")


@checked
class DetectorDataConfig(DataConfig):
    train_shorter_sides: tuple[Count, ...] = ()  # one is drawn for every training image; empty: shorter_side
    jitter: JitterConfig | None = None  # of training images, instead of both
    copy_paste: Fraction = 0.0  # probability that objects of another training image are pasted; needs masks
    limit: Count | None = None  # only the first images of each set: to see whether a model overfits a few
    # Images with a class that fewer than this share of the images has come several times an epoch (LVIS: 0.001).
    repeat_threshold: Fraction = 0.0
    # Side in pixels of the image as stored: training images are overlapping windows of it; set test.slice alike.
    slice: SliceSide | None = None
    slice_overlap: Overlap = 0.2  # share of a side that neighbours have in common, at least
    slice_whole: bool = True  # also train on the whole image, for objects larger than a window
    slice_visible: Fraction = 0.5  # an object that a window shows less of, by the area of its box, is ignored there
    slice_empty: Overlap = 0.1  # share of windows without an object among those of an epoch, at most

    def __post_init__(self) -> None:
        if self.jitter is not None and self.train_shorter_sides:
            raise ValueError("jitter draws the scale itself: leave train_shorter_sides empty, or jitter null")


@checked
class DetectorSolverConfig(SolverConfig):
    # Losses by torch.compile, in a few shapes of batches: docs/cost.md has what it takes and gives.
    compile: bool = False


@checked
class AlternatingConfig:
    """4-step alternating training: the lengths of its steps.  Source: Faster R-CNN, section 3.2."""

    rpn_iterations: Count = 80000  # steps 1 and 3
    rpn_steps: tuple[int, ...] = (60000,)  # where the rate is multiplied by solver.gamma
    box_iterations: Count = 40000  # steps 2 and 4, as py-faster-rcnn
    box_steps: tuple[int, ...] = (30000,)
    rpn_images_per_step: Count | None = None  # null: solver.images_per_step
    box_images_per_step: Count | None = None


@checked
class DetectionConfig(ProgramConfig):
    """The options of training, testing and comparing detectors, a field for each key of a YAML file."""

    program: ClassVar[str] = "detection"
    architecture: ArchitectureName = "faster_rcnn"
    backbone: DetectorBackboneConfig = field(default_factory=DetectorBackboneConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)  # of those called cascade
    mask: MaskConfig = field(default_factory=MaskConfig)  # of those with masks
    point: PointConfig = field(default_factory=PointConfig)  # of pointrend_rcnn
    mnc: MNCConfig = field(default_factory=MNCConfig)  # of mnc
    keypoint: KeypointConfig = field(default_factory=KeypointConfig)  # of keypoint_rcnn
    dense: DenseConfig = field(default_factory=DenseConfig)  # of retinanet and fcos
    # Of fcn, deeplabv3, semantic_fpn and panoptic_fpn.
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    panoptic: PanopticConfig = field(default_factory=PanopticConfig)  # of panoptic_fpn and cascade_panoptic_fpn
    test: PostprocessConfig = field(default_factory=PostprocessConfig)
    data: DetectorDataConfig = field(default_factory=DetectorDataConfig)
    solver: DetectorSolverConfig = field(default_factory=DetectorSolverConfig)
    alternating: AlternatingConfig = field(default_factory=AlternatingConfig)
    # A detector to start from: a run directory, a checkpoint, a name of the zoo, a file of torchvision or Detectron2,
    # or hf://NAME/REPO.
    init: str | None = None
    init_classes: dict[str, str] = field(default_factory=dict)  # class here -> its name there, where they differ

    @property
    def one_stage(self) -> bool:
        """Tells whether the detector makes no proposals."""
        return self.architecture in ("retinanet", "fcos")

    @property
    def idle_sections(self) -> tuple[str, ...]:
        """Returns the sections of layers that the architecture lacks; of box, ignore_overlap is of all."""
        if not self.finds_objects:
            return ("anchors", "rpn", "box", "cascade", "mask", "point", "mnc", "keypoint", "dense", "panoptic", "test")
        branches = [name for name in ("keypoint", "cascade") if name not in self.architecture]
        branches += [] if self.finds_masks else ["mask"]
        branches += [name for name, only in (("point", "pointrend_rcnn"), ("mnc", "mnc")) if self.architecture != only]
        branches += [] if self.is_panoptic else ["panoptic", "semantic"]
        return (*branches, *(("rpn", "box") if self.one_stage else ("dense",)))

    @property
    def is_panoptic(self) -> bool:
        """Tells whether the network merges its objects with a label map."""
        return self.architecture in ("panoptic_fpn", "cascade_panoptic_fpn")

    @property
    def finds_masks(self) -> bool:
        """Tells whether the detector finds the masks of objects."""
        return "mask" in self.architecture or self.is_panoptic or self.architecture in ("pointrend_rcnn", "mnc")

    @property
    def finds_objects(self) -> bool:
        """Tells whether the network finds objects; one that does not predicts label maps alone."""
        return self.architecture not in LABELLERS

    @property
    def finds_label_maps(self) -> bool:
        """Tells whether the network is trained on label maps, and predicts them."""
        return self.is_panoptic or not self.finds_objects

    def __post_init__(self) -> None:
        box = self.box
        if not self.finds_objects:
            _check_labeller(self)
        if self.is_panoptic:
            _check_panoptic(self)
        if "cascade" in self.architecture and (box.head != "fc" or not box.class_agnostic or box.context):
            raise ValueError(
                f"architecture {self.architecture} moves one box per region from stage to stage: set box.head to fc, "
                "box.class_agnostic to true and box.context to false"
            )
        if self.architecture == "mnc" and (box.context or box.loss != "smooth_l1"):
            raise ValueError(
                "architecture mnc has one loss of boxes and no context: set box.loss to smooth_l1, box.context to false"
            )
        if self.one_stage and not self.backbone.fpn:
            raise ValueError(
                f"architecture {self.architecture} stands on a pyramid: set backbone.fpn to true, and "
                "backbone.fpn_coarse to c5 or p5 for the paper's levels p3 to p7"
            )


def _check_panoptic(config: DetectionConfig) -> None:
    """Raises ValueError where Panoptic FPN's trunk does not fit, and for options that label maps have no part in."""
    if not config.backbone.fpn or config.backbone.fpn_coarse != "subsample":
        raise ValueError(
            f"architecture {config.architecture} joins the levels of a pyramid from p2 on: set backbone.fpn to true "
            "and backbone.fpn_coarse to subsample"
        )
    for key, value in {"test.slice": config.test.slice, "data.slice": config.data.slice}.items():
        if value:
            raise ValueError(f"architecture {config.architecture} labels whole images: leave {key} out, got {value}")


def _check_labeller(config: DetectionConfig) -> None:
    """Raises ValueError where the network's trunk does not fit, and for options about objects."""
    name, backbone = config.architecture, config.backbone
    if backbone.fpn != (name == "semantic_fpn"):
        wanted = "stands on a pyramid" if name == "semantic_fpn" else "stands on the last stage, without a pyramid"
        raise ValueError(f"architecture {name} {wanted}: set backbone.fpn to {str(not backbone.fpn).lower()}")
    if name == "semantic_fpn" and backbone.fpn_coarse != "subsample":
        raise ValueError(
            f"architecture {name} joins levels from p2 on, and fpn_coarse {backbone.fpn_coarse} begins at p3: set "
            "backbone.fpn_coarse to subsample"
        )
    used = {"data.copy_paste": config.data.copy_paste, "test.slice": config.test.slice, "data.slice": config.data.slice}
    for key, value in used.items():
        if value:
            raise ValueError(f"architecture {name} finds no objects, which {key} is about: leave it out, got {value}")
    metric = config.solver.best_metric
    if metric is not None and metric.startswith("bbox"):
        raise ValueError(
            f"architecture {name} finds no boxes, and solver.best_metric is {metric}: set it to semseg.mIoU, or null"
        )
