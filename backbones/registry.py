"""The table of backbones by name, and the one function that builds them with or without weights."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from backbones.adapters.fx import TracedBackbone
from backbones.adapters.timm import TimmBackbone
from backbones.adapters.torchvision import TorchvisionBackbone
from backbones.all_conv import AllCNN
from backbones.attention_net import AttentionNet, CifarAttentionNet
from backbones.base import Backbone, InputStats
from backbones.cifar_resnet import CifarResNet
from backbones.deformable import OFFSETS
from backbones.residual import BasicBlock, PreactBasicBlock, PreactBottleneck
from backbones.resnet import ResNet
from backbones.shake_shake import ShakeShake
from backbones.tiny_net import TinyNet
from backbones.vgg import VGG
from backbones.weights.hed import read_hed
from backbones.weights.load import SOURCES, download_torchvision, load_matching, our_names, read_state_dict
from backbones.weights.packages import PackagedWeights, find_packaged, packaged_file, source_of

__all__ = ["Builder", "backbone_names", "backbone_options", "build_backbone", "pyramid_features", "register"]

Builder = Callable[..., Backbone]

# Options bound here are not offered: basic blocks have one place for the stride and none for a deformable
# convolution, and networks without normalisation layers have nothing to choose about them.
_BASIC_BLOCKS: dict[str, Any] = {"stride_in": "3x3", "deform": (), "deform_modulated": False}
_NO_NORM: dict[str, Any] = {"norm": None, "norm_eps": 0.0}
_PLAIN: dict[str, Any] = {"shortcut": "none", "stochastic_depth": 0.0}  # "Deep Residual Learning", section 3.3
_SE: dict[str, Any] = {"se": True}
_CBAM: dict[str, Any] = {"cbam": True}
_C: dict[str, Any] = {"stem": "C"}
_D: dict[str, Any] = {"stem": "C", "avg_down": True}
_PREACT: dict[str, Any] = {"preact": True}

_BUILDERS: dict[str, Builder] = {
    "resnet18": partial(ResNet, 18, **_BASIC_BLOCKS),
    "resnet34": partial(ResNet, 34, **_BASIC_BLOCKS),
    "plain18": partial(ResNet, 18, **_BASIC_BLOCKS, **_PLAIN),
    "plain34": partial(ResNet, 34, **_BASIC_BLOCKS, **_PLAIN),
    "resnet50": partial(ResNet, 50),
    "resnet101": partial(ResNet, 101),
    "resnet152": partial(ResNet, 152),
    "resnext50_32x4d": partial(ResNet, 50, groups=32, width_per_group=4),
    "resnext101_32x8d": partial(ResNet, 101, groups=32, width_per_group=8),
    "resnext101_64x4d": partial(ResNet, 101, groups=64, width_per_group=4),
    "resnext152_32x8d": partial(ResNet, 152, groups=32, width_per_group=8),
    "wide_resnet50_2": partial(ResNet, 50, width_per_group=128),
    "wide_resnet101_2": partial(ResNet, 101, width_per_group=128),
    "seresnet18": partial(ResNet, 18, **_BASIC_BLOCKS, **_SE),
    "seresnet34": partial(ResNet, 34, **_BASIC_BLOCKS, **_SE),
    "seresnet50": partial(ResNet, 50, **_SE),
    "seresnet101": partial(ResNet, 101, **_SE),
    "seresnet152": partial(ResNet, 152, **_SE),
    "cbam_resnet18": partial(ResNet, 18, **_BASIC_BLOCKS, **_CBAM),
    "cbam_resnet34": partial(ResNet, 34, **_BASIC_BLOCKS, **_CBAM),
    "cbam_resnet50": partial(ResNet, 50, **_CBAM),
    "cbam_resnet101": partial(ResNet, 101, **_CBAM),
    "attention56": partial(AttentionNet, 56),
    "attention92": partial(AttentionNet, 92),
    "resnet18d": partial(ResNet, 18, **_BASIC_BLOCKS, **_D),
    "resnet50c": partial(ResNet, 50, **_C),
    "resnet50d": partial(ResNet, 50, **_D),
    "resnet101d": partial(ResNet, 101, **_D),
    "preact_resnet18": partial(ResNet, 18, **_BASIC_BLOCKS, **_PREACT),
    "preact_resnet34": partial(ResNet, 34, **_BASIC_BLOCKS, **_PREACT),
    "preact_resnet50": partial(ResNet, 50, **_PREACT),
    "preact_resnet101": partial(ResNet, 101, **_PREACT),
    "preact_resnet152": partial(ResNet, 152, **_PREACT),
    "preact_resnet200": partial(ResNet, 200, **_PREACT),
    "cifar_resnet20": partial(CifarResNet, 20, BasicBlock),
    "cifar_resnet32": partial(CifarResNet, 32, BasicBlock),
    "cifar_resnet44": partial(CifarResNet, 44, BasicBlock),
    "cifar_resnet56": partial(CifarResNet, 56, BasicBlock),
    "cifar_resnet110": partial(CifarResNet, 110, BasicBlock),
    "cifar_resnet1202": partial(CifarResNet, 1202, BasicBlock),
    "cifar_seresnet20": partial(CifarResNet, 20, BasicBlock, **_SE),
    "cifar_cbam_resnet20": partial(CifarResNet, 20, BasicBlock, **_CBAM),
    "cifar_plain20": partial(CifarResNet, 20, BasicBlock, **_PLAIN),
    "cifar_plain32": partial(CifarResNet, 32, BasicBlock, **_PLAIN),
    "cifar_plain44": partial(CifarResNet, 44, BasicBlock, **_PLAIN),
    "cifar_plain56": partial(CifarResNet, 56, BasicBlock, **_PLAIN),
    "cifar_plain110": partial(CifarResNet, 110, BasicBlock, **_PLAIN),
    "cifar_preact_resnet110": partial(CifarResNet, 110, PreactBasicBlock),
    "cifar_preact_resnet164": partial(CifarResNet, 164, PreactBottleneck, shortcut="B"),
    "cifar_preact_resnet1001": partial(CifarResNet, 1001, PreactBottleneck, shortcut="B"),
    "cifar_attention56": partial(CifarAttentionNet, 56),
    "cifar_attention92": partial(CifarAttentionNet, 92),
    "cifar_attention128": partial(CifarAttentionNet, 128),
    "cifar_attention164": partial(CifarAttentionNet, 164),
    "cifar_attention236": partial(CifarAttentionNet, 236),
    "cifar_attention452": partial(CifarAttentionNet, 452),
    "cifar_shake_shake26_2x32d": partial(ShakeShake, 32),
    "cifar_shake_shake26_2x64d": partial(ShakeShake, 64),
    "cifar_shake_shake26_2x96d": partial(ShakeShake, 96),
    "all_cnn_c": AllCNN,
    "tiny_net5_3x3": partial(TinyNet, 5, 3),
    "tiny_net5_5x5": partial(TinyNet, 5, 5),
    "tiny_net5_7x7": partial(TinyNet, 5, 7),
    "tiny_net8_3x3": partial(TinyNet, 8, 3),
    "tiny_net11_3x3": partial(TinyNet, 11, 3),
    "tiny_net14_3x3": partial(TinyNet, 14, 3),
    "vgg11": partial(VGG, 11, **_NO_NORM),
    "vgg11_bn": partial(VGG, 11),
    "vgg13": partial(VGG, 13, **_NO_NORM),
    "vgg13_bn": partial(VGG, 13),
    "vgg16": partial(VGG, 16, **_NO_NORM),
    "vgg16_bn": partial(VGG, 16),
    "vgg19": partial(VGG, 19, **_NO_NORM),
    "vgg19_bn": partial(VGG, 19),
}

# Prefixes of names that are looked up in another library.
_LIBRARIES: dict[str, Builder] = {"timm": TimmBackbone, "torchvision": TorchvisionBackbone}


def backbone_names() -> tuple[str, ...]:
    """Returns the names that ``build_backbone`` takes, in the order of the table."""
    return tuple(_BUILDERS)


def backbone_options(name: str) -> tuple[str, ...]:
    """Returns the options that the backbone ``name`` offers, such as ``norm``.

    Raises:
        ValueError: an unknown name.
    """
    return _options_of(_find(name))


def register(name: str, builder: Builder) -> None:
    """Adds a backbone of outside code; the options it offers are the named arguments of ``builder``.

    To be usable with weights, ``builder`` takes ``input_stats``, and ``norm_eps`` and ``stride_in`` where these apply.

    Raises:
        ValueError: the name is taken.
    """
    if name in _BUILDERS:
        raise ValueError(f"a backbone called {name!r} exists; choose a name other than {', '.join(_BUILDERS)}")
    _BUILDERS[name] = builder


def pyramid_features(name: str) -> tuple[str, ...]:
    """Returns the ``out_features`` with which the backbone ``name`` carries a feature pyramid.

    Raises:
        ValueError: its stages do not have strides 4, 8, ..
    """
    builder = _BUILDERS.get(name)
    kind = builder.func if isinstance(builder, partial) else builder
    features = getattr(kind, "pyramid", Backbone.pyramid)
    if not features:
        raise ValueError(f"{name} has no stages of strides 4, 8, .. for a feature pyramid; set backbone.fpn to false")
    return features


def build_backbone(
    name: str,
    *,
    weights: str | None = None,
    weights_source: str = "torchvision",
    load_weights: bool = True,
    input_stats: InputStats | None = None,
    **options: Any,
) -> Backbone:
    """Returns a backbone by name.

    Args:
        name: one of ``backbone_names()``, or a model of a library, such as "timm:densenet121" or
            "torchvision:googlenet".
        weights: None (random), "torchvision" (its ImageNet weights, downloaded once), a key of ``packages.PACKAGES``
            (those of an installed pip package), or the path of a .pth, .pt, .pkl or .safetensors file with
            torchvision's or Caffe's names. A model of timm takes "timm", a key of ``packages.PACKAGES`` or a file with
            timm's names.
        weights_source: what a file's weights were trained with, a key of ``weights.SOURCES``. It decides
            ``input_stats`` and the options ``norm_eps`` and ``stride_in``, where the backbone has them; "torchvision"
            only if there are weights, the others also for a caller who loads a whole detector next. A model of a
            library knows these itself.
        load_weights: False builds what the weights need (``input_stats`` and so on) and leaves the values random, for a
            caller who loads a whole detector next.
        input_stats: the normalisation of images; by default the one that the weights need.
        **options: options of the backbone; None means its default.

    Raises:
        ValueError: an unknown name, option or source, an option that contradicts the source, or weights that do not
            fit.
    """
    builder = _find(name)
    if weights_source not in SOURCES:
        raise ValueError(f"no weights_source {weights_source!r}; known: {', '.join(SOURCES)}")
    offered = _options_of(builder)
    given = {key: value for key, value in {**options, "input_stats": input_stats}.items() if value is not None}
    for key, value in given.items():
        if key not in offered:
            raise ValueError(f"{name} has no option {key!r} (got {value!r}); it has {', '.join(offered)}")
    packaged = find_packaged(weights, name)
    if weights is None and weights_source == "torchvision":
        return builder(**given)
    if _is_of_library(name):
        file = str(packaged_file(packaged)) if load_weights and packaged is not None else weights
        return _library_backbone(name, builder, given, file if load_weights else None, weights_source)
    if weights == "torchvision" or packaged is not None:
        if weights_source not in ("torchvision", source_of(weights)):
            raise ValueError(
                f"weights {weights!r} cannot come from weights_source {weights_source!r}; "
                "leave weights_source unset, or give the path of a file as weights"
            )
        weights_source = source_of(weights)
    bound = _bind(given, offered, weights_source, check=load_weights)
    backbone = builder(**bound)
    if weights is None or not load_weights:
        return backbone
    if packaged is not None:
        _load_hed(backbone, packaged)
        return backbone
    state = download_torchvision(name) if weights == "torchvision" else read_state_dict(weights)
    named = our_names(state, source=weights_source)
    load_matching(backbone, named, source=repr(weights), unused_ok=("fc.",), missing_ok=OFFSETS)
    return backbone


def _load_hed(backbone: Backbone, packaged: PackagedWeights) -> None:
    """Loads the convolutions of HED's network; fc6 and fc7, which it lacks, keep their values."""
    found = read_hed(packaged_file(packaged))
    lacking = tuple(f"{layer}." for layer in packaged.missing)
    state = {name: value for name, value in backbone.state_dict().items() if name.startswith(lacking)}
    state |= {name.removeprefix("backbone."): found[name] for name in found if name.startswith("backbone.")}
    load_matching(backbone, state, source=packaged.package)


def _is_of_library(name: str) -> bool:
    return name.partition(":")[0] in _LIBRARIES


def _find(name: str) -> Builder:
    """Returns the builder of a name of the table or of a library."""
    if _is_of_library(name):
        library, _, model_name = name.partition(":")
        return partial(_LIBRARIES[library], model_name)
    if name not in _BUILDERS:
        nearest = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"no backbone {name!r}; {hint}known: {', '.join(_BUILDERS)}, and timm:NAME for those of timm")
    return _BUILDERS[name]


def _library_backbone(
    name: str, builder: Builder, given: Mapping[str, Any], weights: str | None, weights_source: str
) -> Backbone:
    if weights_source != "torchvision":
        raise ValueError(
            f"weights_source {weights_source!r} is for networks of the table; {name} takes weights by the names of its "
            "library: leave weights_source unset"
        )
    backbone = builder(**given)
    assert isinstance(backbone, TracedBackbone)
    if weights is not None:
        backbone.load_weights(weights)
    return backbone


def _options_of(builder: Builder) -> tuple[str, ...]:
    """Returns the named arguments of a builder, without those that a partial has bound."""
    bound = builder.keywords if isinstance(builder, partial) else {}
    return tuple(key for key in inspect.signature(builder).parameters if key not in bound)


def _bind(given: Mapping[str, Any], offered: tuple[str, ...], source_name: str, *, check: bool) -> dict[str, Any]:
    """Returns the given options and, of those offered, the ones that the source of the weights decides.

    With ``check``, a given option that differs raises ValueError; a whole detector's weights may need other values.
    """
    source = SOURCES[source_name]
    bound = dict(given)
    for key in ("input_stats", "norm_eps", "stride_in"):
        needed = getattr(source, key)
        if key in offered and bound.setdefault(key, needed) != needed and check:
            raise ValueError(
                f"backbone.{key} is {bound[key]!r} but weights from {source_name!r} were trained with {needed!r}; "
                f"leave backbone.{key} unset, or choose the weights_source that the weights come from"
            )
    return bound
