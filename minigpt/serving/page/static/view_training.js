// The view Training: the curves with the baselines, and the samples of the run.

import { $, h, number } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [760, 400, 46, 92, 14, 34];

export function startTraining({ metadata }, data) {
  const view = $("training");
  if (!data?.training?.step?.length) return view.replaceChildren(summary(metadata));
  const chart = new Chart(data);
  const samples = data.samples.map(([step, text]) => ({ step, text }));
  view.replaceChildren(
    h("section", { class: "paper" }, h("h2", {}, "How it learned"), chart.element, chart.reading),
    h("section", {}, ...(samples.length ? slider(samples, chart) : []), summary(metadata)),
  );
}

// Make a slider through the samples that were taken at the validations.
function slider(samples, chart) {
  const label = h("label", { for: "sample" });
  const output = h("output", { class: "text sample", for: "sample", dir: "auto" });
  const input = h("input", {
    id: "sample",
    type: "range",
    min: 0,
    max: samples.length - 1,
    value: samples.length - 1,
  });
  const show = () => {
    const { step, text } = samples[input.value];
    label.textContent = `What it wrote after ${step.toLocaleString("en")} steps`;
    input.setAttribute("aria-valuetext", `${step} steps`);
    output.textContent = text;
    chart.mark(step);
  };
  input.oninput = show;
  show();
  return [h("h2", {}, label), input, output];
}

// Show what the model file says about its training.
function summary({ training, train, parameters, quantization }) {
  const rows = {
    parameters,
    ...training,
    ...(quantization && { quantization: quantization.type }),
  };
  for (const name of ["optimizer", "learning_rate", "batch_size", "seed"])
    rows[name] = train?.[name];
  const entry = ([name, value]) => [
    h("dt", {}, name),
    h(
      "dd",
      {},
      typeof value === "number"
        ? value.toLocaleString("en", { maximumFractionDigits: 4 })
        : String(value),
    ),
  ];
  return h(
    "dl",
    { class: "summary" },
    ...Object.entries(rows)
      .filter(([, value]) => value !== undefined && value !== null)
      .flatMap(entry),
  );
}

class Chart {
  constructor({ training, validation, evaluation }) {
    const baselines = Object.entries(evaluation.baseline_loss ?? {});
    this.training = training;
    this.validation = validation;
    const losses = [
      ...training["train/loss"],
      ...(validation["val/loss"] ?? []),
      ...baselines.map(([, loss]) => loss),
    ].filter(Number.isFinite);
    [this.low, this.high] = [Math.min(...losses) - 0.1, Math.max(...losses) + 0.1];
    this.last = Math.max(...training.step);
    this.cursor = h("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    const title = `Loss by step: training ${number(training["train/loss"].at(-1), 3)}, validation ${number(validation["val/loss"]?.at(-1), 3)} at the end`;
    this.element = h(
      "svg",
      { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title },
      ...this.axes(),
      ...this.baselines(baselines),
      this.curve("train", training.step, training["train/loss"]),
      this.curve("val", validation.step ?? [], validation["val/loss"] ?? []),
      this.cursor,
    );
    this.reading = h(
      "p",
      { class: "hint" },
      h("span", { class: "key train" }, "training"),
      " ",
      h("span", { class: "key val" }, "validation"),
      " ",
      h("span", { id: "reading" }),
    );
    this.element.onpointermove = ({ offsetX }) => {
      const share = ((offsetX / this.element.clientWidth) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
      this.mark(Math.max(0, Math.min(1, share)) * this.last);
    };
  }

  x = (step) => LEFT + (step / this.last) * (WIDTH - LEFT - RIGHT);
  y = (loss) => TOP + ((this.high - loss) / (this.high - this.low)) * (HEIGHT - TOP - BOTTOM);

  axes() {
    const parts = [];
    for (let loss = Math.ceil(this.low * 2) / 2; loss < this.high; loss += 0.5) {
      const y = this.y(loss);
      parts.push(h("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
      parts.push(h("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, loss.toFixed(1)));
    }
    for (let i = 0; i <= 4; i++) {
      const step = Math.round((i / 4) * this.last);
      parts.push(
        h(
          "text",
          { x: this.x(step), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" },
          step.toLocaleString("en"),
        ),
      );
    }
    return parts;
  }

  baselines(list) {
    return list.flatMap(([name, loss]) => [
      h("line", {
        class: "baseline",
        x1: LEFT,
        x2: WIDTH - RIGHT,
        y1: this.y(loss),
        y2: this.y(loss),
      }),
      h(
        "text",
        { class: "baseline", x: WIDTH - RIGHT + 8, y: this.y(loss) + 4 },
        `${name} ${loss.toFixed(2)}`,
      ),
    ]);
  }

  curve(name, steps, losses) {
    const points = steps.map(
      (step, i) => `${this.x(step).toFixed(1)},${this.y(losses[i]).toFixed(1)}`,
    );
    return h("path", { class: name, d: points.length ? `M${points.join("L")}` : "" });
  }

  // Mark a step, and show the losses nearest to it.
  mark(step) {
    this.cursor.setAttribute("x1", this.x(step));
    this.cursor.setAttribute("x2", this.x(step));
    const nearest = (curve, name) => {
      const best = (curve.step ?? []).reduce(
        (a, s, i) => (Math.abs(s - step) < Math.abs(curve.step[a] - step) ? i : a),
        0,
      );
      return number(curve[name]?.[best], 3);
    };
    this.reading.lastChild.textContent = `step ${Math.round(step).toLocaleString("en")}: training ${nearest(this.training, "train/loss")}, validation ${nearest(this.validation, "val/loss")}`;
  }
}
