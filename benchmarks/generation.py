"""Generation speed of MiniGPT and of other engines with models of the same size.

    pip install transformers ctranslate2 onnxruntime-genai onnx-ir
    python benchmarks/generation.py --threads 1
    python benchmarks/generation.py --threads 1 --sizes GPT-2 --batches 1 --rounds 3

S is the default model: 128 channels, 4 layers; M has 384 channels and 6 layers; GPT-2 has 124
million parameters and 50,260 tokens. All engines generate 200 tokens after a prompt of 16, with
temperature 0.8 and top-k 50. The models of the other engines have random weights, which take the
same time: a GPT-2, or for ONNX Runtime GenAI a Llama with the same number of weights. The benefit
of drafts depends on the text, so it is measured on trained models (--trained).

The engines take turns in each round; a ratio is the median over the rounds. Of 16 texts, the other
engines generate all in one batch, and MiniGPT uses the `max_batch_size` of its backend.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from minigpt.common.config import load_params
from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.backend import Backend
from minigpt.generation.engine import run as run_engine
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Sequence
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import CharTokenizer

SIZES = {
    "S": {"d_model": 128, "num_heads": 4, "num_layers": 4, "d_ff": 512, "max_seq_len": 256},
    "M": {"d_model": 384, "num_heads": 6, "num_layers": 6, "d_ff": 1536, "max_seq_len": 256},
    "GPT-2": {"d_model": 768, "num_heads": 12, "num_layers": 12, "d_ff": 3072, "max_seq_len": 1024},
}
SWITCHES = {  # that make a GPT-2
    "GPT-2": {"positional": "learned", "activation": "gelu", "tied_head": True, "head_bias": False}
}
# with the special tokens 67 entries, like the vocabulary of the default model, or 50,260
CHARACTERS = {"S": range(33, 96), "M": range(33, 96), "GPT-2": range(0x10000, 0x10000 + 50_256)}
TOKENIZERS = {size: CharTokenizer(map(chr, codes)) for size, codes in CHARACTERS.items()}
PROMPT, LENGTH, TEMPERATURE, TOP_K = 16, 200, 0.8, 50
Case = Callable[[int], None]  # generates a batch of this many texts


def minigpt(backend: Backend, draft: bool = True) -> Case:
    table = backend.ngram_table if draft else None
    prompt = "".join(backend.tokenizer.token_strings[4:])[:PROMPT]
    seeds = iter(range(10**9))

    def run(batch: int) -> None:
        backend.ngram_table = table
        sampling = Sampling(TEMPERATURE, TOP_K, ignore_eos=True, seed=next(seeds))
        sequences = [
            Sequence(backend.tokenizer, prompt, sampling, sample, LENGTH) for sample in range(batch)
        ]
        for _ in run_engine(backend, sequences):
            pass

    return run


def minigpt_cases(size: str, trained: list[Path], folder: Path, threads: int) -> dict[str, Case]:
    tokenizer, changes = TOKENIZERS[size], {**SIZES[size], **SWITCHES.get(size, {})}
    model_config = load_params().model.model_copy(update=changes)
    model = MiniGPT(tokenizer.vocab_size, model_config).eval()
    config = {"vocab_size": tokenizer.vocab_size, **model_config.model_dump()}
    cases = {"MiniGPT, PyTorch": minigpt(TorchBackend(model, tokenizer))}
    for kind in (None, "int8"):
        path = folder / f"{size}-{kind}.onnx"
        path.write_bytes(
            to_onnx(model, {"config": config, "tokenizer": tokenizer.to_dict()}, quantize=kind)
        )
        cases[f"MiniGPT, ONNX {kind or 'float32'}"] = minigpt(OnnxBackend(path, threads))
    for path in trained:
        backend = OnnxBackend(path, threads) if path.suffix == ".onnx" else TorchBackend.load(path)
        if all(backend.metadata["config"][name] == value for name, value in SIZES[size].items()):
            cases[f"{path}, without drafts"] = minigpt(backend, draft=False)
            cases[f"{path}, with drafts"] = minigpt(backend)
    return cases


def transformers_model(size: str):
    """Return a GPT-2 of this size, which computes the same matrix products as MiniGPT."""
    import transformers

    sizes = SIZES[size]
    config = transformers.GPT2Config(
        vocab_size=TOKENIZERS[size].vocab_size,
        n_positions=sizes["max_seq_len"],
        n_embd=sizes["d_model"],
        n_layer=sizes["num_layers"],
        n_head=sizes["num_heads"],
        n_inner=sizes["d_ff"],
        activation_function="gelu_new" if size in SWITCHES else "relu",
        bos_token_id=2,
        eos_token_id=3,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def transformers_case(model) -> Case:
    def run(batch: int) -> None:
        ids = torch.arange(4, 4 + PROMPT).repeat(batch, 1)
        options = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, "pad_token_id": 0}
        lengths = {"min_new_tokens": LENGTH, "max_new_tokens": LENGTH}
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **options, **lengths)

    return run


def save_with_tokenizer(model, folder: Path) -> None:
    """Save `model` with a tokenizer, which the converters of the other engines require."""
    import tokenizers
    import transformers

    vocabulary = {f"t{token}": token for token in range(model.config.vocab_size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t1"))
    model.save_pretrained(folder)
    special = {"unk_token": "t1", "bos_token": "t2", "eos_token": "t3"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def genai_case(size: str, folder: Path, threads: int) -> Case:
    """Run a Llama; the three matrices of its feed-forward network are as large as GPT-2's two."""
    import onnxruntime_genai
    import transformers
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    sizes = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=TOKENIZERS[size].vocab_size,
        tie_word_embeddings=size in SWITCHES,
        hidden_size=sizes["d_model"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["d_ff"] * 2 // 3,
        max_position_embeddings=sizes["max_seq_len"],
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    save_with_tokenizer(transformers.LlamaForCausalLM(config), folder / "llama")
    task = ("", str(folder / "llama"), str(folder / "genai"), "fp32", "cpu", str(folder / "cache"))
    with contextlib.redirect_stdout(io.StringIO()):
        create_model(*task, **parse_extra_options(*task, []))
    settings = json.loads((folder / "genai/genai_config.json").read_text())
    settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (folder / "genai/genai_config.json").write_text(json.dumps(settings))
    model = onnxruntime_genai.Model(str(folder / "genai"))

    def run(batch: int) -> None:
        parameters = onnxruntime_genai.GeneratorParams(model)
        lengths = {
            "min_length": PROMPT + LENGTH,
            "max_length": PROMPT + LENGTH,
            "batch_size": batch,
        }
        parameters.set_search_options(
            do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, **lengths
        )
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.tile(np.arange(4, 4 + PROMPT, dtype=np.int32), (batch, 1)))
        while not generator.is_done():
            generator.generate_next_token()

    return run


def ctranslate2_cases(model, folder: Path, threads: int) -> dict[str, Case]:
    import ctranslate2

    source = folder / "gpt2"
    save_with_tokenizer(model, source)
    cases = {}
    for kind in ("float32", "int8"):
        target = folder / f"ct2-{kind}"
        ctranslate2.converters.TransformersConverter(str(source)).convert(
            str(target), quantization=kind, force=True
        )
        generator = ctranslate2.Generator(
            str(target), compute_type=kind, intra_threads=threads, inter_threads=1
        )

        def run(batch: int, generator=generator) -> None:
            prompts = [[f"t{token}" for token in range(4, 4 + PROMPT)]] * batch
            results = generator.generate_batch(
                prompts,
                max_batch_size=batch,
                max_length=LENGTH,
                min_length=LENGTH,
                sampling_topk=TOP_K,
                sampling_temperature=TEMPERATURE,
                include_prompt_in_result=False,
            )
            assert len(results[0].sequences_ids[0]) == LENGTH

        cases[f"CTranslate2 {kind}"] = run
    return cases


def compare(cases: dict[str, Case], batch: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            run(batch)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(size: str, batch: int, seconds: dict[str, list[float]]) -> None:
    base = seconds["CTranslate2 float32"]
    print(f"\n{size}, batch size {batch}")
    for name, times in seconds.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(base, times, strict=True))
        print(
            f"  {name:44} {batch * LENGTH / statistics.median(times):9.0f} tokens/s   x{ratio:.2f}"
        )


def start_up(rounds: int) -> None:
    """Measure the time from process start to the first character, and the memory of the process."""
    generate = [sys.executable, "-m", "minigpt.cli", "generate", "-p", "", "--backend", "onnx"]
    first, torch_import = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        with subprocess.Popen(generate, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            first.append(time.perf_counter() - start)
            process.communicate()
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        torch_import.append(time.perf_counter() - start)
    ours, base = statistics.median(first), statistics.median(torch_import)
    print(f"\nfirst character: {ours:.2f} s; import torch: {base:.2f} s; ratio {ours / base:.3f}")
    code = (
        f"from minigpt.cli.app import app\napp({generate[3:]}, standalone_mode=False)\n"
        "import psutil, sys; print(psutil.Process().memory_info().rss, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    print(f"memory at the end of the process: {int(result.stderr.split()[-1]) / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["S", "M"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--trained",
        nargs="+",
        type=Path,
        default=[Path("models/minigpt.onnx"), Path("models/minigpt.safetensors")],
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{arguments.threads} thread{'s' * (arguments.threads > 1)}, {arguments.rounds} rounds")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            model = transformers_model(size)
            cases = {
                "transformers": transformers_case(model),
                **ctranslate2_cases(model, Path(folder), arguments.threads),
                "ONNX Runtime GenAI float32": genai_case(size, Path(folder), arguments.threads),
                **minigpt_cases(size, arguments.trained, Path(folder), arguments.threads),
            }
            for batch in arguments.batches:
                # drafts are used for single texts only
                selected = {
                    name: run
                    for name, run in cases.items()
                    if batch == 1 or not name.endswith("with drafts")
                }
                report(size, batch, compare(selected, batch, arguments.rounds))
    start_up(arguments.rounds)


if __name__ == "__main__":
    main()
