// Read and extend an ONNX file, which is a protobuf message; ONNX Runtime offers neither to JavaScript.
//
// A message is a sequence of fields: a number, a wire type, and a value. The walk needs only the
// type 2, bytes with their length in front: strings, messages, and lists of both.

const BYTES = 2; // the wire type
const MODEL = { graph: 7, metadata: 14 }; // numbers of the fields, from onnx.proto
const ENTRY = { key: 1, value: 2 };
const GRAPH = { node: 1, output: 12 };
const NODE = { input: 1, output: 2, type: 4, attribute: 5 };
const DIGEST_ENTRY = "rJ\n\x06sha256\x12@"; // the last entry of the file, before 64 hex digits

const text = new TextDecoder();
const utf8 = new TextEncoder();

export const hex = (bytes) =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

// Yield the fields of a message; `bytes` is the content of those with wire type 2, else null.
function* fields(message) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = message[at++];
      value += (byte & 127) * 2 ** shift;
      if (!(byte & 128)) return value;
    }
  };
  while (at < message.length) {
    const start = at;
    const tag = varint();
    const [number, type] = [Math.floor(tag / 8), tag % 8];
    let bytes = null;
    if (type === BYTES) {
      const length = varint();
      bytes = message.subarray(at, at + length);
      at += length;
    } else if (type === 0) varint();
    else at += type === 1 ? 8 : 4;
    if (at > message.length || type > 5) throw new Error("not an ONNX file, or cut off");
    yield { number, bytes, whole: message.subarray(start, at) };
  }
}

const find = (message, number) =>
  [...fields(message)].find((field) => field.number === number)?.bytes;

// Return the metadata of a MiniGPT model: config, tokenizer, training summary, n-gram table.
export function readMetadata(file) {
  for (const { number, bytes } of fields(file)) {
    if (number !== MODEL.metadata || text.decode(find(bytes, ENTRY.key)) !== "minigpt") continue;
    return JSON.parse(text.decode(find(bytes, ENTRY.value)));
  }
  throw new Error("an ONNX file, but not one that MiniGPT exported");
}

// Return whether the file has the SHA-256 that is its last entry; null if that cannot be checked.
export async function isIntact(file) {
  const size = DIGEST_ENTRY.length + 64;
  const entry = text.decode(file.subarray(-size));
  const { subtle } = globalThis.crypto ?? {}; // browsers hash only on safe origins
  if (!entry.startsWith(DIGEST_ENTRY) || !subtle) return null;
  const hash = new Uint8Array(await subtle.digest("SHA-256", file.subarray(0, -size)));
  return entry === DIGEST_ENTRY + hex(hash);
}

const concat = (parts) => {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
};

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return Uint8Array.from([...bytes, value]);
}

const field = (number, content) => {
  const bytes = typeof content === "string" ? utf8.encode(content) : content;
  return concat([varint(number * 8 + BYTES), varint(bytes.length), bytes]);
};

// An attribute of a node with a small integer as its value.
const attribute = (name, value) => {
  const content = concat([field(1, name), Uint8Array.of(3 * 8, value, 0xa0, 1, 2)]);
  return field(NODE.attribute, content);
};

const rewrite = (message, number, change) =>
  concat(
    [...fields(message)].map((part) =>
      part.number === number ? field(number, change(part.bytes)) : part.whole,
    ),
  );

// Return a copy of the file with a further output for each layer: attention_0, attention_1, …
export function withAttention(file) {
  let layers = 0;
  const outputs = [];
  const extend = (node) => {
    if (text.decode(find(node, NODE.type)) !== "GroupQueryAttention") return node;
    const name = `attention_${layers++}`;
    outputs.push(field(GRAPH.output, field(1, name)));
    return concat([node, field(NODE.output, name), attribute("qk_output", 2)]); // after the softmax
  };
  const extendGraph = (graph) => concat([rewrite(graph, GRAPH.node, extend), ...outputs]);
  return rewrite(file, MODEL.graph, extendGraph);
}

// Return a copy of the file with a further output for each of the caches, present_key_0, …:
// new_key_0 (1, H, 1, T, D), …, the entries of the T positions that were read.
export function withNewEntries(file) {
  const extendGraph = (graph) => {
    const names = [...fields(graph)]
      .filter(({ number }) => number === GRAPH.output)
      .map(({ bytes }) => text.decode(find(bytes, 1)))
      .filter((name) => name.startsWith("present_"));
    const gather = (name) => {
      const output = name.replace("present", "new");
      const inputs = [field(NODE.input, name), field(NODE.input, "positions")];
      const type = [field(NODE.type, "Gather"), attribute("axis", 2)];
      const node = concat([...inputs, field(NODE.output, output), ...type]);
      return concat([field(GRAPH.node, node), field(GRAPH.output, field(1, output))]);
    };
    return concat([graph, ...names.map(gather)]);
  };
  return rewrite(file, MODEL.graph, extendGraph);
}
