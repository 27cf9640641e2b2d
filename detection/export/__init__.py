"""Detectors as files that run without this project's training code, and the proof that they find the same."""
