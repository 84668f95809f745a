// The list of jobs, looked at every two seconds.

import { get, keepLooking } from "./api.js";
import { age, count, loss, node, reason, showPhase } from "./format.js";

const POLL_MS = 2000;
const LIMIT = 100;

const table = document.getElementById("jobs");
const state = document.getElementById("state");
const rows = new Map(); // job id -> its row's cells
const evals = new Map(); // job id -> {step, loss} of the last evaluation known

async function look() {
  const page = await get("/v1/jobs", { limit: LIMIT });
  show(page);
  await Promise.all(page.data.map(readEval));
  return POLL_MS;
}

function show(page) {
  table.hidden = page.data.length === 0;
  state.hidden = !table.hidden;
  document.getElementById("more").hidden = !page.has_more;
  if (table.hidden) {
    state.replaceChildren(
      "No jobs yet. Create one: ",
      node("code", "roadless submit FILE.yaml --watch"),
    );
  }
  const shown = page.data.map((job) => fill(rowOf(job), job));
  const body = table.tBodies[0];
  if (shown.some((row, i) => body.rows[i] !== row) || body.rows.length !== shown.length) {
    body.replaceChildren(...shown);
  }
}

function rowOf(job) {
  if (!rows.has(job.id)) {
    const row = node("tr");
    const name = node("th", "", { scope: "row" });
    name.append(node("a", job.name, { href: `/jobs/${job.id}`, title: job.id }));
    const phase = node("td");
    phase.append(node("span", "", { class: "phase" }));
    row.append(name, phase, node("td", "", { class: "wide" }));
    for (const kind of ["number", "number", "number wide"])
      row.append(node("td", "", { class: kind }));
    rows.set(job.id, row);
  }
  return rows.get(job.id);
}

function fill(row, job) {
  const [, phase, why, step, evalLoss, born] = row.cells;
  showPhase(phase.firstChild, job.phase);
  const texts = [
    [why, reason(job)],
    [step, count(job.progress.step)],
    [evalLoss, loss(evals.get(job.id)?.loss)],
    [born, age(job.created_at)],
  ];
  for (const [cell, text] of texts) if (cell.textContent !== text) cell.textContent = text;
  return row;
}

// The last evaluation is at most one interval behind the step, so a few points are enough where
// evaluations come by steps.
async function readEval(job) {
  const step = job.progress.step;
  if (evals.get(job.id)?.readAt === step) return;
  const since = Math.max(-1, step - 2 * (job.spec.evaluation.every_steps ?? step) - 1);
  const curve = await get(`/v1/jobs/${job.id}/eval-curve`, { since });
  evals.set(job.id, { readAt: step, loss: curve.data.at(-1)?.loss ?? evals.get(job.id)?.loss });
  fill(rowOf(job), job);
}

keepLooking(look);
