"""Networks of timm and torchvision as classifiers, and published weights including the head."""

from __future__ import annotations

from dataclasses import asdict, replace

from backbones.classifier import Classifier
from backbones.library_classifier import LibraryClassifier
from backbones.weights.load import download_torchvision, our_names, read_state_dict
from detection.build_trunk import file_of_a_run, local_weights, weights_of_run
from detection.config.sections import BackboneConfig

__all__ = ["build_library_classifier", "load_published"]


def build_library_classifier(
    config: BackboneConfig, num_classes: int, *, pretrained: bool, auxiliary_weight: float
) -> LibraryClassifier:
    """Returns the network of timm or torchvision that ``config`` names, with its own head for ``num_classes`` classes.

    Args:
        config: config of the network; weights as for ``build_plain_backbone``, without those of the head.
        num_classes: K.
        pretrained: load the weights; False if weights of the whole model are loaded later.
        auxiliary_weight: weight of the losses of auxiliary classifiers; 0 builds none.

    Raises:
        ValueError: no such network, an option of the backbone beside ``norm``, or weights that do not fit.
    """
    taken = ("name", "weights", "norm")
    default = asdict(BackboneConfig())
    other = [key for key, value in asdict(config).items() if key not in taken and value != default[key]]
    if other:
        raise ValueError(
            f"{config.name} with its own head has no option {', '.join(other)}; of backbone it takes {', '.join(taken)}"
        )
    norm = config.norm
    if norm not in (None, "bn", "frozen_bn"):
        raise ValueError(f"backbone.norm of {config.name} takes bn or frozen_bn, got {norm!r}")
    network = LibraryClassifier(config.name, num_classes, norm=norm, auxiliary_weight=auxiliary_weight)
    weights = config.weights
    if not pretrained or weights is None:
        return network
    weights = local_weights(weights)
    run = file_of_a_run(replace(config, weights=weights), check=True)
    if run is None:
        network.load_weights(weights, head=False)
    else:
        state = {name.removeprefix("trunk."): value for name, value in weights_of_run(run).items()}
        network.load(state, source=str(run), head=False)
    return network


def load_published(network: Classifier | LibraryClassifier, config: BackboneConfig) -> None:
    """Loads all of ``network``, including its head, from the weights that ``config`` names.

    Raises:
        ValueError: no weights are named, they are not available, or they do not fit, such as another number of classes.
    """
    weights = config.weights
    if weights is None:
        raise ValueError(
            "backbone.weights is unset; a test of published weights takes backbone.weights=timm, torchvision or a file"
        )
    weights = local_weights(weights)
    if isinstance(network, LibraryClassifier):
        network.load_weights(weights, head=True)
        return
    if type(network) is not Classifier:
        raise ValueError(
            f"{type(network).__name__} has heads that published weights lack; set classification.network=classifier"
        )
    state = download_torchvision(config.name) if weights == "torchvision" else read_state_dict(weights)
    network.load(our_names(state, source=config.weights_source), source=repr(weights))
