"""Published weights of a whole classifier, with the head they came with, so that their error can be checked."""

from __future__ import annotations

from backbones.classifier import Classifier
from backbones.library_classifier import LibraryClassifier
from backbones.weights.load import download_torchvision, our_names, read_state_dict
from detection.build import LIBRARIES
from detection.config.sections import BackboneConfig
from detection.hub import local_path

__all__ = ["load_published"]


def load_published(network: Classifier | LibraryClassifier, config: BackboneConfig) -> None:
    """Loads all of ``network``, its head included, from the weights that ``config`` names.

    Raises:
        ValueError: no weights are named, they can't be had, or they do not fit, as for another number of classes.
    """
    weights = config.weights
    if weights is None:
        raise ValueError(
            "backbone.weights is unset; a test of published weights takes backbone.weights=timm, torchvision or a file"
        )
    if weights not in LIBRARIES:
        weights = str(local_path(weights))
    if isinstance(network, LibraryClassifier):
        network.load_weights(weights, head=True)
        return
    if type(network) is not Classifier:
        raise ValueError(
            f"{type(network).__name__} has heads that published weights lack; set classification.network=classifier"
        )
    state = download_torchvision(config.name) if weights == "torchvision" else read_state_dict(weights)
    network.load(our_names(state, source=config.weights_source), source=repr(weights))
