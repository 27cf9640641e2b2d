"""The config for training, testing and comparing detectors.

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
LABELLERS = ("fcn", "deeplabv3", "semantic_fpn")  # predict label maps but no objects
NormName = Literal["bn", "gn", "sync_bn"]
SliceSide = Annotated[int, Field(ge=64)]  # smaller sides give thousands of windows per photograph
Overlap = Annotated[float, Field(ge=0, lt=1)]
ProposalCount = Annotated[int, Field(ge=1, le=20_000)]  # per image; 20,000 take gigabytes


@checked
class DetectorBackboneConfig(BackboneConfig):
    # conv5_x in the trunk at stride 16 ("DC5"); box.head is then fc.
    dilate_c5: bool | None = field(default=None, metadata=MODEL)
    # Stride of c5 in the trunk; c5, and for 8 also c4, have dilated convolutions instead of a stride.
    output_stride: Literal[8, 16, 32] | None = field(default=None, metadata=MODEL)
    # Stages with deformable 3x3 convolutions, such as [c3, c4, c5]; for networks with bottlenecks.
    deform: tuple[Literal["c2", "c3", "c4", "c5"], ...] | None = None
    deform_modulated: bool | None = None  # also weight the samples, as Deformable ConvNets v2
    fpn: bool = False  # feature pyramid over the stages; box.head is then fc
    fpn_channels: Count = 256
    fpn_norm: NormName | None = None  # after the pyramid's convolutions; null: none
    # Coarse levels: every second cell of the last level (p2 to p6), or convolutions on c5 or p5 (p3 to p7).
    fpn_coarse: Literal["subsample", "c5", "p5"] = field(default="subsample", metadata=MODEL)


@checked
class AnchorConfig:
    # Square root of the area, pixels of the resized image; COCO adds 64. With backbone.fpn one size per level, or the
    # same number for each, from the finest level. fcos has no anchors, but offset and rounded also set its points.
    sizes: tuple[Positive, ...] = field(default=(128.0, 256.0, 512.0), metadata=MODEL)
    ratios: tuple[Positive, ...] = field(default=(0.5, 1.0, 2.0), metadata=MODEL)  # height / width
    # Position of the centre in its cell: 0.5 = middle, as py-faster-rcnn; 0 = corner, as torchvision.
    offset: float = field(default=0.5, metadata=MODEL)
    rounded: bool = field(default=False, metadata=MODEL)  # round to whole pixels, as torchvision


@checked
class RPNConfig:
    channels: Count = 512  # channels of the 3x3 convolutions
    convs: Count = 1  # number of 3x3 convolutions
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples_per_image: Count = 256
    positive_fraction: Fraction = 0.5
    allow_outside: bool = False  # train on anchors that cross the image border; the paper ignores them
    smooth_l1_beta: NonNegative = 1.0 / 9.0  # py-faster-rcnn's sigma 3
    # Factor of the sum over positives / sampled anchors; the paper has lambda 10 / 2400 against 1 / 256.
    box_loss_weight: NonNegative = 1.0
    pre_nms_train: Count = 12000  # per level of a pyramid
    pre_nms_test: Count = 6000
    post_nms_train: ProposalCount = 2000
    post_nms_test: ProposalCount = 300
    nms_iou: Fraction = 0.7
    min_size: NonNegative = 16.0  # pixels of the resized image; smaller proposals are dropped


@checked
class BoxConfig:
    # roi_align_unaligned is shifted by half a cell, as in torchvision's detectors.
    pool: Literal["roi_pool", "roi_align", "roi_align_unaligned"] = field(default="roi_pool", metadata=MODEL)
    # RoIAlign: sampling points per cell and side; 0: one per cell of the feature map.
    sampling_ratio: NonNegativeInt = field(default=2, metadata=MODEL)
    head: Literal["tail", "fc"] = "tail"  # the backbone's layers after the trunk, or fully connected layers
    pool_size: Count = 7  # side of the pooled regions; for head fc only, as a tail sets its own
    head_convs: NonNegativeInt = 0  # 3x3 convolutions with 256 channels before the fc layers; for head fc only
    head_fcs: Count = 2
    head_channels: Count = 1024
    head_norm: NormName | None = None  # after the convolutions
    class_agnostic: bool = False  # one box per region instead of one per class
    samples_per_image: Count = 64  # the paper's mini-batch of 128 regions is 2 images x 64
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    negative_iou_low: Fraction = 0.0  # 0.1 in the VOC papers (heuristic hard negatives); 0 on COCO
    loss: Literal["smooth_l1", "giou"] = "smooth_l1"  # loss of boxes
    smooth_l1_beta: NonNegative = 1.0  # 0 is L1
    # 1 / the deltas' standard deviations 0.1, 0.1, 0.2, 0.2; stage i of a cascade has i times these weights.
    coder_weights: tuple[Positive, Positive, Positive, Positive] = field(default=(10.0, 10.0, 5.0, 5.0), metadata=MODEL)
    box_loss_weight: NonNegative = 1.0
    context: bool = False  # append the whole image's vector to every region's: appendix B, global context
    # A region or anchor with this fraction of its area inside an ignored object is not a negative.
    ignore_overlap: Fraction = 0.7


@checked
class CascadeConfig:
    """The stages of a Cascade R-CNN."""

    ious: Annotated[tuple[Fraction, ...], Field(min_length=2)] = (0.5, 0.6, 0.7)  # positive from, per stage


@checked
class MaskConfig:
    """The mask branch of mask_rcnn; with box.head tail it shares the tail and has no convolutions.

    Source: Mask R-CNN, section 3 and figure 4.
    """

    pool_size: Count = field(default=14, metadata=MODEL)  # side of the pooled regions; a shared tail sets its own
    convs: NonNegativeInt = 4  # 3x3 convolutions before the upsampling
    channels: Count = 256
    norm: NormName | None = None  # after the convolutions
    # Position of a mask's cells in its box, and rounding of targets: detection/mask_geometry.py.
    geometry: Literal["exact", "torchvision", "detectron2"] = field(default="exact", metadata=MODEL)


@checked
class PointConfig:
    """The point head of pointrend_rcnn; mask.pool_size, channels and geometry set its coarse masks, which pool points.

    Source: PointRend, sections 3 and 4.
    """

    coarse_side: Count = 7  # side of the coarse masks; final masks have 2^steps times this side
    fcs: NonNegativeInt = 2  # fully connected layers before the coarse masks
    fc_channels: Count = 1024
    layers: NonNegativeInt = 3  # layers of the point head
    channels: Count = 256
    train_points: Count = 196  # points per region
    oversample: Count = 3  # times as many candidate points are drawn, and the most uncertain taken
    importance: Fraction = 0.75  # fraction of the points chosen by uncertainty; the others are uniform
    steps: NonNegativeInt = 5  # subdivision steps at test time, each doubling the masks' side
    test_points: Count = 784  # most uncertain cells that a step predicts


@checked
class MNCConfig:
    """The masks and stages of mnc; box.* sets the pooling and boxes of its regions, mask.geometry also its masks.

    Source: "Instance-aware Semantic Segmentation via Multi-task Network Cascades", sections 3 and 4.
    """

    pool_size: Count = field(default=14, metadata=MODEL)  # side of the pooled regions, a multiple of the head's
    mask_side: Count = 28
    mask_channels: Count = 256  # width between the two layers of the masks
    looks: Literal[1, 2] = 2  # 1: the paper's 3 stages; 2: its 5 stages, repeated on the refined boxes
    # Mask voting among regions with at least this box IoU; null: none.
    vote_iou: Annotated[float, Field(gt=0, le=1)] | None = 0.5


@checked
class KeypointConfig:
    """The keypoint branch of keypoint_rcnn, which has its own layers for any box.head.

    Source: Mask R-CNN, section 5.
    """

    # Names of the keypoints, and pairs (from 0) to join in drawings. Empty: of the training set.
    names: tuple[str, ...] = ()
    edges: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    pool_size: Count = field(default=14, metadata=MODEL)  # side of the pooled regions; heatmaps have four times it
    convs: NonNegativeInt = 8  # 3x3 convolutions before the upsampling
    channels: Count = 512


@checked
class DenseConfig:
    """The head of retinanet and fcos, on every level of the pyramid.

    Source: "Focal Loss for Dense Object Detection", sections 4 and 5; "FCOS", sections 3 and 4.
    """

    convs: NonNegativeInt = 4  # number of 3x3 convolutions before the classes, and before the boxes
    norm: NormName | None = None  # after each convolution
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01  # initial probability of every class
    positive_iou: Fraction = 0.5  # retinanet: IoU from which anchors are positive
    negative_iou: Fraction = 0.4
    center_radius: Positive = 1.5  # fcos: distance from an object's centre, in cells, within which points are positive
    focal_alpha: Fraction = 0.25
    focal_gamma: NonNegative = 2.0
    # Losses are divided by the positives of each image and averaged, or by the positives of the batch, or by a running
    # mean of the latter that starts at 100, as in Detectron2's RetinaNet.
    normalizer: Literal["image", "batch", "running"] = "image"
    loss: Literal["smooth_l1", "giou"] = "smooth_l1"  # loss of retinanet's boxes; fcos has giou
    smooth_l1_beta: NonNegative = 0.0  # 0 is L1
    box_loss_weight: NonNegative = 1.0
    pre_nms: Count = 1000  # best detections per level before NMS
    clip_first: bool = True  # clip boxes to the image before NMS, as torchvision; else after it


@checked
class SemanticConfig:
    """The semantic head of fcn, deeplabv3, semantic_fpn and panoptic_fpn.

    An option left at null has the architecture's default.

    Source: Long et al. 2015, "Fully Convolutional Networks"; Chen et al. 2017, "Rethinking Atrous Convolution"; both in
    torchvision's form; Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", section 3.
    """

    channels: Count | None = None  # fcn: a quarter of its input's; deeplabv3: 256; semantic_fpn, panoptic_fpn: 128
    norm: NormName | None = None  # fcn and deeplabv3: bn; semantic_fpn and panoptic_fpn: gn
    dropout: Fraction | None = None  # before the classes; fcn: 0.1; deeplabv3: 0.5 after the joined branches
    # Dilations of deeplabv3's branches: 12, 24, 36 for stride 8, half of these for stride 16.
    rates: tuple[Count, ...] | None = field(default=None, metadata=MODEL)
    loss_weight: NonNegative = 1.0
    aux_weight: NonNegative = 0.5  # of an auxiliary FCN head on the stage before, for fcn and deeplabv3; 0: none


@checked
class PanopticConfig:
    """The stuff classes of panoptic networks, and the merging of objects and label map to segments without overlap.

    Source: Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", section 3; thresholds are Detectron2's.
    """

    stuff: tuple[str, ...] = ()  # classes of the label maps that are no things; empty: those of the training set
    instance_score: Fraction = 0.5  # smallest score of an object
    overlap: Fraction = 0.5  # largest fraction of an object that better ones may cover; else it is left out
    stuff_area: NonNegativeInt = 4096  # pixels of the stored image; stuff with a smaller area is left out


@checked
class PostprocessConfig:
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.3
    max_detections: Count = 100  # per image; with slice, per window
    # Soft-NMS instead of NMS: a score is multiplied by exp(-IoU^2 / sigma) for every better box of its class.
    soft_nms_sigma: Positive | None = None
    # Box voting among boxes of at least this IoU; the paper gives no value.
    vote_iou: Annotated[float, Field(gt=0, le=1)] | None = None
    refine: bool = False  # run the box stage again on its own boxes: appendix B, box refinement
    scales: tuple[Count, ...] = ()  # rising shorter sides for multi-scale tests of boxes or label maps: appendix B
    flip: bool = False  # average with the flipped image
    # Side in pixels of the stored image: test on overlapping windows of this side, each resized like a whole image.
    slice: SliceSide | None = None
    slice_overlap: Overlap = 0.2  # smallest overlap of neighbouring windows, as a fraction of the side
    slice_whole: bool = True  # also test the whole image, for objects larger than a window
    # Merging of the detections of several windows: detection/model/test_time/slices.py.
    slice_merge: Literal["ios", "nms"] = "ios"
    boundary: bool = False  # also compute boundary AP of masks, which takes longer than mask AP: docs/evaluate.md
    compile: bool = False  # torch.compile, as solver.compile, for tests and evaluations on data.val, not for predict

    def __post_init__(self) -> None:
        if len(self.scales) == 1 or list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales takes two or more rising shorter sides, or none, got {list(self.scales)}")


@checked
class JitterConfig:
    """Large-scale jitter.  Source: Ghiasi et al. 2021, "Simple Copy-Paste", section 3."""

    size: Count = 1024  # side of the square canvas, pixels
    low: Positive = 0.1  # the image is scaled to fit a square of low to high times the canvas
    high: Positive = 2.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got low {self.low} and high {self.high}")


@checked
class DetectorDataConfig(DataConfig):
    train_shorter_sides: tuple[Count, ...] = ()  # one is chosen at random for every training image; empty: shorter_side
    jitter: JitterConfig | None = None  # for training images, instead of both sides
    copy_paste: Fraction = 0.0  # probability of pasting objects of another training image; needs masks
    limit: Count | None = None  # use only the first images of each set, to check that a model overfits a few
    # Repeat factor sampling: images with a class in less than this fraction of images are repeated (LVIS: 0.001).
    repeat_threshold: Fraction = 0.0
    # Side in pixels of the stored image: train on overlapping windows of this side; set test.slice to the same.
    slice: SliceSide | None = None
    slice_overlap: Overlap = 0.2  # smallest overlap of neighbouring windows, as a fraction of the side
    slice_whole: bool = True  # also train on the whole image, for objects larger than a window
    slice_visible: Fraction = 0.5  # an object is ignored in a window that shows a smaller fraction of its box
    slice_empty: Overlap = 0.1  # largest fraction of windows without an object in an epoch

    def __post_init__(self) -> None:
        if self.jitter is not None and self.train_shorter_sides:
            raise ValueError("jitter draws the scale itself: leave train_shorter_sides empty, or jitter null")


@checked
class DetectorSolverConfig(SolverConfig):
    # Compute losses with torch.compile, for a few batch shapes: docs/cost.md has cost and gain.
    compile: bool = False


@checked
class AlternatingConfig:
    """4-step alternating training: the lengths of its steps.  Source: Faster R-CNN, section 3.2."""

    rpn_iterations: Count = 80000  # steps 1 and 3
    rpn_steps: tuple[int, ...] = (60000,)  # iterations at which the learning rate is multiplied by solver.gamma
    box_iterations: Count = 40000  # steps 2 and 4, as py-faster-rcnn
    box_steps: tuple[int, ...] = (30000,)
    rpn_images_per_step: Count | None = None  # null: solver.images_per_step
    box_images_per_step: Count | None = None


@checked
class DetectionConfig(ProgramConfig):
    """The options of training, testing and comparing detectors; each field is a key of a YAML file."""

    program: ClassVar[str] = "detection"
    architecture: ArchitectureName = "faster_rcnn"
    backbone: DetectorBackboneConfig = field(default_factory=DetectorBackboneConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)  # architectures called cascade
    mask: MaskConfig = field(default_factory=MaskConfig)  # architectures with masks
    point: PointConfig = field(default_factory=PointConfig)  # pointrend_rcnn
    mnc: MNCConfig = field(default_factory=MNCConfig)  # mnc
    keypoint: KeypointConfig = field(default_factory=KeypointConfig)  # keypoint_rcnn
    dense: DenseConfig = field(default_factory=DenseConfig)  # retinanet and fcos
    # fcn, deeplabv3, semantic_fpn and panoptic_fpn.
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    panoptic: PanopticConfig = field(default_factory=PanopticConfig)  # panoptic_fpn and cascade_panoptic_fpn
    test: PostprocessConfig = field(default_factory=PostprocessConfig)
    data: DetectorDataConfig = field(default_factory=DetectorDataConfig)
    solver: DetectorSolverConfig = field(default_factory=DetectorSolverConfig)
    alternating: AlternatingConfig = field(default_factory=AlternatingConfig)
    # A detector to start from: a run directory, a checkpoint, a zoo name, a file of torchvision or Detectron2, or
    # hf://NAME/REPO.
    init: str | None = None
    init_classes: dict[str, str] = field(default_factory=dict)  # class -> its name in ``init``, where they differ

    @property
    def one_stage(self) -> bool:
        """Tells whether the detector works without proposals."""
        return self.architecture in ("retinanet", "fcos")

    @property
    def idle_sections(self) -> tuple[str, ...]:
        """The sections of layers that the architecture lacks; box.ignore_overlap is used by all."""
        if not self.finds_objects:
            return ("anchors", "rpn", "box", "cascade", "mask", "point", "mnc", "keypoint", "dense", "panoptic", "test")
        branches = [name for name in ("keypoint", "cascade") if name not in self.architecture]
        branches += [] if self.finds_masks else ["mask"]
        branches += [name for name, only in (("point", "pointrend_rcnn"), ("mnc", "mnc")) if self.architecture != only]
        branches += [] if self.is_panoptic else ["panoptic", "semantic"]
        return (*branches, *(("rpn", "box") if self.one_stage else ("dense",)))

    @property
    def is_panoptic(self) -> bool:
        """Tells whether the network merges objects and a label map to panoptic segments."""
        return self.architecture in ("panoptic_fpn", "cascade_panoptic_fpn")

    @property
    def finds_masks(self) -> bool:
        """Tells whether the detector predicts masks of objects."""
        return "mask" in self.architecture or self.is_panoptic or self.architecture in ("pointrend_rcnn", "mnc")

    @property
    def finds_objects(self) -> bool:
        """Tells whether the network detects objects; otherwise it predicts only label maps."""
        return self.architecture not in LABELLERS

    @property
    def finds_label_maps(self) -> bool:
        """Tells whether the network predicts label maps, and is trained on them."""
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
                f"architecture {self.architecture} needs a feature pyramid: set backbone.fpn to true, and "
                "backbone.fpn_coarse to c5 or p5 for the paper's levels p3 to p7"
            )


def _check_panoptic(config: DetectionConfig) -> None:
    """Raises ValueError if the trunk does not fit Panoptic FPN, or for options without support for label maps."""
    if not config.backbone.fpn or config.backbone.fpn_coarse != "subsample":
        raise ValueError(
            f"architecture {config.architecture} joins the levels of a pyramid from p2 on: set backbone.fpn to true "
            "and backbone.fpn_coarse to subsample"
        )
    for key, value in {"test.slice": config.test.slice, "data.slice": config.data.slice}.items():
        if value:
            raise ValueError(f"architecture {config.architecture} labels whole images: leave {key} out, got {value}")


def _check_labeller(config: DetectionConfig) -> None:
    """Raises ValueError if the trunk does not fit the network, or for options about objects."""
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
