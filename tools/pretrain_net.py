"""Runs `resdet pretrain`; the config file may be given as --config-file."""

from __future__ import annotations

import sys

from detection.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
