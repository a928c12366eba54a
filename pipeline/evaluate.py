"""Stage 4: evaluate the model on the whole validation split."""

import json
import logging

import pandas as pd

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
from pipeline.common.threads import use_threads
from pipeline.tracking.run import Run

log = logging.getLogger(__name__)
METRICS = ("loss", "bits_per_char", "accuracy")  # compared between experiments


def main() -> None:
    params = load_params()
    config = params.evaluate
    use_threads(params.threads)
    model, metadata = load_model(paths.MODEL)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    tokens = Tokens(paths.TOKENS, tokenizer)
    split = tokens.val_split
    # the layout of training, so that the model sees only positions that it was trained on; a
    # converted model has learned all of them
    layout = metadata.get("train", {}).get("layout", "packed")
    with Run() as run:
        batches = Batches(tokens.ids[split], layout, config.batch_size, model.max_seq_len)
        predictions = predict(model, batches)
        result = summarize(predictions, tokens.info[split])
        metrics = {name: result.pop(name) for name in METRICS}
        digest = tokens.sha256([split])[:16]
        details = {**result, "held_out": split == "val", "validation_tokens": digest}
        losses = baselines(tokens.ids["train"], tokens.ids[split], tokenizer.vocab_size)
        sampling = Sampling(config.temperature, config.top_k, seed=config.seed)
        backend = TorchBackend(model, tokenizer)
        samples = samples_markdown(backend, config.prompts, config.max_new_tokens, sampling)
        reports = {
            paths.EVALUATION: json.dumps(metrics, indent=1) + "\n",
            paths.EVALUATION_DETAILS: json.dumps(details, indent=1) + "\n",
            paths.BASELINES: pd.Series(losses, name="loss").to_csv(index_label="model"),
            paths.ACCURACY: accuracy_by_class(predictions, tokenizer).to_csv(index=False),
            paths.MISTAKES: mistakes(predictions, tokenizer).to_csv(index=False),
            paths.SAMPLES: samples,
        }
        for file, content in reports.items():
            atomic_write(file, content)
        run.report("evaluate", config, list(reports))
    if split == "train":
        log.warning("nothing is held out; these figures are of the training split")
    log.info("loss %(loss).4f  bits per character %(bits_per_char).3f", metrics)


if __name__ == "__main__":
    run_stage(main)
