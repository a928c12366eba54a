"""MiniGPT's model file by hand: NumPy, ONNX Runtime and the description in minigpt/generation/onnx_backend.py, no more.

    python examples/generate.py models/minigpt.onnx "The fox"

The same few steps do it in C++, JavaScript or Rust.
"""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = json.loads(session.get_modelmeta().custom_metadata_map["minigpt"])
characters = metadata["tokenizer"]["characters"]  # of the ids from 4 on; 2 begins a text, 3 ends it
size = metadata["config"]["max_seq_len"]
caches = {
    value.name: np.zeros([1, *value.shape[1:]], np.float32)
    for value in session.get_inputs()
    if value.name.startswith("past_")
}

new = [2, *(characters.index(character) + 4 for character in sys.argv[2])]
ids: list[int] = []
while len(ids) + len(new) <= size and new != [3]:
    positions = np.arange(len(ids), len(ids) + len(new))
    inputs = {"input_ids": np.array([new]), "positions": positions[None], **caches}
    if metadata["config"].get("bigram_buckets"):
        inputs["previous_ids"] = np.array([[0, *ids, *new][len(ids) : -1]])
    logits, *present = session.run(None, inputs)
    caches = dict(zip(caches, present, strict=True))
    ids += new
    new = [int(logits[0, -1, 3:].argmax()) + 3]
print("".join(characters[token - 4] for token in ids[1:]))
