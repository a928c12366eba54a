"""The text that a model in training would write now: one line at each validation.

Observes a training, as the rest of this package: no output depends on the text, so a change of
`minigpt/generation` reruns no training.
"""

from minigpt.common.text import visible
from minigpt.generation.generate import generate_ids
from minigpt.generation.sampling import Sampling
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import Tokenizer

LINE_LENGTH = 80


def greedy_line(step: int, model: MiniGPT, tokenizer: Tokenizer) -> str:
    """Return the start of the most likely text in a line; the model is in training mode again.

    Greedy decoding consumes no random numbers, so the training goes on as without it.
    """
    prefix = f"step {step}: "
    length = LINE_LENGTH - len(prefix)
    model.eval()
    try:
        text = ""
        ids = generate_ids(TorchBackend(model, tokenizer), "", length, Sampling(temperature=0))
        for part in tokenizer.stream(ids):
            text += part
            if len(text) >= length:
                break
    finally:
        model.train()
    return prefix + visible(" ".join(text.split()))[:length]
