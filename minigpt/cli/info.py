"""minigpt-cli info: show the metadata of a model file."""

from minigpt.cli import options
from minigpt.cli.models import load_backend
from minigpt.cli.output import print_json
from minigpt.common.text import visible


def info(
    backend_name: options.Backend = None, model: options.Model = None, as_json: options.Json = False
) -> None:
    """Show the contents of a model file.

    Prints the architecture, the parameters and results of training, and the vocabulary.
    """
    backend = load_backend(backend_name, model)
    metadata = {
        name: value
        for name, value in backend.metadata.items()
        if name not in ("tokenizer", "ngram_table", "draft")  # long; "draft" is of older files
    }
    metadata["vocabulary"] = backend.tokenizer.describe()
    if as_json:
        print_json(metadata)
        return
    lines = []
    for section, value in metadata.items():
        if isinstance(value, dict):
            lines += [f"{section}:", *(f"  {key}: {entry!r}" for key, entry in value.items())]
        else:
            lines.append(f"{section}: {value!r}")
    print(*map(visible, lines), sep="\n")
