"""Backbones and their weights: networks that turn images into named feature maps; knows nothing of detection."""
