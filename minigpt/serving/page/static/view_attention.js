// The panel Attention: where each head looked when it helped to choose the selected token.

import { call } from "./client.js";
import { $, glyph, h, percent } from "./dom.js";

const AVERAGE = "average";
let head = AVERAGE; // or [layer, head]
let latest = 0; // request

export async function showAttention(model, text, index, view) {
  const panel = $("attention");
  const hint = (words) => panel.replaceChildren(h("p", { class: "explain" }, words));
  if (index === null)
    return hint(
      "Select a token of the text: here you see where the model looked when it chose this token.",
    );
  if (index === 0) return hint("Nothing is before the beginning of the text.");
  const request = ++latest;
  if (!panel.querySelector(".heads")) hint("Computing the attention…");
  try {
    const attention = await call("attention", { ids: text.ids, position: index });
    if (request === latest && view.selected === index) draw(model, text, index, view, attention);
  } catch (error) {
    hint(`Cannot compute the attention: ${error.message}`);
  }
}

// Return the weights (T, T) of the chosen head; a row is a position that looks at those before it.
function weightsOf({ layers, numHeads, length: T }, chosen) {
  if (chosen !== AVERAGE) {
    const [layer, number] = chosen;
    return layers[layer].subarray(number * T * T, (number + 1) * T * T);
  }
  const mean = new Float32Array(T * T);
  for (const layer of layers) {
    layer.forEach((weight, i) => (mean[i % (T * T)] += weight / (layers.length * numHeads)));
  }
  return mean;
}

function draw(model, text, index, view, attention) {
  const { start, length: T, layers, numHeads } = attention;
  if (head !== AVERAGE && (head[0] >= layers.length || head[1] >= numHeads)) head = AVERAGE;
  const weights = weightsOf(attention, head);
  const row = weights.subarray((T - 1) * T); // of the position that predicts the selected token
  const strongest = Math.max(...row);
  // the root makes weak attention visible
  const shade = (i) => (i < start || i >= index ? null : Math.sqrt(row[i - start] / strongest));
  view.shade(text.tokens.map((_, i) => shade(i)));
  const name = (i) => glyph(model.tokenizer, text.ids[start + i], text.tokens[start + i].text);
  const choose = (chosen) => {
    head = chosen;
    draw(model, text, index, view, attention);
    $("attention").querySelector("[aria-pressed=true]").focus();
  };
  const top = Array.from(row.keys())
    .sort((a, b) => row[b] - row[a])
    .slice(0, 5);
  const chosenName =
    head === AVERAGE ? "All heads together" : `Layer ${head[0] + 1}, head ${head[1] + 1}`;
  $("attention").replaceChildren(
    h("h2", {}, glyph(model.tokenizer, text.ids[index], text.tokens[index].text)),
    h(
      "p",
      { class: "explain origin" },
      "Where the model looked when it chose this token; the text is shaded by it.",
    ),
    heads(attention, choose),
    h("h3", {}, chosenName),
    h(
      "ol",
      { class: "top", "aria-label": "Most attention" },
      ...top.map((i) =>
        h(
          "li",
          { "--share": (row[i] / strongest).toFixed(3) },
          h("b", {}, name(i)),
          ` ${percent(row[i])}`,
        ),
      ),
    ),
    map(weights, T, name),
  );
}

// Make a grid of small maps, a row for each layer.
function heads(attention, choose) {
  const button = (chosen, label) => {
    const pressed = String(chosen) === String(head);
    const content = chosen === AVERAGE ? "Average of all" : thumbnail(attention, chosen);
    return h(
      "button",
      {
        type: "button",
        "aria-pressed": String(pressed),
        "aria-label": label,
        title: label,
        onclick: () => choose(chosen),
      },
      content,
    );
  };
  const rows = attention.layers.map((_, layer) =>
    h(
      "div",
      { class: "layer" },
      h("span", {}, `Layer ${layer + 1}`),
      h(
        "div",
        {},
        ...Array.from({ length: attention.numHeads }, (_, i) =>
          button([layer, i], `Layer ${layer + 1}, head ${i + 1}`),
        ),
      ),
    ),
  );
  const grid = h("div", { class: "layers" + (attention.numHeads > 6 ? " small" : "") }, ...rows);
  return h(
    "div",
    { class: "heads", role: "group", "aria-label": "Heads" },
    button(AVERAGE, "Average of all heads"),
    grid,
  );
}

// Draw the weights on a canvas; a weight is as dark as its share of the strongest in its row.
function paint(weights, T, size, first = 0) {
  const canvas = h("canvas", { width: size, height: size, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const color = getComputedStyle(document.documentElement)
    .getPropertyValue("--attention-rgb")
    .split(",");
  for (let y = 0; y < size; y++) {
    const q = first + y;
    const row = weights.subarray(q * T, q * T + q + 1);
    const strongest = row.reduce((a, b) => Math.max(a, b), 0);
    for (let x = 0; x < size && first + x <= q; x++) {
      const at = 4 * (y * size + x);
      color.forEach((value, i) => (image.data[at + i] = Number(value)));
      image.data[at + 3] = 255 * (0.06 + 0.94 * (row[first + x] / strongest));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Draw the last positions of a head.
function thumbnail(attention, chosen) {
  const T = attention.length;
  const size = Math.min(T, 24);
  return paint(weightsOf(attention, chosen), T, size, T - size);
}

// Draw all positions; the pointer reads a weight.
function map(weights, T, name) {
  const canvas = paint(weights, T, T);
  const reading = h(
    "figcaption",
    {},
    "Each row is a position that looks at the columns, those before it.",
  );
  canvas.onpointermove = ({ offsetX, offsetY }) => {
    const at = (offset) =>
      Math.max(0, Math.min(T - 1, Math.floor((offset / canvas.clientWidth) * T)));
    const [q, k] = [at(offsetY), at(offsetX)];
    if (k <= q)
      reading.textContent = `After ${name(q)} it looked at ${name(k)} (${q - k} before) with ${percent(weights[q * T + k])}.`;
  };
  return h("figure", { class: "map" }, canvas, reading);
}
