// The view Tokens: the ids of what is typed.

import { $, glyph, h, spoken } from "./dom.js";
import { UNK } from "./sampling.js";

const SHOWN = 2000; // chips
let model;

export function startTokens(loaded) {
  model = loaded;
  const { tokenizer } = model;
  $("vocabulary-title").textContent = `The vocabulary: ${tokenizer.vocabSize} tokens`;
  $("vocabulary").replaceChildren(
    ...tokenizer.tokenStrings.slice(0, SHOWN).map((text, id) => chip(id, text)),
  );
  update();
}

function chip(id, text) {
  const kind = id === UNK ? "unknown" : id < 4 ? "special" : "";
  const { tokenizer } = model;
  const seen = h("b", { "aria-label": spoken(tokenizer, id, text) }, glyph(tokenizer, id, text));
  return h("li", { class: kind }, seen, h("span", {}, String(id)));
}

function update() {
  const text = $("tokens-text").value;
  const ids = model.tokenizer.encode(text);
  const strings = ["", ...model.tokenizer.split(text), ""];
  $("tokens-list").replaceChildren(...ids.slice(0, SHOWN).map((id, i) => chip(id, strings[i])));
  const unknown = [...new Set(strings.filter((_, i) => ids[i] === UNK))];
  const characters = [...text].length;
  const parts = [`${characters} characters are ${ids.length - 2} tokens, between <bos> and <eos>.`];
  if (unknown.length) parts.push(`Not in the vocabulary, so read as <unk>: ${unknown.join(" ")}`);
  if (ids.length > SHOWN) parts.push(`Only the first ${SHOWN} are shown.`);
  $("tokens-summary").textContent = parts.join(" ");
}

$("tokens-text").oninput = () => model && update();
