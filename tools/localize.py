"""Runs `resdet localize`; the config file may be given as --config-file."""

from __future__ import annotations

import sys

from detection.cli import main

if __name__ == "__main__":
    sys.exit(main(["localize", *sys.argv[1:]]))
