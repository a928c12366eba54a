"""minigpt-cli info: show the metadata of a model file."""

import json

from minigpt.cli.models import load_backend
from minigpt.cli.options import BackendOption, JsonOption, ModelOption


def info(
    backend: BackendOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Show what is inside a model file."""
    engine = load_backend(backend, model)
    metadata = {
        name: values
        for name, values in engine.metadata.items()
        if name not in ("tokenizer", "draft")
    }
    metadata["vocabulary"] = engine.tokenizer.describe()
    if as_json:
        print(json.dumps(metadata, ensure_ascii=False))
        return
    for section, values in metadata.items():
        if not isinstance(values, dict):
            print(f"{section}: {values}")
            continue
        print(f"{section}:")
        for key, value in values.items():
            print(f"  {key}: {value!r}" if isinstance(value, str) else f"  {key}: {value}")
