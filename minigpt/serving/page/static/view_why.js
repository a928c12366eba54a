// The panel Why this token: from the logits to the winner.

import { $, glyph, h, number, percent, spoken } from "./dom.js";
import { gumbelNoise } from "./philox.js";
import { BOS, decide, GREEDY, logProbabilities, UNK } from "./sampling.js";

const ROWS = 12; // candidates to show

// Return everything that the panel shows about the choice of the token at `index`.
function explain({ tokenizer }, text, index) {
  const { logits, id } = text.tokens[index];
  const { sampling } = text;
  const noise = gumbelNoise(sampling.seed, 0, index, tokenizer.vocabSize);
  const decision = decide(logits, noise, sampling, text.ids.slice(0, index));
  const { candidates, scaled, dropped, scores } = decision;
  const probabilities = logProbabilities(logits).map(Math.exp);
  const all = Uint32Array.from(scaled.keys()).sort((a, b) => scaled[b] - scaled[a] || a - b);
  const weight = (rank) =>
    dropped[rank] ? 0 : Math.exp(scaled[candidates[rank]] - scaled[all[0]]);
  const total = dropped.reduce((sum, _, rank) => sum + weight(rank), 0);
  const rows = Array.from(all, (candidate, rank) => ({
    id: candidate,
    logit: logits[candidate],
    probability: probabilities[candidate],
    scaled: scaled[candidate],
    dropped:
      rank >= candidates.length ? (sampling.temperature ? "top-k" : "greedy") : dropped[rank],
    share: rank < candidates.length ? weight(rank) / total : 0,
    noise: noise[candidate],
    score: scores[rank] ?? -Infinity,
    wins: candidate === decision.token,
    is: candidate === id,
  })).filter((row) => row.scaled > -Infinity);
  return {
    rows,
    decision,
    chosen: rows.find((row) => row.is),
    rank: rows.findIndex((row) => row.is) + 1,
  };
}

export function showDecision(model, text, index, branch) {
  const panel = $("why");
  if (index === null) return panel.replaceChildren(hint());
  const token = text.tokens[index];
  const head = h("h2", {}, glyph(model.tokenizer, token.id, token.text));
  if (!token.logits) {
    const reason =
      token.id === BOS
        ? "It marks the beginning of a text, and is always given."
        : "It is in the prompt, before the window that the model saw.";
    return panel.replaceChildren(head, h("p", { class: "explain origin" }, reason));
  }
  const explained = explain(model, text, index);
  panel.replaceChildren(
    head,
    h("p", { class: "explain origin" }, origin(model, token, explained)),
    stages(text.sampling, explained),
    table(model, text, explained, (id) => branch(index, id), index >= text.promptLength),
  );
}

const hint = () =>
  h(
    "p",
    { class: "explain" },
    "Select a token of the text: here you see every step from the model’s numbers to the choice, and can choose another one.",
  );

function origin({ tokenizer }, token, { rank, chosen }) {
  const parts = [`Probability ${percent(Math.exp(-token.loss))}`];
  if (chosen) parts.push(`rank ${rank}`);
  if (token.id === UNK) parts.push("not in the vocabulary, read as <unk>");
  if (token.kind === "given") parts.push("given by the prompt");
  if (token.kind === "chosen") parts.push("chosen by you");
  if (token.kind === "accepted") parts.push("drafted by the n-gram table, and accepted");
  if (token.kind === "rejected") {
    parts.push(`the n-gram table had drafted ${glyph(tokenizer, token.draft)}`);
  }
  return `${parts.join(" · ")}.`;
}

// Show how many candidates each step leaves.
function stages({ temperature, top_k, top_p, min_p, repetition_penalty }, { rows, decision }) {
  const { candidates, dropped, scaled } = decision;
  const possible = candidates.filter((id) => scaled[id] > -Infinity).length;
  const count = (...reasons) => dropped.filter((reason) => reasons.includes(reason)).length;
  const steps = [["Candidates", rows.length]];
  if (repetition_penalty !== 1) steps.push([`Penalty ${repetition_penalty}`, rows.length]);
  if (temperature < GREEDY) {
    steps.push(["Greedy: the best", 1]);
  } else {
    steps.push([`÷ ${temperature}`, rows.length]);
    if (top_k) steps.push([`Top-k ${top_k}`, possible]);
    if (top_p < 1) steps.push([`Top-p ${top_p}`, count(null, "min-p")]);
    if (min_p > 0) steps.push([`Min-p ${min_p}`, count(null)]);
    steps.push(["+ noise: the best", 1]);
  }
  const item = ([name, left]) => h("li", {}, h("b", {}, name), h("span", {}, String(left)));
  return h("ol", { class: "stages" }, ...steps.map(item));
}

function table({ tokenizer }, text, { rows }, choose, canBranch) {
  const greedy = text.sampling.temperature < GREEDY;
  const shown = rows.filter((row, rank) => rank < ROWS || row.is || row.wins);
  const scale = scaleOf(shown);
  const token = (id) => {
    const label = `Go on with ${spoken(tokenizer, id)}`;
    const listener = {
      type: "button",
      "aria-label": label,
      title: label,
      onclick: () => choose(id),
    };
    return canBranch ? h("button", listener, glyph(tokenizer, id)) : glyph(tokenizer, id);
  };
  const body = shown.map((row) => {
    const kind = [row.dropped && "dropped", row.wins && "wins", row.is && "is"].filter(Boolean);
    const attributes = { class: kind.join(" "), "data-id": row.id };
    return h(
      "tr",
      attributes,
      h("th", { scope: "row" }, token(row.id)),
      ...cells(row, greedy, scale),
    );
  });
  const more = rows.length - shown.length;
  const notes = more > 0 ? [`${more} less probable tokens are not shown.`] : [];
  if (canBranch) notes.push("Choose another token, and the text goes on from there.");
  return h(
    "div",
    { class: "scroll" },
    h("table", { class: "decision" }, ...headOf(greedy), h("tbody", {}, ...body)),
    h("p", { class: "explain" }, notes.join(" ")),
  );
}

function headOf(greedy) {
  const names = greedy ? ["Logit", "Chance"] : ["Logit", "÷ T", "Chance", "Noise", "Score"];
  const head = [h("th", { scope: "col" }, "Token")];
  head.push(...names.map((name) => h("th", { scope: "col", class: "number" }, name)));
  if (!greedy) head.push(h("th", { scope: "col" }, "÷ T, then + noise"));
  const caption = h("caption", { class: "hidden" }, "Candidates, the most probable first");
  return [caption, h("thead", {}, h("tr", {}, ...head))];
}

// Return the cells of a candidate behind its token.
function cells(row, greedy, scale) {
  const cell = (...content) => h("td", { class: "number" }, ...content);
  const share = row.dropped ? h("em", {}, row.dropped) : percent(row.share);
  const bar = h("td", { class: "number bar", "--share": row.share.toFixed(4) }, share);
  if (greedy) return [cell(number(row.logit)), bar];
  const list = [cell(number(row.logit)), cell(number(row.scaled)), bar];
  if (row.dropped) return [...list, cell(), cell(), h("td", { class: "plot" })];
  const plot = h("td", { class: "plot" }, lollipop(row, scale));
  return [...list, cell(number(row.noise)), cell(number(row.score)), plot];
}

// Return the function from a number to a place between 0 and 100, for all kept rows.
function scaleOf(rows) {
  const values = rows.filter((row) => !row.dropped).flatMap((row) => [row.scaled, row.score]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return (value) => 4 + (92 * (value - low)) / (high - low || 1);
}

// Draw the logit as a dot, and the noise as a line from it to the score.
function lollipop({ scaled, score }, scale) {
  const [from, to] = [scale(scaled), scale(score)];
  return h(
    "svg",
    { viewBox: "0 0 100 12", "aria-hidden": "true", preserveAspectRatio: "none" },
    h("line", { x1: from, x2: to, y1: 6, y2: 6 }),
    h("line", { class: "logit", x1: from, x2: from, y1: 2, y2: 10 }),
    h("line", { class: "score", x1: to, x2: to, y1: 0, y2: 12 }),
  );
}
