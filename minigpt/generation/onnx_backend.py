"""Generation with ONNX Runtime alone: one file, no PyTorch.

The model file (written by `minigpt/export/onnx_graph.py`) has these inputs and outputs, the caches for each layer i,
with B texts, T new ids of each, V vocabulary, S = max_seq_len, H heads, E channels a head in the cache:

    input_ids         int64    (B, T)         B is 1 where T is more than 1
    positions         int64    (B, T)         of these ids in the window: p … p+T-1, where p may differ by row
    previous_ids      int64    (B, T)         only where config.bigram_buckets is not 0: the id before each, 0 at p = 0
    past_key_i        float32  (B, H, S, E)   what `present_key_i` was, its first p positions count; zeros at the start
    past_value_i      float32  (B, H, S, E)
    logits            float32  (B, T, V)      of the id that follows each of input_ids
    present_key_i     float32  (B, H, S, E)   the past with T positions more; may be the very memory of the past,
    present_value_i   float32  (B, H, S, E)   and then nothing is copied

and in its metadata, under "minigpt", a JSON text with the "config", the "tokenizer", how "training" ended, and
the "draft", a table of guesses (`minigpt/data/ngram_table.py`).
`examples/generate.py` is a program that needs nothing else.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from minigpt.common.errors import UserError
from minigpt.common.format_version import check_format_version
from minigpt.data.ngram_table import Draft
from minigpt.tokenizer import tokenizer_from_dict

SMALL = 1 << 24  # bytes of a model file
KEPT = 8  # a binding is kept for reads of so many ids at most; longer ones are rare


class OnnxBackend:
    """A model file as `minigpt.generation.engine` wants it.

    Raises:
        UserError: no such file, or not one of MiniGPT's ONNX models, or one whose weights lie
            outside the file.
    """

    def __init__(self, path: Path, threads: int = 0):
        """`threads`: of ONNX Runtime; 0: one for a small model, else as many as there are cores."""
        self.session, small = _open(path, threads)
        try:
            self.metadata: dict[str, Any] = json.loads(
                self.session.get_modelmeta().custom_metadata_map["minigpt"]
            )
            check_format_version(path, self.metadata)
            self.tokenizer = tokenizer_from_dict(self.metadata["tokenizer"])
            self.max_seq_len: int = self.metadata["config"]["max_seq_len"]
            shapes = {value.name: value.shape for value in self.session.get_inputs()}
            # as many as read in little more time than one: 8-bit products want small batches
            self.draft_length = 2 if "quantization" in self.metadata else 5
            # together they read the weights once; but beside small weights it is their caches that cost
            self.max_batch_size = 6 if small else 16
            self.draft = Draft.of(self.metadata, self.tokenizer.vocab_size)
            _, self._heads, _, self._channels = shapes["past_key_0"]
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(
                f"{path}: an ONNX file, but not one that this version of MiniGPT exported"
            ) from None

    def new_cache(self, rows: int) -> "OnnxKVCache":
        shape = (rows, self._heads, self.max_seq_len, self._channels)
        return OnnxKVCache(self.session, shape)


class OnnxKVCache:
    """See `minigpt.generation.backend.KVCache`. The caches stay where they are, and each run extends them there."""

    def __init__(self, session: onnxruntime.InferenceSession, shape: tuple[int, int, int, int]):
        """`shape`: (B, H, S, E), B rows."""
        self._session = session
        names = [value.name for value in session.get_inputs()]
        parts = [name for name in names if name.startswith("past_")]
        # one array, since for a large one NumPy asks the system for large pages, which are found faster
        self._caches = dict(
            zip(parts, np.zeros((len(parts), *shape), dtype=np.float32), strict=True)
        )
        B, _, S, _ = shape
        # what has been read, a <pad> before it, where pairs of ids matter
        self._ids = np.zeros((B, S + 1), dtype=np.int64) if "previous_ids" in names else None
        self._values: dict[int | None, dict[str, OrtValue]] = {}  # the caches of a row, or of all
        self._bindings: dict[tuple[int | None, int], _Binding] = {}

    def prefill(self, row: int, ids: np.ndarray, past: int) -> np.ndarray:
        return self._run(row, ids[None], np.arange(past, past + len(ids))[None])[0]

    def decode(self, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        return self._run(None, ids[:, None], past[:, None])[:, 0]

    def _run(self, row: int | None, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Ids and their positions (B, T), in `row` or, if None, in all → logits (B, T, V)."""
        B, T = ids.shape
        binding = self._bindings.get((row, T))
        if binding is None:
            if row not in self._values:
                rows = slice(row, None if row is None else row + 1)
                arrays = {name: cache[rows] for name, cache in self._caches.items()}
                self._values[row] = {
                    name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()
                }
            binding = _Binding(self._session, (B, T), self._values[row])
            if T <= KEPT:
                self._bindings[row, T] = binding
        binding.input_ids[:], binding.positions[:] = ids, positions
        if self._ids is not None:
            at = np.arange(B)[:, None] if row is None else row
            self._ids[at, positions + 1] = ids
            binding.previous_ids[:] = self._ids[at, positions]
        self._session.run_with_iobinding(binding.io)
        return binding.logits.copy()


class _Binding:
    """Where a run finds its inputs and leaves its outputs: arrays that are written and read in place."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        shape: tuple[int, int],
        caches: dict[str, OrtValue],
    ):
        """`shape`: (B, T); `caches`: each of B rows, by the name of its input."""
        self.io = session.io_binding()
        self.input_ids, self.positions, self.previous_ids = np.zeros((3, *shape), dtype=np.int64)
        outputs = session.get_outputs()
        self.logits = np.zeros((*shape, outputs[0].shape[-1]), dtype=np.float32)
        arrays = {
            name: getattr(self, name)
            for name in ("input_ids", "positions", "previous_ids", "logits")
        }
        # kept here: `io` itself knows addresses only
        self._values = {
            name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()
        } | caches
        for value in session.get_inputs():
            self.io.bind_ortvalue_input(value.name, self._values[value.name])
        for value in outputs:
            self.io.bind_ortvalue_output(
                value.name, self._values[value.name.replace("present", "past")]
            )


def _open(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, bool]:
    """The model, and whether it is a small one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        data = path.read_bytes()
        # a product of a small model is over before another thread has begun
        small = len(data) < SMALL
        options.intra_op_num_threads = threads or int(small)
        # from bytes, not from the path: ONNX Runtime then refuses weights kept in other files, which
        # a model from a stranger could point anywhere
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        ), small
    except OSError as error:
        hint = (
            "; run `dvc repro` to make one, or name another by --model"
            if isinstance(error, FileNotFoundError)
            else ""
        )
        raise UserError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    except Exception as error:  # ONNX Runtime's own exceptions share no narrower class
        reason = (
            "its weights lie in another file"
            if "external" in str(error).lower()
            else "damaged, or no ONNX"
        )
        raise UserError(
            f"{path}: not a model that can be run: {reason}; run `dvc repro` to make one"
        ) from None
