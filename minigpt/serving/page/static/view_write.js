// The view Write: a prompt, the settings, and the text as it is generated.

import { call } from "./client.js";
import { $, percent } from "./dom.js";
import { DEFAULTS, EOS, logProbabilities } from "./sampling.js";
import { TokenText } from "./token_text.js";
import { showAttention } from "./view_attention.js";
import { showDecision } from "./view_why.js";

const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"];
const SURPRISING = 6; // nats: the darkest shade

let model; // { tokenizer, metadata, … } from app.js
let text = null; // the generated text: { ids, tokens, promptLength, maxLength, sampling, stop }
let writing = false;
let panel = "why";
const view = new TokenText($("text"), inspect);

export const surprise = (nats) => Math.min(1, nats / SURPRISING);

export function startWrite(loaded) {
  model = loaded;
  text = null;
  view.clear(model.tokenizer);
  for (const id of ["go", "again"]) $(id).disabled = false;
  $("more").disabled = true;
  inspect(null);
  updateCommand();
}

// Read the form.
function readSettings() {
  const sampling = { ...DEFAULTS, seed: BigInt($("seed").value) };
  for (const name of NUMBERS) sampling[name] = Number($(name).value);
  sampling.ignore_eos = $("ignore_eos").checked;
  const stop = $("stop").value ? [$("stop").value] : [];
  return { prompt: $("prompt").value, sampling, stop };
}

// Show the command of minigpt-cli that writes the same text.
function updateCommand() {
  if (!$("settings").checkValidity()) return;
  const { prompt, sampling, stop } = readSettings();
  const quote = (value) => `'${value.replaceAll("'", "'\\''")}'`;
  const parts = ["minigpt-cli generate", `--prompt ${quote(prompt)}`, `--seed ${sampling.seed}`];
  const defaults = { ...DEFAULTS, max_new_tokens: 200 };
  for (const name of NUMBERS) {
    const option = name.replaceAll("_", "-");
    if (sampling[name] !== defaults[name]) parts.push(`--${option} ${sampling[name]}`);
  }
  if (sampling.ignore_eos) parts.push("--ignore-eos");
  parts.push(...stop.map((value) => `--stop ${quote(value)}`));
  $("command").textContent = parts.join(" \\\n  ");
}

// Start a new text.
async function write() {
  const { prompt, sampling, stop } = readSettings();
  const { tokenizer } = model;
  const ids = tokenizer.encode(prompt).slice(0, -1);
  const given = ["", ...tokenizer.split(prompt)].map((string, i) => ({
    id: ids[i],
    text: string,
    kind: "given",
  }));
  const maxLength = ids.length + sampling.max_new_tokens;
  text = { ids, tokens: given, promptLength: ids.length, maxLength, sampling, stop };
  view.clear(tokenizer);
  view.append(given);
  remember();
  await run();
}

// Generate until the end of the text.
async function run() {
  const { promptLength, maxLength, sampling, stop } = text;
  setWriting(true);
  try {
    const args = { ids: text.ids, promptLength, maxLength, sampling, stop };
    const result = await call("generate", args, receive);
    if (result.finishReason === "stop") cutAt(result.text.length);
    showSpeed(result);
    announce(result);
  } catch (error) {
    $("status").textContent = $("hint").textContent = `Cannot write: ${error.message}`;
  }
  setWriting(false);
}

function setWriting(now) {
  writing = now;
  document.body.classList.toggle("writing", now);
  $("go").textContent = now ? "Stop" : "Write";
  $("go").formNoValidate = now; // a text can be stopped whatever the form contains
  $("again").disabled = now;
  $("more").disabled = now || text.tokens.at(-1).id === EOS;
  if (now) $("status").textContent = "Writing";
}

// Add new tokens to the text.
function receive({ tokens, context, seconds }) {
  const known = text.tokens.length;
  context?.logits.forEach((logits, i) => addLogits(text.tokens[context.start + 1 + i], logits));
  for (const { id, text: string, logits, draft } of tokens) {
    const kind = draft === undefined ? "" : draft === id ? "accepted" : "rejected";
    text.ids.push(id);
    text.tokens.push(addLogits({ id, text: string, draft, kind }, logits));
  }
  view.append(text.tokens.slice(known));
  shade(context ? 0 : known);
  const count = text.tokens.length - text.promptLength;
  $("speed").textContent = `${count} tokens · ${Math.round(count / seconds)} tokens/s`;
}

// Add the logits that predicted a token, and its loss in nats.
function addLogits(token, logits) {
  return Object.assign(token, { logits, loss: -logProbabilities(logits)[token.id] });
}

function shade(from = 0) {
  if (view.selected !== null && panel === "attention") return;
  view.shade(
    text.tokens.slice(from).map(({ loss }) => (loss === undefined ? null : surprise(loss))),
    from,
  );
}

function showSpeed({ seconds, forwardPasses, drafted, accepted }) {
  const count = forwardPasses + accepted;
  const parts = [`${count} tokens`, `${Math.round(count / seconds)} tokens/s`];
  if (drafted)
    parts.push(`${forwardPasses} passes`, `${percent(accepted / drafted)} of drafts accepted`);
  $("speed").textContent = parts.join(" · ");
}

// Say the whole text to screen readers, once it is complete.
function announce({ finishReason }) {
  const reasons = {
    eos: "The text has ended.",
    length: "",
    stop: "Stopped before the given text.",
  };
  const written = text.tokens.map((token) => token.text).join("");
  $("status").textContent = `${written} ${reasons[finishReason] ?? "Stopped."}`;
}

// Cut the generated text to `length` characters, in front of a stop sequence.
function cutAt(length) {
  const generated = text.tokens.slice(text.promptLength);
  let end = 0;
  const cut = generated.findIndex((token) => (end += token.text.length) > length);
  if (cut < 0) return;
  const index = text.promptLength + cut;
  const [token] = text.tokens.splice(index);
  token.text = token.text.slice(0, token.text.length - (end - length));
  if (token.text) text.tokens.push(token); // the stop sequence begins within it
  text.ids.length = text.tokens.length;
  view.truncate(index);
  view.append(text.tokens.slice(index));
  shade(index);
}

// Replace the token at `index` and continue from there.
async function branch(index, id) {
  if (writing) return;
  const decoder = model.tokenizer.decoder();
  const before = text.ids.slice(text.promptLength, index);
  before.forEach((earlier) => decoder.feed(earlier));
  const { logits } = text.tokens[index];
  const token = { id, text: decoder.feed(id), kind: "chosen" };
  text.ids.length = text.tokens.length = index;
  text.maxLength = Math.max(text.maxLength, index + 1);
  view.truncate(index);
  text.ids.push(id);
  text.tokens.push(addLogits(token, logits));
  view.append([token]);
  shade();
  if (id !== EOS) await run();
  if (index < text.tokens.length) view.select(index); // a stop sequence may have cut it off
}

// Show what is known about the token at `index`; null: none is selected.
function inspect(index) {
  const token = index === null ? null : text.tokens[index];
  $("inspector").classList.toggle("empty", token === null);
  document.body.classList.toggle("attending", token !== null && panel === "attention");
  $("legend-text").textContent =
    token && panel === "attention" ? "ignored … looked at" : "expected … surprising";
  if (text) shade();
  if (panel === "why") showDecision(model, text, index, branch);
  else showAttention(model, text, index, view);
}

// Show another panel about the selected token; without a name, draw the same one again.
export function showPanel(name = panel) {
  panel = name;
  if (model) inspect(view.selected);
}

// Keep prompt, settings and seed in the address, so that it can be shared.
function remember() {
  const fields = ["prompt", ...NUMBERS, "seed", "stop"].map((id) => [id, $(id).value]);
  if ($("ignore_eos").checked) fields.push(["ignore_eos", "1"]);
  history.replaceState(null, "", `#${new URLSearchParams(fields)}`);
}

function recall() {
  for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
    if (id === "ignore_eos") $(id).checked = true;
    else if (["prompt", ...NUMBERS, "seed", "stop"].includes(id)) {
      $(id).value = value;
      checkSeed();
      if (!$(id).checkValidity()) $(id).value = $(id).defaultValue;
    }
  }
  checkSeed();
  $("temperature-range").value = $("temperature").value;
}

// Refuse seeds that no signed integer of 64 bits can hold; the form checks everything else.
function checkSeed() {
  const { value, validity } = $("seed");
  const large = !validity.patternMismatch && BigInt(value) >= 2n ** 63n;
  $("seed").setCustomValidity(large ? "A seed is less than 2^63." : "");
}

$("settings").onsubmit = (event) => {
  event.preventDefault();
  if (writing) call("stop");
  else if (model) write();
};
$("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("settings").requestSubmit();
};
$("settings").oninput = ({ target }) => {
  if (target.id === "temperature-range") $("temperature").value = target.value;
  if (target.id === "temperature") $("temperature-range").value = target.value;
  checkSeed();
  updateCommand();
};
$("again").onclick = () => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 100000;
  checkSeed();
  updateCommand();
  $("settings").requestSubmit();
};
$("more").onclick = () => {
  if (!$("settings").reportValidity()) return;
  text.maxLength = text.ids.length + Number($("max_new_tokens").value);
  run();
};
$("copy").onclick = async () => {
  await navigator.clipboard.writeText($("command").textContent);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
};
recall();
