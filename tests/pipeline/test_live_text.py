"""The text that a training prints at each validation does not change the training."""

import numpy as np
import pytest
import torch
from conftest import build_model, engine_ids, train_config

from minigpt.data.batches import Batches
from minigpt.generation.sampling import Sampling
from minigpt.tokenizer import BPETokenizer, Tokenizer
from minigpt.training.train import Metrics, Trainer
from pipeline.tracking.live_text import greedy_line


def test_the_line_is_the_most_likely_text(trained, tokenizer):
    expected = tokenizer.decode(engine_ids(trained, "", 80, Sampling(temperature=0)))
    assert greedy_line(100, trained.model, tokenizer) == f"step 100: {expected}"
    assert trained.model.training
    trained.model.eval()


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_line_of_any_model_fits_a_terminal(tokenizer, sentences, kind):
    if kind == "bpe":
        tokenizer = BPETokenizer(300)
        tokenizer.build_vocab(sentences)
    for seed in range(5):
        torch.manual_seed(seed)
        model = build_model(tokenizer.vocab_size, d_model=32, num_layers=1, d_ff=64)
        line = greedy_line(1_000_000, model, tokenizer)
        assert line.isprintable()
        assert len(line) <= 80


def trained_weights(observed: bool, tokenizer: Tokenizer) -> tuple[bytes, list[str]]:
    ids = np.resize(tokenizer.encode_array("The quick brown fox"), 400)
    torch.manual_seed(0)
    model = build_model(40, d_model=32, num_layers=1, d_ff=64, max_seq_len=16, dropout=0.1)
    batches = Batches(ids, "packed", 4, 16)
    trainer = Trainer(model, batches, batches, train_config(layout="packed", batch_size=4))
    lines = []

    def report(metrics: Metrics) -> None:
        if observed and "val/loss" in metrics:
            lines.append(greedy_line(int(metrics["step"]), model, tokenizer))

    trainer.run(report)
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return weights + torch.get_rng_state().numpy().tobytes(), lines


def test_weights_are_the_same_with_the_line(tokenizer):
    observed, lines = trained_weights(True, tokenizer)
    assert [line.split(":")[0] for line in lines] == ["step 4", "step 8", "step 12"]
    assert trained_weights(False, tokenizer) == (observed, [])
