// Generate and score text, like minigpt/generation/engine.py and minigpt/evaluation/score.py.

import { gumbelNoise } from "./philox.js";
import { decide, EOS, logProbabilities } from "./sampling.js";

// Below this rate, drafts are given up for the rest of the text.
const MIN_ACCEPTANCE_RATE = 0.2;
const MIN_DRAFTED = 40; // draft tokens that do not count against the rate

// Return where the context of the token at `position` starts.
export function windowStart(position, maxSeqLen) {
  const stride = Math.max(1, Math.floor(maxSeqLen / 2));
  return Math.ceil(Math.max(0, position - maxSeqLen) / stride) * stride;
}

const PREFILL_CHUNK = 32; // tokens

// Return where the next chunk of a window ends; `read` of its tokens are already cached.
const chunkEnd = (start, read) => start + (Math.floor(read / PREFILL_CHUNK) + 1) * PREFILL_CHUNK;

// A text that is being generated.
export class Generation {
  forwardPasses = 0;
  drafted = 0;
  accepted = 0;
  finishReason = null; // until the end, then "eos", "length" or "stop"

  // Continue `ids`: <bos>, the prompt, and after `promptLength` tokens that were generated before.
  constructor(backend, ids, promptLength, maxLength, sampling, stop = []) {
    Object.assign(this, { backend, maxLength, sampling, stop });
    this.ids = [...ids];
    this.cache = backend.newCache();
    this.start = -backend.maxSeqLen; // of the cached part of the window, which is over
    this.decoder = backend.tokenizer.decoder();
    this.text = ids.slice(promptLength).map(this.decoder.feed).join("");
    this.noises = new Map(); // by position
  }

  // Verify draft tokens in one forward pass; return the accepted ones and one more token.
  //
  // Each is an object with its id, text, logits (V,) and the draft token of its position, if any.
  // A new window is read in chunks before; `contextLogits` are those of its positions.
  async advance() {
    const { backend, ids, sampling } = this;
    let read = ids.length - 1 - this.start; // tokens of the window in the cache
    if (read >= backend.maxSeqLen) {
      [this.start, read, this.contextLogits] = [windowStart(ids.length, backend.maxSeqLen), 0, []];
    }
    for (let end; (end = chunkEnd(this.start, read)) < ids.length; read = end - this.start) {
      const chunk = ids.slice(this.start + read, end);
      this.contextLogits.push(...(await this.cache.prefill(chunk, read)));
    }
    const newIds = ids.slice(this.start + read);
    const drafts = this.draft(backend.maxSeqLen - read - newIds.length);
    const logits = await this.cache.prefill([...newIds, ...drafts], read);
    this.forwardPasses++;
    this.drafted += drafts.length;
    this.contextLogits.push(...logits.splice(0, newIds.length - 1));
    const tokens = [];
    for (const [i, row] of logits.entries()) {
      const { token } = decide(row, this.noise(ids.length), sampling, ids);
      tokens.push(this.append(token, row, drafts[i]));
      if (token !== drafts[i] || this.finishReason) break;
      this.accepted++;
    }
    this.noises.clear();
    return tokens;
  }

  // Return draft tokens, at most `space`; none where they do not pay.
  draft(space) {
    const { backend, ids, sampling } = this;
    const remaining = this.maxLength - ids.length - 1; // the last token needs no forward pass
    const count = Math.min(backend.draftLength, space, remaining);
    const pays = this.accepted >= MIN_ACCEPTANCE_RATE * (this.drafted - MIN_DRAFTED);
    if (!backend.ngramTable || count < 1 || !pays) return [];
    const noise = (i) => this.noise(ids.length + i);
    return backend.ngramTable.draft(ids, count, noise, sampling.temperature);
  }

  noise(position) {
    if (!this.noises.has(position)) {
      const { seed, sample = 0 } = this.sampling;
      const V = this.backend.tokenizer.vocabSize;
      this.noises.set(position, gumbelNoise(seed, sample, position, V));
    }
    return this.noises.get(position);
  }

  append(id, logits, draft) {
    this.ids.push(id);
    let text = this.decoder.feed(id);
    if (id === EOS || this.ids.length >= this.maxLength) {
      this.finishReason = id === EOS ? "eos" : "length";
      text += this.decoder.end();
    }
    this.text += text;
    const found = this.stop.map((stop) => this.text.indexOf(stop)).filter((at) => at >= 0);
    if (found.length) {
      this.finishReason = "stop";
      this.text = this.text.slice(0, Math.min(...found));
    }
    return { id, text, logits, draft };
  }
}

// Return -log p in nats of each id but the first, in the windows that generation would use.
async function tokenLosses(backend, ids, progress = () => {}) {
  const losses = [];
  const cache = backend.newCache();
  while (losses.length < ids.length - 1) {
    // one forward pass for all positions whose windows start at the same place
    const first = losses.length + 1;
    const start = windowStart(first, backend.maxSeqLen);
    let end = first;
    while (end < ids.length && windowStart(end, backend.maxSeqLen) === start) end++;
    const logits = await cache.prefill(ids.slice(start, end - 1), 0);
    for (let i = first; i < end; i++) losses.push(-logProbabilities(logits[i - 1 - start])[ids[i]]);
    await progress(losses.length / (ids.length - 1));
  }
  return losses;
}

// Return the losses of a text: of each token, of each line in the context before it, and in total.
export async function score(backend, text, progress) {
  const { tokenizer } = backend;
  const ids = tokenizer.encode(text);
  const losses = await tokenLosses(backend, ids, progress);
  const tokens = [...tokenizer.split(text), ""].map((string, i) => ({
    id: ids[i + 1],
    text: string,
    loss: losses[i],
  }));
  const lines = tokenizer.normalize(text).split("\n");
  const scores = lines.map((line, i) => ({
    text: line,
    tokens: 0,
    characters: [...line].length + Number(i + 1 < lines.length),
    nats: 0,
  }));
  let line = 0; // a token belongs to the line in which it starts
  for (const token of tokens) {
    scores[line].tokens++;
    scores[line].nats += token.loss;
    line += token.text.split("\n").length - 1;
  }
  const sum = (key) => scores.reduce((total, score) => total + score[key], 0);
  const total = { tokens: sum("tokens"), characters: sum("characters"), nats: sum("nats") };
  return { tokens, lines: scores.map(withFigures), total: withFigures(total) };
}

const withFigures = (score) => ({
  ...score,
  loss: score.tokens ? score.nats / score.tokens : null,
  perplexity: score.tokens ? Math.exp(score.nats / score.tokens) : null,
  bits_per_char: score.characters ? score.nats / score.characters / Math.LN2 : null,
});
