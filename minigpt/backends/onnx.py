"""Generation with ONNX Runtime alone: one file, no PyTorch.

The model file (written by `minigpt/export.py`) has for each layer i of L these inputs and outputs,
with B batch, T new positions, P cached ones, V vocabulary, H heads, D channels a head:

    input_ids         int64    (B, T)         positions P … P+T-1; P+T ≤ max_seq_len
    past_id           int64    (B, 1)         the id before the first of input_ids; 0 at the start
    past_key_i        float32  (B, H, P, D)   P is 0 at the start
    past_value_i      float32  (B, H, P, D)
    logits            float32  (B, T, V)
    present_key_i     float32  (B, H, P+T, D)
    present_value_i   float32  (B, H, P+T, D)

and in its metadata, under "minigpt", a JSON text with "config", "tokenizer" and "training".
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from minigpt.errors import UserError
from minigpt.tokenizer import tokenizer_from_dict


class OnnxBackend:
    """A model file as `minigpt.inference` wants it.

    Raises:
        UserError: no such file, or not one of MiniGPT's ONNX models, or one whose weights lie
            outside the file.
    """

    def __init__(self, path: Path, threads: int = 0):
        """`threads`: for ONNX Runtime; 0 lets it choose."""
        self.session = _open(path, threads)
        self._inputs = [node.name for node in self.session.get_inputs()]
        try:
            self.metadata: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map["minigpt"])
            self.tokenizer = tokenizer_from_dict(self.metadata["tokenizer"])
            self.max_seq_len: int = self.metadata["config"]["max_seq_len"]
            _, H, _, D = self.session.get_inputs()[2].shape
        except (KeyError, ValueError, TypeError, AttributeError, IndexError):
            raise UserError(f"{path}: an ONNX file, but not one that this version of MiniGPT exported") from None
        self._empty_shape = (H, 0, D)

    def logits(self, ids: np.ndarray, past: list[Any] | None) -> tuple[np.ndarray, list[Any]]:
        """See `minigpt.inference.Backend`."""
        if past is None:
            empty = np.empty((len(ids), *self._empty_shape), dtype=np.float32)
            past = [np.zeros_like(ids[:, :1])] + [empty] * (len(self._inputs) - 2)
        logits, *present = self.session.run(None, dict(zip(self._inputs, [ids, *past], strict=True)))
        return np.asarray(logits), [ids[:, -1:], *present]


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        # from bytes, not from the path: ONNX Runtime then refuses weights kept in other files, which
        # a model from a stranger could point anywhere
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        hint = (
            "; run `dvc repro` to make one, or name another by --model" if isinstance(error, FileNotFoundError) else ""
        )
        raise UserError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    except Exception as error:  # ONNX Runtime's own exceptions share no narrower class
        reason = "its weights lie in another file" if "external" in str(error).lower() else "damaged, or no ONNX"
        raise UserError(f"{path}: not a model that can be run: {reason}; run `dvc repro` to make one") from None
