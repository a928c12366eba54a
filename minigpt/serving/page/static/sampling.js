// Choose the next token, like minigpt/generation/sampling.py:
//
//     next = argmax over the kept candidates of (logits / temperature + noise)

export const [UNK, BOS, EOS] = [1, 2, 3]; // 0 is <pad>
export const SPECIAL_TOKENS = ["<pad>", "<unk>", "<bos>", "<eos>"];
export const GREEDY = 1e-9; // a lower temperature counts as 0

export const DEFAULTS = {
  temperature: 0.8,
  top_k: 50, // 0 keeps all
  top_p: 1,
  min_p: 0,
  repetition_penalty: 1,
  ignore_eos: false,
  seed: 0n,
};

// Return the decision: the next token, and each stage on the way to it.
//
// candidates  ids in the order of their logits, the best first (all of them, or the top k)
// scaled      logits (V,) after special tokens, repetition penalty and temperature
// dropped     for each candidate null, "top-p" or "min-p"
// scores      for each candidate its logit / temperature + noise, -Infinity if dropped
export function decide(logits, noise, sampling, previousIds) {
  const temperature = sampling.temperature < GREEDY ? 0 : sampling.temperature;
  const scaled = Float64Array.from(logits);
  if (!Number.isFinite(scaled.reduce((a, b) => Math.max(a, b)))) {
    throw new Error("the model computes logits that are not finite numbers; it is damaged");
  }
  scaled.fill(-Infinity, 0, sampling.ignore_eos ? EOS + 1 : EOS);
  if (sampling.repetition_penalty !== 1) penalize(scaled, previousIds, sampling.repetition_penalty);
  if (temperature) for (let i = 0; i < scaled.length; i++) scaled[i] /= temperature;
  const candidates = best(scaled, temperature ? sampling.top_k || Infinity : 1);
  const top = scaled[candidates[0]];
  const weights = Float64Array.from(candidates, (id) => Math.exp(scaled[id] - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const [dropped, scores] = [[], new Float64Array(candidates.length)];
  let [before, winner] = [0, 0];
  candidates.forEach((id, rank) => {
    const reason =
      before >= sampling.top_p * total ? "top-p" : weights[rank] < sampling.min_p ? "min-p" : null;
    dropped.push(temperature ? reason : null);
    scores[rank] = dropped[rank] ? -Infinity : scaled[id] + (temperature ? noise[id] : 0);
    if (scores[rank] > scores[winner]) winner = rank;
    before += weights[rank];
  });
  return { token: candidates[winner], candidates, scaled, dropped, scores };
}

function penalize(logits, previousIds, penalty) {
  for (const id of new Set(previousIds)) {
    logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
  }
}

// Return the ids of the `count` highest logits, the highest first; of equal ones the lower id first.
function best(logits, count) {
  const order = Uint32Array.from(logits.keys());
  order.sort((a, b) => logits[b] - logits[a] || a - b);
  return order.subarray(0, count);
}

// Return the log-probability of each id (V,), in nats.
export function logProbabilities(logits) {
  let top = -Infinity;
  for (const logit of logits) top = Math.max(top, logit);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - top);
  const normalizer = top + Math.log(sum);
  return Float64Array.from(logits, (logit) => logit - normalizer);
}
