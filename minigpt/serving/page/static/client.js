// Calls the functions of `worker.js`.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const calls = new Map();
let last = 0;

worker.onmessage = ({ data: { call, progress, result, error } }) => {
  const { resolve, reject, report } = calls.get(call);
  if (progress !== undefined) return report(progress);
  calls.delete(call);
  return error === undefined ? resolve(result) : reject(new Error(error));
};

worker.onerror = ({ message }) => {
  for (const { reject } of calls.values()) reject(new Error(message || "the worker failed"));
  calls.clear();
};

// Call a function of the worker; `report` receives what it reports before its result.
export function call(method, values = {}, report = () => {}) {
  return new Promise((resolve, reject) => {
    calls.set(++last, { resolve, reject, report });
    worker.postMessage({ call: last, method, values });
  });
}
