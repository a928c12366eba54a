// Run the modules of a built page in Node.js: node engine.mjs PAGE < jobs > results, both in JSON.
//
// A job is {"model": file, "call": one of CALLS, …}; its result is what the call returns.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const page = process.argv[2];
const load = (name) => import(pathToFileURL(`${page}/${name}`));
const [ort, { Backend }, engine, { isIntact }, { gumbelNoise }, { decide }] = await Promise.all(
  [
    "onnxruntime.js",
    "backend.js",
    "engine.js",
    "onnx_file.js",
    "philox.js",
    "sampling.js",
  ].map(load),
);
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync(`${page}/onnxruntime.wasm`);

const backends = new Map();
const backendOf = (model) => {
  if (!backends.has(model))
    backends.set(model, Backend.load(ort, new Uint8Array(readFileSync(model))));
  return backends.get(model);
};
const withSeed = (sampling) => ({ ...sampling, seed: BigInt(sampling.seed) });

const CALLS = {
  intact: (_, { file }) => isIntact(new Uint8Array(readFileSync(file))),

  noise: (_, { seed, sample, position, size }) =>
    Array.from(gumbelNoise(BigInt(seed), sample, position, size)),

  decide: (_, { logits, noise, sampling, ids }) =>
    decide(logits, noise, withSeed(sampling), ids).token,

  encode: ({ tokenizer }, { text }) => tokenizer.encode(text),

  decode({ tokenizer }, { ids }) {
    const decoder = tokenizer.decoder();
    return ids.map((id) => decoder.feed(id)).join("") + decoder.end();
  },

  async generate(backend, { prompt, max_new_tokens, sampling, stop }) {
    const ids = backend.tokenizer.encode(prompt).slice(0, -1);
    const end = ids.length + max_new_tokens;
    const generation = new engine.Generation(
      backend,
      ids,
      ids.length,
      end,
      withSeed(sampling),
      stop,
    );
    while (!generation.finishReason) await generation.advance();
    const { text, finishReason, forwardPasses, drafted, accepted } = generation;
    return {
      ids: generation.ids.slice(ids.length),
      text,
      finishReason,
      forwardPasses,
      drafted,
      accepted,
    };
  },

  async score(backend, { text }) {
    const { total, lines } = await engine.score(backend, text);
    return [total, ...lines];
  },

  async attention(backend, { ids }) {
    return (await backend.attention(ids)).map((layer) => Array.from(layer));
  },
};

const results = [];
for (const job of JSON.parse(readFileSync(0, "utf8"))) {
  results.push(await CALLS[job.call](job.model && (await backendOf(job.model)), job));
}
console.log(JSON.stringify(results));
