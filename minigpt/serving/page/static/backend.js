// Run an exported model with ONNX Runtime; minigpt/generation/onnx_backend.py describes its inputs
// and outputs. B is 1: one sequence at a time.

import { readMetadata, withAttention, withNewEntries } from "./onnx_file.js";
import { readNgramTable } from "./ngram_table.js";
import { tokenizerFrom } from "./tokenizer.js";

const PREVIOUS = { previous_ids: 1, second_previous_ids: 2 }; // distance of the token before each

export class Backend {
  draftLength = 2; // WebAssembly reads more tokens at once little faster than one by one

  // Load the model in `file` (bytes); `ort` is the module of ONNX Runtime.
  static async load(ort, file) {
    const backend = new Backend();
    const metadata = readMetadata(file);
    const tokenizer = tokenizerFrom(metadata.tokenizer);
    Object.assign(backend, { ort, file, metadata, tokenizer });
    backend.maxSeqLen = metadata.config.max_seq_len;
    backend.numLayers = metadata.config.num_layers;
    backend.numHeads = metadata.config.num_heads;
    backend.ngramTable = await readNgramTable(metadata, tokenizer.vocabSize);
    // Copying whole caches out of WebAssembly would take longer than many a forward pass.
    backend.session = await ort.InferenceSession.create(withNewEntries(file));
    return backend;
  }

  newCache(session = this.session) {
    return new KVCache(this.ort, session);
  }

  // Return the weights of attention over a window of T ids: for each layer (H, T, T), as one array.
  //
  // A second session computes them, made on demand: generation would be slower with its outputs.
  async attention(ids) {
    this.watched ??= this.ort.InferenceSession.create(withAttention(this.file));
    const outputs = await this.newCache(await this.watched).run(ids, 0);
    const T = ids.length;
    return Array.from({ length: this.numLayers }, (_, layer) => {
      const { data, dims } = outputs[`attention_${layer}`]; // (1, H, T, S), with T valid columns
      const weights = new Float32Array(dims[1] * T * T);
      for (let row = 0; row < dims[1] * T; row++) {
        weights.set(data.subarray(row * dims[3], row * dims[3] + T), row * T);
      }
      return weights;
    });
  }

  async release() {
    await this.session.release();
    await (await this.watched)?.release();
  }
}

class KVCache {
  ids = []; // of the positions so far

  constructor(ort, session) {
    Object.assign(this, { ort, session });
    const zeros = ({ name, shape }) => {
      const dims = [1, ...shape.slice(1)]; // (B, H, S, D)
      return [
        name,
        new ort.Tensor("float32", new Float32Array(dims.reduce((a, b) => a * b)), dims),
      ];
    };
    const inputs = session.inputMetadata.filter(({ name }) => name.startsWith("past_"));
    this.past = Object.fromEntries(inputs.map(zeros));
  }

  // Append `ids` after `cachedLength` positions; return their logits, an array (V,) for each.
  async prefill(ids, cachedLength) {
    const { logits } = await this.run(ids, cachedLength);
    const V = logits.dims[2];
    return ids.map((_, t) => logits.data.slice(t * V, (t + 1) * V));
  }

  async run(ids, cachedLength) {
    this.ids.splice(cachedLength, Infinity, ...ids);
    const positions = ids.map((_, t) => cachedLength + t);
    const int64 = (values) =>
      new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const inputs = { input_ids: int64(ids), positions: int64(positions), ...this.past };
    for (const [name, distance] of Object.entries(PREVIOUS)) {
      if (!this.session.inputNames.includes(name)) continue;
      inputs[name] = int64(positions.map((position) => this.ids[position - distance] ?? 0));
    }
    const names = this.session.outputNames.filter((name) => !name.startsWith("present_"));
    const outputs = await this.session.run(inputs, names);
    for (const [name, { data, dims }] of Object.entries(this.past)) {
      const entries = outputs[name.replace("past", "new")]?.data; // (1, H, 1, T, D)
      const [, H, S, D] = dims;
      const length = ids.length * D;
      for (let h = 0; entries && h < H; h++) {
        data.set(entries.subarray(h * length, (h + 1) * length), (h * S + cachedLength) * D);
      }
    }
    return outputs;
  }
}
