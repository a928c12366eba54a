"""Generate text from an exported model with NumPy and ONNX Runtime only, without MiniGPT.

    python examples/generate.py models/minigpt.onnx "The fox"

The decoding is greedy, within one window. minigpt/generation/onnx_backend.py describes the inputs
and outputs of the model. The same steps work in any language with ONNX Runtime, such as C++,
JavaScript or Rust.
"""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = json.loads(session.get_modelmeta().custom_metadata_map["minigpt"])
characters = metadata["tokenizer"]["characters"]  # those of the ids 4, 5, …; ids 0 to 3 are special
max_seq_len = metadata["config"]["max_seq_len"]
names = [value.name for value in session.get_inputs()]
caches = {
    value.name: np.zeros([1, *value.shape[1:]], np.float32)
    for value in session.get_inputs()
    if value.name.startswith("past_")
}

# tokens that the model has not processed yet: <bos> (2) and the prompt, then one at a time
new = [2, *(characters.index(character) + 4 for character in sys.argv[2])]
ids: list[int] = []
while len(ids) + len(new) <= max_seq_len and new != [3]:  # 3 is <eos>
    positions = np.arange(len(ids), len(ids) + len(new))
    inputs = {"input_ids": np.array([new]), "positions": positions[None], **caches}
    for distance, name in enumerate(("previous_ids", "second_previous_ids"), start=1):
        if name in names:  # the id one or two before each new one
            inputs[name] = np.array([[0] * distance + [*ids, *new]])[:, len(ids) : -distance]
    logits, *present = session.run(None, inputs)
    caches = dict(zip(caches, present, strict=True))
    ids += new
    new = [int(logits[0, -1, 3:].argmax()) + 3]  # the special tokens 0 to 2 are never generated
print("".join(characters[token - 4] for token in ids[1:]))
