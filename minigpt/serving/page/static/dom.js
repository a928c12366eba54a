// Helpers for elements and for the text of tokens.

import { SPECIAL_TOKENS } from "./sampling.js";
import { hex } from "./onnx_file.js";

export const $ = (id) => document.getElementById(id);

// Make an element: h("td", { class: "number" }, "0.5"); a function is a listener, `on…`.
export function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "g", "rect", "title"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element[name] = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

export function percent(share) {
  if (share < 0.0001) return "< 0.01 %";
  return share >= 0.0995 ? `${(100 * share).toFixed(0)} %` : `${(100 * share).toPrecision(2)} %`;
}

export const number = (value, digits = 2) =>
  Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "–";

const SYMBOLS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const NAMES = { " ": "space", "\n": "line break", "\t": "tab" };

// Return the token as one can see it: spaces and bytes have symbols. `text` is that of an unknown one.
export function glyph(tokenizer, id, text = tokenizer.tokenStrings[id]) {
  if (tokenizer.kind === "bpe") text = tokenizer.tokenStrings[id]; // not the character it completes
  if (text && !text.includes("\ufffd")) {
    const escape = (char) => `\\x${char.codePointAt(0).toString(16).padStart(2, "0")}`;
    const seen = text.replace(/[ \n\t\r\u00a0]/g, (char) => SYMBOLS[char]);
    return seen.replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, escape);
  }
  return SPECIAL_TOKENS[id] ?? `⟨${hex(tokenizer.bytes(id))}⟩`;
}

// Return the token as a screen reader should say it.
export const spoken = (tokenizer, id, text = tokenizer.tokenStrings[id]) =>
  NAMES[text] ?? (glyph(tokenizer, id, text) || "nothing");

// Make a list of tabs usable by keyboard; `changed` gets the id of the panel that is shown.
export function tabs(list, changed) {
  const buttons = [...list.querySelectorAll("[role=tab]")];
  const show = (chosen) => {
    for (const button of buttons) {
      button.setAttribute("aria-selected", button === chosen);
      button.tabIndex = button === chosen ? 0 : -1;
      $(button.getAttribute("aria-controls")).hidden = button !== chosen;
    }
    changed(chosen.getAttribute("aria-controls"));
  };
  list.onclick = ({ target }) => target.role === "tab" && show(target);
  list.onkeydown = ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const at = buttons.indexOf(document.activeElement) + step;
    const next = buttons[(at + buttons.length) % buttons.length];
    next.focus();
    show(next);
  };
  return (panel) => show(buttons.find((button) => button.getAttribute("aria-controls") === panel));
}
