"""The stages of dvc.yaml, one file each: read params.yaml, call minigpt, write outs."""
