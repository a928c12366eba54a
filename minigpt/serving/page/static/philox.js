// Gumbel noise as a function of (seed, sample, position), equal to `gumbel_noise` in
// minigpt/generation/sampling.py: the generator Philox4x64-10 of NumPy, in 32-bit halves.

const ROUNDS = 10;
const M0 = [0xd2e7470e, 0xe14c6c93]; // multipliers and increments of the key: high and low half
const M1 = [0xca5a8263, 0x95121157];
const W0 = [0x9e3779b9, 0x7f4a7c15];
const W1 = [0xbb67ae85, 0x84caa73b];
const SMALLEST = 2 ** -53;

// Return the high half of a product of two 32-bit numbers; doubles hold each step exactly.
const high = (a, b) =>
  Math.floor(((a >>> 16) * b + Math.floor(((a & 0xffff) * b) / 65536)) / 65536);
const low = (a, b) => Math.imul(a, b) >>> 0;

const product = new Uint32Array(4); // of two 64-bit numbers, the lowest 32 bits first

function multiply(ah, al, bh, bl) {
  const middle = high(al, bl) + low(al, bh) + low(ah, bl);
  const upper = high(al, bh) + high(ah, bl) + low(ah, bh) + Math.floor(middle / 2 ** 32);
  product[0] = low(al, bl);
  product[1] = middle;
  product[2] = upper;
  product[3] = high(ah, bh) + Math.floor(upper / 2 ** 32);
}

const double = (upper, lower) => (upper * 2 ** 21 + (lower >>> 11)) / 2 ** 53;

// Write the four numbers of a step, as doubles in [0, 1), to out[at], out[at + 1], …
function step(counter, seedHigh, seedLow, sample, out, at) {
  let k0h = seedHigh,
    k0l = seedLow,
    k1h = 0,
    k1l = sample; // the key
  let c0h = Math.floor(counter / 2 ** 32),
    c0l = counter >>> 0,
    c1h = 0,
    c1l = 0;
  let c2h = 0,
    c2l = 0,
    c3h = 0,
    c3l = 0;
  for (let round = 0; round < ROUNDS; round++) {
    multiply(c0h, c0l, M0[0], M0[1]);
    const p0 = product[0],
      p1 = product[1],
      p2 = product[2],
      p3 = product[3];
    multiply(c2h, c2l, M1[0], M1[1]);
    c0h = (product[3] ^ c1h ^ k0h) >>> 0;
    c0l = (product[2] ^ c1l ^ k0l) >>> 0;
    c1h = product[1];
    c1l = product[0];
    c2h = (p3 ^ c3h ^ k1h) >>> 0;
    c2l = (p2 ^ c3l ^ k1l) >>> 0;
    c3h = p1;
    c3l = p0;
    k0h = (k0h + W0[0] + Number(k0l + W0[1] >= 2 ** 32)) >>> 0;
    k0l = (k0l + W0[1]) >>> 0;
    k1h = (k1h + W1[0] + Number(k1l + W1[1] >= 2 ** 32)) >>> 0;
    k1l = (k1l + W1[1]) >>> 0;
  }
  out[at] = double(c0h, c0l);
  out[at + 1] = double(c1h, c1l);
  out[at + 2] = double(c2h, c2l);
  out[at + 3] = double(c3h, c3l);
}

// Return Gumbel noise (V,) for the token at `position`; `seed` is a BigInt below 2^63.
export function gumbelNoise(seed, sample, position, vocabSize) {
  const [seedHigh, seedLow] = [Number(seed >> 32n), Number(seed & 0xffffffffn)];
  const steps = Math.ceil(vocabSize / 4); // each position owns so many steps of the counter
  const noise = new Float64Array(steps * 4);
  for (let i = 0; i < steps; i++)
    step(position * steps + i + 1, seedHigh, seedLow, sample, noise, 4 * i);
  for (let i = 0; i < vocabSize; i++) {
    noise[i] = -Math.log(-Math.log(Math.max(noise[i], SMALLEST)));
  }
  return noise.subarray(0, vocabSize);
}
