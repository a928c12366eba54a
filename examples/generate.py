"""Generate text from an exported model with NumPy and ONNX Runtime only, without MiniGPT.

    python examples/generate.py models/minigpt.onnx "The fox"

A model with subword tokens (BPE) also needs the package `tokenizers`. The decoding is greedy,
within one window. minigpt/generation/onnx_backend.py describes the inputs and outputs of the model.
The same steps work in any language with ONNX Runtime, such as C++, JavaScript or Rust.
"""

import json
import sys

import numpy as np
import onnxruntime

if len(sys.argv) != 3:
    sys.exit('usage: python examples/generate.py models/minigpt.onnx "The fox"')
session = onnxruntime.InferenceSession(sys.argv[1])
metadata = json.loads(session.get_modelmeta().custom_metadata_map["minigpt"])
max_seq_len = metadata["config"]["max_seq_len"]

# the prompt as ids, with <bos> (2) in front; the ids 0 to 3 are special tokens
if "characters" in metadata["tokenizer"]:
    characters = ["", "", "", "", *metadata["tokenizer"]["characters"]]
    ids_of = {character: token for token, character in enumerate(characters)}
    prompt = [2, *(ids_of.get(character, 1) for character in sys.argv[2])]  # 1 is <unk>
else:
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_str(json.dumps(metadata["tokenizer"]))
    prompt = bpe.encode(sys.argv[2]).ids[:-1]  # without <eos>

names = [value.name for value in session.get_inputs()]
caches = {
    value.name: np.zeros([1, *value.shape[1:]], np.float32)
    for value in session.get_inputs()
    if value.name.startswith("past_")
}

new = prompt  # tokens that the model has not processed yet: the prompt, then one at a time
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
if "characters" in metadata["tokenizer"]:
    print("".join(characters[token] for token in ids))
else:
    print(bpe.decode(ids[1:]))
