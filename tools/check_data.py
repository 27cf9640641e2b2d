"""Runs `resdet check`."""

from __future__ import annotations

import sys

from detection.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
