"""The stages of dvc.yaml, one file each: read params.yaml, call minigpt, write outs."""

import importlib.util
import sys

from minigpt.common.entry_point import exit_on_interrupt

if sys.argv[0] == "-m":  # `python -m pipeline.<stage>` imports its packages now
    exit_on_interrupt()

# here, since this file runs before any stage imports its packages
if not all(map(importlib.util.find_spec, ("filelock", "pandas", "pydantic", "ruamel", "torch"))):
    sys.exit(
        f"{sys.executable} lacks MiniGPT's packages; run `make setup`, then "
        "`source .venv/bin/activate` and try again"
    )
