"""Stage 4: evaluate the model on the whole validation split."""

import json
import logging

from minigpt.common.config import load_params
from minigpt.common.files import atomic_write
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.evaluation.baselines import baselines
from minigpt.evaluation.error_analysis import accuracy_by_class, mistakes
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.evaluation.samples import samples_markdown
from minigpt.generation.sampling import Sampling
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.checkpoint import load_model
from minigpt.tokenizer import tokenizer_from_dict
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking.run import Run

log = logging.getLogger(__name__)
OUTPUTS = [paths.EVALUATION, paths.ACCURACY, paths.MISTAKES, paths.SAMPLES]


def main() -> None:
    config = load_params().evaluate
    model, metadata = load_model(paths.MODEL)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    tokens = Tokens(paths.TOKENS, tokenizer)
    split = tokens.val_split
    # the layout of training, so that the model sees only positions that it was trained on
    layout = metadata["train"]["layout"]
    with Run() as run:
        batches = Batches(tokens.ids[split], layout, config.batch_size, model.max_seq_len)
        predictions = predict(model, batches)
        result = {
            **summarize(predictions, tokens.info[split]),
            "held_out": split == "val",
            "validation_tokens": tokens.sha256([split])[:16],
            "baseline_loss": baselines(
                tokens.ids["train"], tokens.ids[split], tokenizer.vocab_size
            ),
        }
        sampling = Sampling(config.temperature, config.top_k, seed=config.seed)
        backend = TorchBackend(model, tokenizer)
        samples = samples_markdown(backend, config.prompts, config.max_new_tokens, sampling)
        accuracy = accuracy_by_class(predictions, tokenizer)
        atomic_write(paths.EVALUATION, json.dumps(result, indent=1) + "\n")
        atomic_write(paths.ACCURACY, accuracy.to_csv(index=False))
        atomic_write(paths.MISTAKES, mistakes(predictions, tokenizer).to_csv(index=False))
        atomic_write(paths.SAMPLES, samples)
        run.report("evaluate", config, OUTPUTS)
    if split == "train":
        log.warning("nothing is held out; these figures are of the training split")
    figures = "loss %(loss).4f  perplexity %(perplexity).3f  bits per character %(bits_per_char).3f"
    log.info(figures, result)


if __name__ == "__main__":
    run_stage(main)
