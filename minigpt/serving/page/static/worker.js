// Runs the model in a thread of its own, so that the page stays responsive. `client.js` calls it.

import * as ort from "./onnxruntime.js";
import { Backend } from "./backend.js";
import { Generation, score, windowStart } from "./engine.js";

const INTERVAL = 30; // milliseconds between messages with new tokens

ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
ort.env.wasm.wasmPaths = { wasm: new URL("onnxruntime.wasm", import.meta.url).href };
ort.env.logLevel = "error";

let backend;
let stopped = false;
const users = new Set(); // calls in progress that use the backend

// Let messages in, such as the one that stops a generation.
const channel = new MessageChannel();
channel.port1.start();
const breathe = () =>
  new Promise((resolve) => {
    channel.port1.addEventListener("message", resolve, { once: true });
    channel.port2.postMessage(null);
  });

const CALLS = {
  async load({ file }) {
    const loaded = await Backend.load(ort, file); // the earlier model stays if this fails
    while (users.size) {
      stopped = true; // a text that is being written ends here
      await Promise.allSettled(users);
    }
    const earlier = backend;
    backend = loaded;
    await earlier?.release();
  },

  // Continue `ids`; report tokens as they come, and return the figures of the generation.
  async generate({ ids, promptLength, maxLength, sampling, stop }, report) {
    stopped = false;
    const generation = new Generation(backend, ids, promptLength, maxLength, sampling, stop);
    const began = performance.now();
    let [tokens, sent, context] = [[], 0, null];
    const send = () => report({ tokens, context, seconds: (performance.now() - began) / 1000 });
    while (!generation.finishReason && ids.length < maxLength && !stopped) {
      tokens.push(...(await generation.advance()));
      if (!sent) context = { start: generation.start, logits: generation.contextLogits };
      if (performance.now() - sent < INTERVAL && !generation.finishReason) continue;
      send();
      [tokens, sent, context] = [[], performance.now(), null];
      await breathe();
    }
    const { finishReason, text, forwardPasses, drafted, accepted } = generation;
    const seconds = (performance.now() - began) / 1000;
    return { finishReason, text, forwardPasses, drafted, accepted, seconds };
  },

  stop() {
    stopped = true;
  },

  // Return the attention in the window in which the token at `position` is predicted.
  async attention({ ids, position }) {
    const start = windowStart(position, backend.maxSeqLen);
    const layers = await backend.attention(ids.slice(start, position));
    return { start, length: position - start, layers, numHeads: backend.numHeads };
  },

  score: ({ text }, report) =>
    score(backend, text, async (share) => {
      report(share);
      await breathe();
    }),
};

onmessage = async ({ data: { call, method, values } }) => {
  const running = CALLS[method](values, (progress) => postMessage({ call, progress }));
  if (method !== "load") users.add(running);
  try {
    postMessage({ call, result: await running });
  } catch (error) {
    postMessage({ call, error: error.message ?? String(error) });
  }
  users.delete(running);
};
