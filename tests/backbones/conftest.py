"""Networks on torch's "meta" device, where shapes and gradients flow but no values are computed."""

from typing import Any

import pytest
import torch

from backbones.registry import build_backbone


@pytest.fixture(scope="session")
def meta():
    """Makes a network, or the backbone of a name, on the "meta" device."""

    def build(make: Any, *parts: Any, **options: Any) -> Any:
        with torch.device("meta"):
            return build_backbone(make, **options) if isinstance(make, str) else make(*parts, **options)

    return build
