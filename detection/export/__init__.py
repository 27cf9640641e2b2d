"""Exports detectors to files that run without training code, and compares them with PyTorch."""
