"""Inference backend that runs an exported file with ONNX Runtime, without PyTorch.

The file (written by `minigpt/export/onnx_graph.py`) has the inputs and outputs below, the caches
once for each layer i. B is the batch size, T the number of new tokens, V the vocabulary size, S the
context length (max_seq_len), H the number of cached heads, D their size.

    input_ids        int64    (B, T)        B is 1 where T is more than 1
    positions        int64    (B, T)        of the new tokens in the window: p … p+T-1; p may differ
                                            between rows
    previous_ids     int64    (B, T)        the token before each, 0 at position 0; an input only if
                                            config.bigram_buckets or trigram_buckets is not 0
    second_previous_ids  int64 (B, T)       the token two before each, 0 at positions 0 and 1; an
                                            input only if config.trigram_buckets is not 0
    past_key_i       float32  (B, H, S, D)  the first p positions are valid; zeros at the start
    past_value_i     float32  (B, H, S, D)
    logits           float32  (B, T, V)     of the token after each of input_ids
    present_key_i    float32  (B, H, S, D)  the past with T more positions; bound to the memory of
    present_value_i  float32  (B, H, S, D)  the past, so that nothing is copied

The metadata key "minigpt" holds a JSON text with the "config", the "tokenizer", a summary of the
"training" and the "ngram_table" (`minigpt/data/ngram_table.py`); the key "sha256" holds a digest of
everything before it (`onnx_digest.py`). `examples/generate.py` runs such a file with NumPy and ONNX
Runtime alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from minigpt.common.errors import UserError, one_line
from minigpt.common.files import parse_json
from minigpt.common.format_version import check_format_version
from minigpt.data.ngram_table import read_ngram_table
from minigpt.generation.onnx_digest import digests
from minigpt.tokenizer import BOS, Tokenizer, tokenizer_from_dict

PREVIOUS = {"previous_ids": 1, "second_previous_ids": 2}  # distance of the token before each
SMALL_MODEL = 1 << 24  # bytes of the file
MAX_BOUND_TOKENS = 8  # of longer passes only the last binding is kept: windows move by equal steps


class OnnxBackend:
    """An exported model. Implements `minigpt.generation.backend.Backend`.

    Attributes:
        sha256: Digest of the whole file.
        verified: True if the file contains a digest, which is right; False if it contains none.
    """

    def __init__(self, path: Path, threads: int = 0):
        """Load the file at `path`.

        `threads` is the number of threads of ONNX Runtime. 0 means one for a small model, whose
        products finish before a second thread has started, and else one per core.

        Raises:
            UserError: the file is missing, damaged, not an exported MiniGPT model, or keeps its
                weights in another file.
        """
        self._path, data = path, _read(path)
        self.sha256, intact = digests(data)
        if intact is False:
            raise UserError(f"{path}: damaged: its SHA-256 is wrong; export or download it again")
        self.verified = intact is not None
        small = len(data) < SMALL_MODEL
        self.session = _load(path, data, threads or int(small))
        try:
            self.metadata: dict[str, Any] = parse_json(
                self.session.get_modelmeta().custom_metadata_map["minigpt"]
            )
            check_format_version(path, self.metadata)
            self.tokenizer = tokenizer_from_dict(self.metadata["tokenizer"])
            quantization = self.metadata.get("quantization")
            # Quantized activations turn differences in the last bit into visible ones. The kernels
            # differ so much between one token and several of a row, hence there are no drafts.
            self.ngram_table = (
                None if quantization else read_ngram_table(self.metadata, self.tokenizer.vocab_size)
            )
            # in older files, with larger blocks, also between one row and several
            batchable = not quantization or quantization.get("block_size", 128) <= 64
            shape = _check_interface(self.session, self.metadata["config"], self.tokenizer)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: an ONNX file, but not one that this version of MiniGPT exported: "
                f"{one_line(error)}"
            ) from None
        self._heads, self.max_seq_len, self._head_size = shape
        self.draft_length = 5  # a pass over this many tokens takes little longer than over one
        # a batch shares the reading of the weights; small weights stay in the CPU's caches anyway
        self.max_batch_size = (6 if small else 16) if batchable else 1
        self._try()

    def _try(self) -> None:
        """Run the model on its last token and at its last position.

        Raises:
            UserError: It fails, or a logit is not finite.
        """
        ids = np.array([BOS, self.tokenizer.vocab_size - 1])
        logits = self.new_cache(1).prefill(0, ids, self.max_seq_len - len(ids))
        if not np.isfinite(logits).all():
            raise UserError(f"{self._path}: damaged: it computes numbers that are not finite")

    def new_cache(self, batch_size: int) -> "OnnxKVCache":
        shape = (batch_size, self._heads, self.max_seq_len, self._head_size)
        return OnnxKVCache(self.session, shape, self._path)


class OnnxKVCache:
    """Implements `minigpt.generation.backend.KVCache`; its arrays are extended in place."""

    def __init__(
        self, session: onnxruntime.InferenceSession, shape: tuple[int, int, int, int], path: Path
    ):
        """Allocate caches of `shape` (B, H, S, D); messages name the model's `path`."""
        self._session, self._path = session, path
        names = [value.name for value in session.get_inputs()]
        parts = [name for name in names if name.startswith("past_")]
        # one large array: NumPy requests huge pages for it, which makes access faster
        caches = np.zeros((len(parts), *shape), dtype=np.float32)
        self._caches = dict(zip(parts, caches, strict=True))
        B, _, S, _ = shape
        self._positions = np.arange(S)
        # distance of each input that repeats earlier tokens
        self._previous = {name: PREVIOUS[name] for name in names if name in PREVIOUS}
        # the token at position t is at t + 2, after two <pad>; kept only if the model reads it
        self._ids = np.zeros((B, len(PREVIOUS) + S), dtype=np.int64)
        # by row, or None for all rows
        self._values: dict[int | None, dict[str, OrtValue]] = {}
        self._bindings: dict[tuple[int | None, int], _Binding] = {}  # by row and T
        self._long_bindings: dict[tuple[int | None, int], _Binding] = {}  # one at most

    def prefill(self, row: int, ids: Sequence[int] | np.ndarray, cached_length: int) -> np.ndarray:
        T = len(ids)
        binding = self._bindings.get((row, T)) or self._bind(row, T)
        end = cached_length + T
        binding.input_ids[0] = ids
        binding.positions[0] = self._positions[cached_length:end]
        if self._previous:
            first, last = cached_length + len(PREVIOUS), end + len(PREVIOUS)
            self._ids[row, first:last] = ids
            for name, distance in self._previous.items():
                binding.arrays[name][0] = self._ids[row, first - distance : last - distance]
        logits: np.ndarray = self._run(binding)[0]
        return logits  # (T, V)

    def decode(self, ids: np.ndarray, cached_lengths: np.ndarray) -> np.ndarray:
        binding = self._bindings.get((None, 1)) or self._bind(None, 1)
        binding.input_ids[:, 0], binding.positions[:, 0] = ids, cached_lengths
        if self._previous:
            rows, columns = np.arange(len(ids)), cached_lengths + len(PREVIOUS)
            self._ids[rows, columns] = ids
            for name, distance in self._previous.items():
                binding.arrays[name][:, 0] = self._ids[rows, columns - distance]
        logits: np.ndarray = self._run(binding)[:, 0]
        return logits  # (B, V)

    def _run(self, binding: "_Binding") -> np.ndarray:
        """Run the model on bound inputs; return a copy of the logits (B, T, V)."""
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:  # the exceptions of ONNX Runtime share no narrower class
            raise UserError(
                f"{self._path}: cannot be run: {one_line(error)}; export it again"
            ) from None
        return binding.logits.copy()

    def _bind(self, row: int | None, length: int) -> "_Binding":
        """Return a binding for `length` tokens of one row, or of all if it is None, and keep it."""
        bindings, key = self._bindings, (row, length)
        if length > MAX_BOUND_TOKENS:
            bindings = self._long_bindings
            if key not in bindings:
                bindings.clear()
        if key not in bindings:
            B = len(self._ids) if row is None else 1
            bindings[key] = _Binding(self._session, (B, length), self._cache_values(row))
        return bindings[key]

    def _cache_values(self, row: int | None) -> dict[str, OrtValue]:
        """Return the caches of one row or all as values of ONNX Runtime, which share the memory."""
        if row not in self._values:
            rows = slice(row, None if row is None else row + 1)
            self._values[row] = {
                name: OrtValue.ortvalue_from_numpy(cache[rows])
                for name, cache in self._caches.items()
            }
        return self._values[row]


class _Binding:
    """Inputs and outputs of a forward pass: arrays that ONNX Runtime reads and writes in place."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        shape: tuple[int, int],
        caches: dict[str, OrtValue],
    ):
        """Bind arrays of `shape` (B, T), and `caches` of B rows by the name of their input."""
        self.io = session.io_binding()
        outputs = session.get_outputs()
        self.input_ids, self.positions = np.zeros((2, *shape), dtype=np.int64)
        self.logits = np.zeros((*shape, outputs[0].shape[-1]), dtype=np.float32)
        self.arrays = {name: np.zeros(shape, dtype=np.int64) for name in PREVIOUS}
        self.arrays |= {name: getattr(self, name) for name in ("input_ids", "positions", "logits")}
        values = {name: OrtValue.ortvalue_from_numpy(arr) for name, arr in self.arrays.items()}
        self._values = values | caches  # kept alive here, as `io` holds only addresses
        for value in session.get_inputs():
            self.io.bind_ortvalue_input(value.name, self._values[value.name])
        for value in outputs:
            past = value.name.replace("present", "past")
            self.io.bind_ortvalue_output(value.name, self._values[past])


def _check_interface(
    session: onnxruntime.InferenceSession, config: dict[str, Any], tokenizer: Tokenizer
) -> tuple[int, int, int]:
    """Compare inputs and outputs with the metadata; return the sizes (H, S, D) of a cache.

    Raises:
        ValueError: They do not fit together; the message names the first difference.
    """
    values = [*session.get_inputs(), *session.get_outputs()]
    found = {value.name: (value.type, value.shape) for value in values}
    L = sum(name.startswith("past_key_") for name in found)
    _, H, S, D = found["past_key_0"][1]
    V = tokenizer.vocab_size
    sizes = {"num_layers": L, "num_heads": H, "max_seq_len": S, "vocab_size": V}
    for name, size in sizes.items():
        if config[name] != size:
            raise ValueError(f"its graph has a {name} of {size}, its config of {config[name]}")
    kinds = [f"{part}_{layer}" for layer in range(L) for part in ("key", "value")]
    caches = [f"{time}_{kind}" for time in ("past", "present") for kind in kinds]
    distance = 2 if config.get("trigram_buckets") else int(bool(config.get("bigram_buckets")))
    ids = ["input_ids", "positions", *list(PREVIOUS)[:distance]]
    expected: dict[str, tuple[str, list[str | int]]] = {
        **dict.fromkeys(ids, ("tensor(int64)", ["B", "T"])),
        **dict.fromkeys(caches, ("tensor(float)", ["B", H, S, D])),
        "logits": ("tensor(float)", ["B", "T", V]),
    }
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name)}, but must be {expected.get(name)}")
    return H, S, D


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _load(path: Path, data: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions
    options.intra_op_num_threads = threads
    try:
        # from bytes instead of the path: ONNX Runtime then refuses weights in other files, which a
        # model of unknown origin could point anywhere
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exceptions of ONNX Runtime share no narrower class
        external = "external" in str(error).lower()
        reason = "its weights are in another file" if external else "damaged, or not ONNX"
        raise UserError(f"{path}: not a model that can be run: {reason}; export it again") from None
