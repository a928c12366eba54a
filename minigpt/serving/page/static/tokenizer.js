// Text ↔ ids, like minigpt/tokenizer. `tokenizerFrom` takes the values in the metadata of a model.

import { BOS, EOS, SPECIAL_TOKENS, UNK } from "./sampling.js";

const LONE_SURROGATE = /([\ud800-\udfff])/u;

export const tokenizerFrom = (values) =>
  values.model ? new BPETokenizer(values) : new CharTokenizer(values);

// Give each character one spelling; "none" changes nothing.
function normalize(text, form, lowercase) {
  const compose = (string) => (form === "none" ? string : string.normalize(form));
  return compose(lowercase ? compose(text).replaceAll("Σ", "σ").toLowerCase() : text);
}

// One id per character.
class CharTokenizer {
  kind = "char";

  constructor({ characters, normalization, lowercase }) {
    this.normalize = (text) => normalize(text, normalization, lowercase);
    this.tokenStrings = [...SPECIAL_TOKENS.map(() => ""), ...characters];
    this.vocabSize = this.tokenStrings.length;
    this.ids = new Map(characters.map((character, i) => [character, SPECIAL_TOKENS.length + i]));
  }

  // Return the ids of the text, between <bos> and <eos>.
  encode(text) {
    const ids = Array.from(this.normalize(text), (character) => this.ids.get(character) ?? UNK);
    return [BOS, ...ids, EOS];
  }

  // Return the text of each id of the text, in order; characters that become <unk> keep theirs.
  split(text) {
    return [...this.normalize(text)];
  }

  bytes(id) {
    return new TextEncoder().encode(this.tokenStrings[id]);
  }

  decoder() {
    return { feed: (id) => this.tokenStrings[id], end: () => "" };
  }
}

// GPT-2's pattern of words, numbers, punctuation and white space.
const WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

// The character that stands for each byte in GPT-2's tokens: visible ones for themselves, and
// characters from U+0100 on for the others.
const CHARACTER_OF = new Array(256);
{
  const visible = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    CHARACTER_OF[byte] = String.fromCodePoint(visible(byte) ? byte : next++);
  }
}
const BYTE_OF = new Map(CHARACTER_OF.map((character, byte) => [character, byte]));

// Byte pair encoding over bytes, in the format of the library `tokenizers`.
class BPETokenizer {
  kind = "bpe";

  constructor({ model, normalizer }) {
    const steps = normalizer.normalizers.map(({ type }) => type);
    const form = steps.find((type) => type.startsWith("NF")) ?? "none";
    this.normalize = (text) => normalize(text, form, steps.includes("Lowercase"));
    this.ids = model.vocab;
    this.vocabSize = Object.keys(model.vocab).length;
    this.tokens = Object.keys(model.vocab).sort((a, b) => model.vocab[a] - model.vocab[b]);
    const pairs = model.merges.map((merge) => (Array.isArray(merge) ? merge.join(" ") : merge));
    this.ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
    this.words = new Map(); // ids of the words encoded so far
    const decode = (id) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.bytes(id));
    this.tokenStrings = this.tokens.map((_, id) => decode(id));
  }

  encode(text) {
    // a lone surrogate is not a character, so it becomes <unk>
    const parts = text.split(LONE_SURROGATE);
    const ids = parts.flatMap((part, i) => (i % 2 ? [UNK] : this.encodePart(this.normalize(part))));
    return [BOS, ...ids, EOS];
  }

  encodePart(text) {
    return (text.match(WORDS) ?? []).flatMap((word) => {
      if (!this.words.has(word)) this.words.set(word, this.merge(word));
      return this.words.get(word);
    });
  }

  // Merge the pair of neighbors that was learned first, until there is none.
  merge(word) {
    let parts = Array.from(new TextEncoder().encode(word), (byte) => CHARACTER_OF[byte]);
    for (;;) {
      let [rank, at] = [Infinity, -1];
      for (let i = 0; i + 1 < parts.length; i++) {
        const found = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (found < rank) [rank, at] = [found, i];
      }
      if (at < 0) return parts.map((part) => this.ids[part]);
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  // A character of several tokens is the text of the last one.
  split(text) {
    const decoder = this.decoder();
    return this.encode(text).slice(1, -1).map(decoder.feed);
  }

  bytes(id) {
    if (id < SPECIAL_TOKENS.length) return new Uint8Array();
    return Uint8Array.from(this.tokens[id], (character) => BYTE_OF.get(character));
  }

  // Return a decoder that buffers bytes until a character is complete.
  decoder() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      feed: (id) => decoder.decode(this.bytes(id), { stream: true }),
      end: () => decoder.decode(),
    };
  }
}
