// The view Score: how well the model predicts a text.

import { call } from "./client.js";
import { $, glyph, h, number, percent } from "./dom.js";
import { TokenText } from "./token_text.js";
import { surprise } from "./view_write.js";

const SHADED = 20000; // tokens; more would make the page slow
let model;
let tokens = [];
const view = new TokenText($("score-shaded"), (index) => {
  const { id, text, loss } = tokens[index];
  $("score-token").textContent =
    `${glyph(model.tokenizer, id, text)}: probability ${percent(Math.exp(-loss))}, loss ${number(loss, 3)} nats`;
});

export function startScore(loaded) {
  model = loaded;
  view.clear(model.tokenizer);
  $("score-total").replaceChildren();
  $("score-lines").replaceChildren();
  $("score-token").textContent = "";
  $("score-form").querySelector("button").disabled = false;
}

async function score() {
  const button = $("score-form").querySelector("button");
  button.disabled = true;
  try {
    const text = $("score-text").value;
    const result = await call(
      "score",
      { text },
      (share) => (button.textContent = `${percent(share)}`),
    );
    show(result);
  } catch (error) {
    $("score-total").textContent = `Cannot score: ${error.message}`;
  }
  button.textContent = "Score";
  button.disabled = false;
}

function show({ total, lines, tokens: scored }) {
  tokens = scored.slice(0, SHADED);
  view.clear(model.tokenizer);
  view.append(tokens);
  view.shade(tokens.map(({ loss }) => surprise(loss)));
  const figure = (name, value) => h("div", {}, h("b", {}, value), h("span", {}, name));
  $("score-total").replaceChildren(
    figure("loss, nats per token", number(total.loss, 4)),
    figure("perplexity", number(total.perplexity, 4)),
    figure("bits per character", number(total.bits_per_char, 4)),
    figure(`tokens, ${total.characters} characters`, total.tokens),
  );
  $("score-token").textContent =
    scored.length > SHADED
      ? `Only the first ${SHADED} tokens are shown.`
      : "Select a token to see its probability.";
  $("score-lines").replaceChildren(lines.length > 1 ? table(lines.slice(0, 500)) : "");
}

function table(lines) {
  const head = ["Line", "Loss", "Perplexity", "Bits per character"];
  const cell = (value) => h("td", { class: "number" }, number(value, 4));
  return h(
    "table",
    {},
    h("caption", { class: "hidden" }, "Scores of the lines"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ...head.map((name, i) => h("th", { scope: "col", class: i ? "number" : "" }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      ...lines.map((line) =>
        h(
          "tr",
          {},
          h("th", { scope: "row", dir: "auto" }, line.text || "↵"),
          cell(line.loss),
          cell(line.perplexity),
          cell(line.bits_per_char),
        ),
      ),
    ),
  );
}

$("score-form").onsubmit = (event) => {
  event.preventDefault();
  if (model) score();
};
