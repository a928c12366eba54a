// Draft tokens from the n-gram table of a model, like minigpt/generation/draft.py. The stored form
// is described in minigpt/data/ngram_table.py.

import { EOS } from "./sampling.js";

const MAX_CONTEXT = 5; // tokens
const STEP = -1 / 16; // resolution of the log-probabilities, in nats
const MAX_TEMPERATURE = 1e6;

// Return the table in the metadata of a model, or null if there is none.
export async function readNgramTable({ ngram_table: stored, quantization }, vocabSize) {
  if (!stored || quantization) return null;
  const compressed = Uint8Array.from(atob(stored), (character) => character.charCodeAt(0));
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = new DataView(await new Response(stream).arrayBuffer());
  let at = 0;
  const number = () => data.getUint32(4 * at++, true);
  if (number() !== 1) throw new Error("n-gram table of another version");
  const counts = Array.from({ length: MAX_CONTEXT }, number);
  const rows = new Map([["", 0]]); // context → row
  counts.forEach((count, i) => {
    for (let n = 0; n < count; n++)
      rows.set(Array.from({ length: i + 1 }, number).join(), rows.size);
  });
  return new NgramTable(rows, new Uint8Array(data.buffer, 4 * at), vocabSize);
}

class NgramTable {
  constructor(rows, steps, vocabSize) {
    Object.assign(this, { rows, steps, vocabSize });
  }

  // Draft `count` tokens after `ids`; an <eos> is the last. noise(i) is that of the i-th one.
  draft(ids, count, noise, temperature) {
    const factor = Math.min(temperature, MAX_TEMPERATURE);
    let context = ids.slice(-MAX_CONTEXT);
    const tokens = [];
    for (let i = 0; i < count && tokens.at(-1) !== EOS; i++) {
      let row;
      while ((row = this.rows.get(context.join())) === undefined) context = context.slice(1);
      tokens.push(this.mostLikely(row, noise(i), factor));
      context = [...context, tokens[i]].slice(-MAX_CONTEXT);
    }
    return tokens;
  }

  mostLikely(row, noise, factor) {
    let [token, highest] = [0, -Infinity];
    for (let id = 0; id < this.vocabSize; id++) {
      const gumbel = Math.fround(noise[id] * factor);
      const score = Math.fround(this.steps[row * this.vocabSize + id] * STEP + gumbel);
      if (score > highest) [token, highest] = [id, score];
    }
    return token;
  }
}
