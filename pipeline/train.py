"""Stage 3: train the model, or resume an interrupted training of the same model."""

import logging
from contextlib import suppress

from minigpt.common.config import Params, load_params
from minigpt.data.token_files import Tokens
from minigpt.model.checkpoint import save
from minigpt.tokenizer import Tokenizer, load_tokenizer
from minigpt.training import distributed
from minigpt.training.device import choose_device
from minigpt.training.outputs import add_bits_per_char, model_metadata, write_reports
from minigpt.training.resume import resume_store, training_facts
from minigpt.training.setup import build_trainer, user_errors
from minigpt.training.train import Interrupted, Metrics, Trainer
from pipeline.common import paths
from pipeline.common.progress import TrainingProgress
from pipeline.common.stage import SignalCatcher, run_stage
from pipeline.tracking.run import TrainingRun


def main() -> None:
    params = load_params()
    if params.train.processes > 1 and not distributed.launched():
        distributed.launch("pipeline.train", params.train.processes)
        return
    with distributed.joined() as group, user_errors():
        if group.rank > 0:
            logging.disable()  # rank 0 logs for all
        tokenizer = load_tokenizer(paths.VOCAB)
        tokens = Tokens(paths.TOKENS, tokenizer)
        device = choose_device(params.train.device)
        code = paths.code_sha256("train")
        facts = training_facts(params, tokens, device, group, code)
        root = paths.root() / ".minigpt/checkpoints"
        with resume_store(root, facts, params.runtime, group) as store:
            trainer = build_trainer(params, tokenizer, tokens, device, store, group)
            if group.rank == 0:
                _train(trainer, params, tokenizer, tokens, code)
            else:
                with suppress(Interrupted):
                    trainer.run(should_stop=SignalCatcher().received)


def _train(
    trainer: Trainer, params: Params, tokenizer: Tokenizer, tokens: Tokens, code: str
) -> None:
    signals = SignalCatcher()
    progress = TrainingProgress(trainer.total_steps, trainer.progress)
    with TrainingRun(trainer, params, tokenizer, tokens) as run, progress:

        def report(metrics: Metrics) -> None:
            add_bits_per_char(metrics, trainer, tokens)
            progress(metrics)
            run.log(metrics)

        try:
            trainer.run(report, signals.received)
        except Interrupted:
            signals.exit(f"stopped at step {trainer.progress.step}; `dvc repro` resumes from here")
        summary = write_reports(paths.REPORTS, trainer.progress, tokens.val_split == "val")
        metadata = model_metadata(params, tokenizer, tokens, trainer.model, summary)
        metadata["lineage"]["code_sha256"] = code
        save(paths.MODEL, trainer.model.state_dict(), metadata)
        run.finish(summary["held_out"])


if __name__ == "__main__":
    run_stage(main)
