"""Sample texts of a model, as Markdown."""

from collections.abc import Iterable

from minigpt.common.text import fenced, inline_code
from minigpt.generation.backend import Backend
from minigpt.generation.engine import generate
from minigpt.generation.sampling import Sampling


def samples_markdown(
    backend: Backend, prompts: Iterable[str], max_new_tokens: int, sampling: Sampling
) -> str:
    """Return one generated text for each prompt, each with different noise."""
    text = (
        f"# Samples\n\nTemperature {sampling.temperature}, top-k {sampling.top_k}, "
        f"seed {sampling.seed}.\n"
    )
    for sample, prompt in enumerate(prompts):
        continuation = "".join(generate(backend, prompt, max_new_tokens, sampling, sample))
        heading = inline_code(prompt) if prompt.strip() else "No prompt"
        text += f"\n## {heading}\n\n{fenced(prompt + continuation)}\n"
    return text
