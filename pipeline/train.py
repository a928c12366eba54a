"""Stage 3: train the model, or resume an interrupted training of the same model."""

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
from pipeline.common import paths, stage
from pipeline.common.progress import TrainingProgress
from pipeline.common.threads import use_threads
from pipeline.tracking.live_text import greedy_line
from pipeline.tracking.run import TrainingRun


def main() -> None:
    params = load_params()
    if params.train.processes > 1 and not distributed.launched():
        distributed.launch("pipeline.train", params.train.processes)
        return
    use_threads(params.threads)
    with distributed.joined() as group, user_errors(), suppress(Interrupted):
        tokenizer = load_tokenizer(paths.VOCAB)
        tokens = Tokens(paths.TOKENS, tokenizer)
        device = choose_device(params.train.device)
        facts = training_facts(params, tokens, device, group, paths.code_sha256("train"))
        root = paths.root() / ".minigpt/checkpoints"
        with resume_store(root, facts, params.runtime, group) as store:
            trainer = build_trainer(params, tokenizer, tokens, device, store, group)
            if group.rank > 0:
                trainer.run(should_stop=stage.SignalCatcher().received)
            else:
                _train(trainer, params, tokenizer, tokens)


def _train(trainer: Trainer, params: Params, tokenizer: Tokenizer, tokens: Tokens) -> None:
    signals, bar = stage.SignalCatcher(), TrainingProgress(trainer.total_steps, trainer.progress)
    with TrainingRun(trainer, params, tokenizer, tokens) as run, bar:

        def report(metrics: Metrics) -> None:
            add_bits_per_char(metrics, trainer, tokens)
            bar(metrics)
            if "val/loss" in metrics:
                with run.guard():
                    bar.write(greedy_line(trainer.progress.step, trainer.model, tokenizer))
            run.log(metrics)

        try:
            trainer.run(report, signals.received)
        except Interrupted:
            signals.exit(f"stopped at step {trainer.progress.step}; `dvc repro` resumes from here")
        summary = write_reports(paths.REPORTS, trainer.progress, tokens.val_split == "val")
        metadata = model_metadata(params, tokenizer, tokens, trainer.model, summary)
        metadata["lineage"]["code_sha256"] = paths.code_sha256("train")
        save(paths.MODEL, trainer.model.state_dict(), metadata)
        run.finish(summary["held_out"])


if __name__ == "__main__":
    stage.run_stage(main)
