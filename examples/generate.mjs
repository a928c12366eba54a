// Generate text from an exported model with ONNX Runtime in Node.js only, without MiniGPT.
//
//     npm install onnxruntime-web
//     node examples/generate.mjs models/minigpt.onnx "The fox"
//
// The decoding is greedy, within one window, of a model with characters as tokens.
// minigpt/generation/onnx_backend.py describes the inputs and outputs of the model.

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web/wasm";

// Return the fields of a protobuf message as [number, value]: ONNX Runtime does not read metadata.
function fields(bytes) {
  const found = [];
  let at = 0;
  const varint = (shift = 1) =>
    (bytes[at] & 127) * shift + (bytes[at++] & 128 && varint(shift * 128));
  while (at < bytes.length) {
    const tag = varint();
    if (tag % 8 === 0) found.push([Math.floor(tag / 8), varint()]);
    else {
      const length = tag % 8 === 2 ? varint() : tag % 8 === 1 ? 8 : 4;
      found.push([Math.floor(tag / 8), bytes.subarray(at, (at += length))]);
    }
  }
  return found;
}

const [file, prompt] = process.argv.slice(2);
const bytes = readFileSync(file);
const entries = fields(bytes)
  .filter(([number]) => number === 14)
  .map(([, entry]) => fields(entry).map(([, text]) => text.toString()));
const { config, tokenizer } = JSON.parse(Object.fromEntries(entries).minigpt);
const { characters } = tokenizer; // those of the ids 4, 5, …; ids 0 to 3 are special
const idOf = new Map(characters.map((character, i) => [character, i + 4]));

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(bytes);
const tensor = (type, data, dims) => new ort.Tensor(type, data, dims);
const int64 = (values) => tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
let caches = session.inputMetadata
  .filter(({ name }) => name.startsWith("past_"))
  .map(({ name, shape: [, ...dims] }) => [
    name,
    tensor("float32", new Float32Array(dims.reduce((a, b) => a * b)), [1, ...dims]),
  ]);

// tokens that the model has not processed yet: <bos> (2) and the prompt, then one at a time
let fresh = [2, ...Array.from(prompt, (character) => idOf.get(character) ?? 1)]; // 1 is <unk>
const ids = [];
while (ids.length + fresh.length <= config.max_seq_len && fresh[0] !== 3) {
  // 3 is <eos>
  const positions = fresh.map((_, i) => ids.length + i);
  ids.push(...fresh);
  const inputs = {
    input_ids: int64(fresh),
    positions: int64(positions),
    ...Object.fromEntries(caches),
  };
  for (const [distance, name] of [
    [1, "previous_ids"],
    [2, "second_previous_ids"],
  ]) {
    // the id one or two before
    if (session.inputNames.includes(name))
      inputs[name] = int64(positions.map((at) => ids[at - distance] ?? 0));
  }
  const outputs = await session.run(inputs);
  caches = caches.map(([name]) => [name, outputs[name.replace("past", "present")]]);
  const last = outputs.logits.data.slice(-config.vocab_size);
  fresh = [last.indexOf(Math.max(...last.subarray(3)), 3)]; // the special tokens 0 to 2 are never generated
}
console.log(
  ids
    .slice(1)
    .map((id) => characters[id - 4])
    .join(""),
);
