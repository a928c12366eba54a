// Compute logits of exported models in WebAssembly: node logits.mjs NODE_MODULES
//
// Standard input: {"models": [file, …], "passes": [[id, …], …]}. The passes are consecutive parts of
// one sequence; each extends the KV cache. Standard output: for each model and pass, logits (T, V).
// minigpt/generation/onnx_backend.py describes the inputs and outputs of a model.

import { readFileSync } from "node:fs";

const ort = await import(`${process.argv[2]}/onnxruntime-web/dist/ort.wasm.bundle.min.mjs`);
ort.env.wasm.numThreads = 1;

const zeros = ([, ...shape]) => {
  const dims = [1, ...shape]; // (B, H, S, D) with B = 1
  return new ort.Tensor("float32", new Float32Array(dims.reduce((a, b) => a * b)), dims);
};

const int64 = (values) =>
  new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]); // (B, T)

async function logitsOf(model, passes) {
  const session = await ort.InferenceSession.create(readFileSync(model));
  const past = session.inputMetadata.filter(({ name }) => name.startsWith("past_"));
  let cache = Object.fromEntries(past.map(({ name, shape }) => [name, zeros(shape)]));
  const results = [];
  const ids = [];
  for (const pass of passes) {
    const positions = pass.map((_, i) => ids.length + i);
    ids.push(...pass);
    const inputs = { input_ids: int64(pass), positions: int64(positions), ...cache };
    for (const [name, distance] of [
      ["previous_ids", 1],
      ["second_previous_ids", 2],
    ]) {
      if (session.inputNames.includes(name)) {
        inputs[name] = int64(positions.map((position) => ids[position - distance] ?? 0));
      }
    }
    const { logits, ...present } = await session.run(inputs);
    cache = Object.fromEntries(
      Object.entries(present).map(([name, value]) => [name.replace("present", "past"), value]),
    );
    const V = logits.dims[2];
    results.push(pass.map((_, t) => Array.from(logits.data.slice(t * V, (t + 1) * V))));
  }
  await session.release();
  return results;
}

const { models, passes } = JSON.parse(readFileSync(0, "utf8"));
const results = [];
for (const model of models) results.push(await logitsOf(model, passes));
console.log(JSON.stringify(results));
