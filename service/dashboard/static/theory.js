// The theory over the eval curve: what the bound predicted, and what it promises of going on.

import { get, Problem } from "./api.js";
import { count, isTerminal, loss, node, write } from "./format.js";

// Each answer costs the service a pass over all steps.
const PAUSE_MS = 5000;

const byId = (id) => document.getElementById(id);

export class Overlay {
  toggle = byId("theory");
  answer = null;
  readAt = 0;
  wasLive = true;

  constructor(path) {
    this.path = path;
  }

  // Whether there are lines to draw.
  get isDrawn() {
    return this.toggle.checked && this.answer?.fit != null;
  }

  async read(phase) {
    byId("theory-said").hidden = !this.toggle.checked;
    const isLive = !isTerminal(phase);
    const isFresh =
      this.readAt > 0 && (isLive ? Date.now() - this.readAt < PAUSE_MS : !this.wasLive);
    if (!this.toggle.checked || isFresh) return;
    try {
      this.answer = await get(this.path);
      this.say(inSentences(this.answer), this.answer.caveats);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.answer = null;
      this.say(error.message, []);
    }
    [this.readAt, this.wasLive] = [Date.now(), isLive];
  }

  say(text, caveats) {
    write("theory-note", text);
    byId("theory-limits").hidden = caveats.length === 0;
    byId("theory-caveats").replaceChildren(...caveats.map((one) => node("li", one.text)));
  }

  // One row for each step of the curve, or of the way ahead: {step, x, loss, predicted, promised}.
  over(curve, axis) {
    const rows = new Map(
      curve.map((point) => [point.step, { step: point.step, x: point[axis], loss: point.loss }]),
    );
    const last = curve.at(-1);
    if (!this.isDrawn || !last) return [...rows.values()];
    const rowOf = (step) => {
      if (!rows.has(step)) rows.set(step, { step, x: (step * last[axis]) / last.step });
      return rows.get(step);
    };
    for (const point of this.answer.data)
      if (rows.has(point.step)) rowOf(point.step).predicted = point.predicted;
    for (const point of this.answer.extension.data) rowOf(point.step).promised = point.predicted;
    return [...rows.values()].sort((one, other) => one.x - other.x);
  }

  inWords() {
    if (!this.isDrawn) return "";
    const [now, end] = [this.answer.data.at(-1), this.answer.extension.data.at(-1)];
    return ` The theory predicts ${loss(now.predicted)} there, and ${loss(end.predicted)} at step ${count(end.step)}.`;
  }
}

function inSentences({ fit, no_fit_reason, gap, extension }) {
  if (!fit) return `No line through the curve yet: ${no_fit_reason}.`;
  const { offset, slope, median_relative_error } = fit.huber;
  const end = extension.data.at(-1);
  return [
    `Predicted: ${loss(offset)} + ${loss(slope)} × bound; half of the losses are within ${+(100 * median_relative_error).toPrecision(2)}% of it.`,
    `The last loss is ${loss(Math.abs(gap.last))} ${gap.last < 0 ? "below" : "above"} it.`,
    `Promised (dashed): ${loss(end.predicted)} at step ${count(end.step)}. ${extension.advice}`,
  ].join(" ");
}
