"""The stages of dvc.yaml, one file each: read params.yaml, call minigpt, write outs."""

import importlib.util
import sys

# here, since this file runs before any stage imports its packages
if not all(map(importlib.util.find_spec, ("filelock", "pandas", "pydantic", "ruamel", "torch"))):
    sys.exit(
        f"{sys.executable} lacks MiniGPT's packages; run `make setup`, then "
        "`source .venv/bin/activate` and try again"
    )
