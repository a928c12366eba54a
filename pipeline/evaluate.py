"""Stage 4: what the model is worth, on the whole validation split."""

import json
import logging

from minigpt.common.config import EvaluateConfig, load_params
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.evaluation.baselines import baselines
from minigpt.evaluation.error_analysis import accuracy_by_class, mistakes
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.generation.engine import generate
from minigpt.generation.sampling import Sampling
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.checkpoint import load_model
from minigpt.tokenizer import tokenizer_from_dict
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking import tracking

log = logging.getLogger(__name__)
ACCURACY = paths.REPORTS / "accuracy.csv"
SAMPLES = paths.REPORTS / "samples.md"


def main() -> None:
    config = load_params().evaluate
    model, metadata = load_model(paths.MODEL)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    tokens = Tokens(paths.TOKENS, tokenizer)
    with tracking.model_run(paths.MODEL) as run:
        split = tokens.val_split
        # the layout that the model was trained in: another would show it positions it has never seen
        batches = Batches(
            tokens.ids[split], metadata["train"]["layout"], config.batch_size, model.max_seq_len
        )
        predictions = predict(model, batches)
        result = {
            **summarize(predictions, tokens.info[split]),
            "held_out": split == "val",
            "validation_tokens": tokens.sha256([split])[:16],
            "baseline_loss": baselines(predictions, tokenizer.vocab_size),
        }
        paths.REPORTS.mkdir(exist_ok=True)
        paths.EVALUATION.write_text(json.dumps(result, indent=1) + "\n")
        accuracy_by_class(predictions, tokenizer).to_csv(ACCURACY, index=False)
        mistakes(predictions, tokenizer).to_csv(paths.MISTAKES, index=False)
        SAMPLES.write_text(_samples(TorchBackend(model, tokenizer), config), encoding="utf-8")
        run.report(
            "evaluate", config, result, [paths.EVALUATION, ACCURACY, paths.MISTAKES, SAMPLES]
        )
    if split == "train":
        log.warning(
            "nothing is held out of this corpus: these figures are of the training split itself"
        )
    log.info(
        "loss %(loss).4f  perplexity %(perplexity).3f  bits per character %(bits_per_char).3f",
        result,
    )


def _samples(backend: TorchBackend, config: EvaluateConfig) -> str:
    sampling = Sampling(config.temperature, config.top_k, seed=config.seed)
    text = f"# Samples\n\nTemperature {config.temperature}, top-k {config.top_k}, seed {config.seed}.\n"
    for number, prompt in enumerate(
        config.prompts
    ):  # each with noise of its own, or they would resemble
        continuation = "".join(generate(backend, prompt, config.max_new_tokens, sampling, number))
        heading = f"`{prompt}`" if prompt else "No prompt"
        text += f"\n## {heading}\n\n```text\n{prompt}{continuation}\n```\n"
    return text


if __name__ == "__main__":
    run_stage(main)
