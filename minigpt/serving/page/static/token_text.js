// A text whose tokens can be shaded and selected, with the mouse or the arrow keys.

import { h, spoken } from "./dom.js";

export class TokenText {
  selected = null; // index of a token

  constructor(element, onselect) {
    Object.assign(this, { element, onselect, spans: [] });
    element.onclick = ({ target }) => {
      const index = this.spans.indexOf(target.closest("[role=option]"));
      if (index >= 0) this.select(index);
    };
    element.onkeydown = (event) => this.move(event);
  }

  clear(tokenizer) {
    Object.assign(this, { tokenizer, spans: [] });
    this.element.replaceChildren();
    this.unselect();
  }

  // Append tokens: { id, text, kind }, where `kind` are classes.
  append(tokens) {
    const spans = tokens.map(({ id, text, kind = "" }) => {
      const label = /^\S+$/u.test(text) ? null : spoken(this.tokenizer, id, text);
      const name = `${this.element.id}-${this.spans.length}`;
      const span = h("span", { role: "option", id: name, class: kind, "aria-label": label }, text);
      if (text.includes("\n")) span.classList.add("break");
      if (!text) span.classList.add(id < 4 ? "special" : "partial");
      if (id < 4 && !text) span.dataset.name = spoken(this.tokenizer, id, "");
      this.spans.push(span);
      return span;
    });
    this.element.append(...spans);
  }

  // Remove the tokens from `index` on.
  truncate(index) {
    this.spans.splice(index).forEach((span) => span.remove());
    if (this.selected >= index) this.unselect();
  }

  // Shade each token by a share from 0 to 1; null is no shade.
  shade(shares, from = 0) {
    this.spans.slice(from).forEach((span, i) => {
      if (shares[i] === null) span.style.removeProperty("--shade");
      else span.style.setProperty("--shade", shares[i].toFixed(3));
    });
  }

  select(index) {
    this.unselect();
    this.selected = index;
    const span = this.spans[index];
    span.setAttribute("aria-selected", "true");
    this.element.setAttribute("aria-activedescendant", span.id);
    span.scrollIntoView({ block: "nearest" });
    this.onselect(index);
  }

  unselect() {
    if (this.selected !== null) this.spans[this.selected]?.removeAttribute("aria-selected");
    this.element.removeAttribute("aria-activedescendant");
    this.selected = null;
  }

  move(event) {
    const last = this.spans.length - 1;
    const at = this.selected ?? -1;
    const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (target === undefined || last < 0) return;
    event.preventDefault();
    this.select(Math.max(0, Math.min(last, target)));
  }
}
