// The page: loads the model and switches between the views.

import { call } from "./client.js";
import { $, tabs } from "./dom.js";
import { isIntact, readMetadata } from "./onnx_file.js";
import { tokenizerFrom } from "./tokenizer.js";
import { startScore } from "./view_score.js";
import { startTokens } from "./view_tokens.js";
import { startTraining } from "./view_training.js";
import { showPanel, startWrite } from "./view_write.js";

$("notice").remove(); // this script runs, so the page was served

async function fetchBytes(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

// Load the model of the page, with the data of its training.
async function loadPage() {
  const [file, training] = await Promise.all(["model.onnx", "training.json"].map(fetchBytes));
  await start(file, JSON.parse(new TextDecoder().decode(training)));
}

// Load a model that MiniGPT exported.
async function start(file, training) {
  const metadata = readMetadata(file);
  const model = { metadata, tokenizer: tokenizerFrom(metadata.tokenizer) };
  if ((await isIntact(file)) === false) throw new Error("damaged: its SHA-256 is wrong");
  await call("load", { file }); // last, since it replaces the earlier model
  $("model").textContent = describe(metadata, model.tokenizer, file);
  for (const view of [startWrite, startScore, startTokens]) view(model);
  startTraining(model, training);
  document.body.dataset.ready = "";
}

function describe({ config, parameters, quantization, training }, tokenizer, file) {
  const size = parameters
    ? `${(parameters / 1e6).toPrecision(2)} M parameters`
    : `${(file.length / 1e6).toFixed(1)} MB`;
  const parts = [size, `${config.num_layers} layers of ${config.num_heads} heads`];
  parts.push(`${tokenizer.vocabSize} ${tokenizer.kind === "bpe" ? "subwords" : "characters"}`);
  parts.push(`context ${config.max_seq_len}`);
  if (training) parts.push(`loss ${training["val/loss"].toFixed(3)}`);
  if (quantization) parts.push(quantization.type);
  return parts.join(" · ");
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    $("model").textContent = `Cannot load the model: ${error.message}`;
  }
}

async function open(file) {
  if (!file) return;
  $("model").textContent = `Loading ${file.name}…`;
  await attempt(async () => start(new Uint8Array(await file.arrayBuffer()), null));
}

$("open").onchange = ({ target }) => {
  open(target.files[0]);
  target.value = ""; // the same file, exported again, can be opened again
};
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  open(event.dataTransfer.files[0]);
};
const root = document.documentElement;
root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
$("theme").onclick = () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  showPanel(); // a canvas keeps its colors
};
if (matchMedia("(max-width: 760px)").matches) {
  for (const details of document.querySelectorAll(".foldable")) details.open = false; // the text first
}
tabs(document.querySelector("header [role=tablist]"), () => {});
tabs(document.querySelector("#inspector [role=tablist]"), showPanel);
attempt(loadPage);
