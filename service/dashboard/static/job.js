// One job, looked at every second while it lives.

import { get, keepLooking } from "./api.js";
import { BandChart, PointChart } from "./charts.js";
import {
  bytes,
  count,
  duration,
  isTerminal,
  loss,
  NOTHING,
  node,
  reason,
  showPhase,
  write,
} from "./format.js";
import { Overlay } from "./theory.js";

const LIVE_MS = 1000;
const ENDED_MS = 10_000;
const RATE_LOOKS = 10;
// A checkpoint may come without a new step; look for one at least so often.
const FRESH_MS = 5000;

const byId = (id) => document.getElementById(id);
const jobId = byId("job").dataset.job;
const base = `/v1/jobs/${jobId}`;
const axis = byId("axis");
const isLog = byId("log");

const seen = { mark: null, fence: null, buckets: null, curve: [], progress: [], lastEvent: null };

const trainChart = new BandChart(byId("train-chart"), {
  describe: ([x, , , last]) =>
    `Train loss in ${x.length} buckets; the last is ${loss(last.at(-1))}.`,
});
const evalChart = new PointChart(byId("eval-chart"), {
  describe: () =>
    `${seen.curve.length} evaluations at the averaged point; the last loss is ${loss(seen.curve.at(-1)?.loss)}.${overlay.inWords()}`,
});
const overlay = new Overlay(`${base}/theory`);

async function look() {
  const job = await get(base);
  showHeader(job);
  await readEvents(); // pins and deletions are told there alone
  const stale = isTerminal(job.phase) ? 0 : Math.floor(Date.now() / FRESH_MS);
  const { version, phase, progress, attempt } = job;
  const mark = [version, phase, progress.step, attempt?.fence, seen.lastEvent, stale].join();
  if (mark !== seen.mark) {
    await Promise.all([readTrain(), readCurve(job), readCheckpoints(), overlay.read(job.phase)]);
    showCharts(job);
  }
  seen.mark = mark;
  return isTerminal(job.phase) ? ENDED_MS : LIVE_MS;
}

function showHeader(job) {
  document.title = `${job.phase} ${job.name} · Roadless`;
  write("name", job.name);
  showPhase(byId("phase"), job.phase);
  const why = [reason(job), job.message].filter(Boolean).join(": ");
  write("why", why);
  byId("why").hidden = why === "";
  const { step, samples, wall_seconds } = job.progress;
  const most = job.spec.budget?.max_steps;
  write("step", most ? `${count(step)} of ${count(most)}` : count(step));
  write("speed", speed(job));
  write("samples", count(samples));
  write("wall", duration(wall_seconds));
  write("attempt", attempt(job));
  for (const option of axis.options) {
    if (option.value in job.progress)
      option.disabled = job.progress[option.value] === 0 && option.value !== "step";
  }
  write("spec", JSON.stringify(job.spec, null, 2));
}

function attempt(job) {
  if (!job.attempt) return NOTHING;
  const { fence, world_size } = job.attempt;
  return `${fence} (${world_size} ${world_size === 1 ? "rank" : "ranks"})`;
}

// Over the last looks while it moves; over the whole training before that and after.
function speed(job) {
  const now = { step: job.progress.step, at: job.progress.wall_seconds };
  if (now.step < (seen.progress.at(-1)?.step ?? 0)) seen.progress = [];
  seen.progress = [...seen.progress, now].slice(-RATE_LOOKS);
  const moves = !isTerminal(job.phase) && seen.progress[0].at < now.at;
  const first = moves ? seen.progress[0] : { step: 0, at: 0 };
  if (now.at === first.at) return NOTHING;
  return `${loss((now.step - first.step) / (now.at - first.at))} steps/s`;
}

async function readTrain() {
  seen.buckets = await get(`${base}/metrics/train.loss`, { x: axis.value, buckets: 500 });
}

// Only what is new is asked for, unless a new attempt has superseded some of the old. Which points
// are kept changes as checkpoints come and go, so the links come from the list of checkpoints.
async function readCurve(job) {
  const fence = job.attempt?.fence ?? null;
  if (fence !== seen.fence) seen.curve = [];
  seen.fence = fence;
  const { data } = await get(`${base}/eval-curve`, { since: seen.curve.at(-1)?.step });
  seen.curve.push(...data);
}

async function readCheckpoints() {
  const page = await get(`${base}/checkpoints`, { limit: 200 });
  const rows = page.data.map((one) =>
    row([count(one.step), "number"], [named(one)], [bytes(one.total_bytes), "number"]),
  );
  fillTable("checkpoints", rows, "No checkpoints yet.");
  seen.kept = new Map(
    page.data.filter((one) => one.kind === "eval").map((one) => [one.step, one.id]),
  );
}

// What it is, and the id that the command line asks for.
function named(one) {
  const name = node("span", one.kind === "eval" ? "model" : "training state");
  if (one.pinned) name.append(" ", node("span", "pinned", { class: "pin" }));
  const link = archive(one.id);
  link.replaceChildren(node("code", one.id));
  link.className = "id";
  name.append(link);
  return name;
}

const address = (id) => `/v1/checkpoints/${id}/download`;

function archive(id) {
  const link = node("a", "download", { href: address(id), download: `${id}.tar` });
  link.setAttribute("aria-label", `download ${id}`);
  return link;
}

function showCharts(job) {
  const wanted = { axis: axis.selectedOptions[0].text, isLog: isLog.checked };
  const { x, min, max, last } = seen.buckets;
  trainChart.draw([x, min, max, last], { ...wanted, empty: nothingYet(job, "step") });
  write("train-loss", loss(last.findLast((value) => value !== null)));
  const curve = seen.curve;
  const rows = overlay.over(curve, axis.value);
  evalChart.links = rows.map((row) =>
    seen.kept.has(row.step) && row.loss !== undefined ? address(seen.kept.get(row.step)) : null,
  );
  const columns = ["x", "loss", ...(overlay.isDrawn ? ["predicted", "promised"] : [])];
  evalChart.draw(
    columns.map((name) => rows.map((row) => row[name])),
    {
      ...wanted,
      empty: nothingYet(job, "evaluation"),
    },
  );
  write("eval-loss", loss(curve.at(-1)?.loss));
  fillTable("evals", curve.map(evalRow).reverse(), "No evaluations yet.");
}

function evalRow(point) {
  const metrics = Object.entries(point.metrics).map(
    ([name, value]) => `${name.replace(/^eval\./, "")} ${loss(value)}`,
  );
  const kept = seen.kept.get(point.step);
  return row(
    [count(point.step), "number"],
    [loss(point.loss), "number"],
    [metrics.join(", ")],
    [kept ? archive(kept) : ""],
  );
}

function nothingYet(job, what) {
  if (isTerminal(job.phase)) return `The job ended before its first ${what}.`;
  if (job.phase === "QUEUED") return `Queued: ${reason(job) || "waiting for its turn"}.`;
  if (job.phase === "RUNNING") return `Training. The first ${what} is yet to come.`;
  return `${job.phase[0]}${job.phase.slice(1).toLowerCase()}: no ${what} yet.`;
}

async function readEvents() {
  for (;;) {
    const page = await get(`${base}/events`, { after: seen.lastEvent, limit: 200 });
    for (const event of page.data) byId("events").prepend(eventItem(event));
    seen.lastEvent = page.last_id ?? seen.lastEvent;
    if (!page.has_more) return;
  }
}

function eventItem(event) {
  const item = node("li");
  const at = new Date(event.at);
  item.append(
    node("time", at.toLocaleTimeString(), { datetime: event.at, title: at.toLocaleString() }),
  );
  item.append(node("span", `${event.code}: ${event.message}`));
  return item;
}

function row(...cells) {
  const made = node("tr");
  for (const [content, kind] of cells) {
    const cell = node("td", "", kind ? { class: kind } : {});
    cell.append(content);
    made.append(cell);
  }
  return made;
}

// Rows are replaced only when they read differently, so that a link under the pointer stays.
function fillTable(id, rows, empty) {
  const body = byId(id).tBodies[0];
  const wanted = rows.length ? rows : [emptyRow(byId(id).tHead.rows[0].cells.length, empty)];
  const html = (list) => Array.from(list, (one) => one.innerHTML).join();
  if (html(body.rows) !== html(wanted)) body.replaceChildren(...wanted);
}

function emptyRow(width, text) {
  const made = node("tr");
  made.append(node("td", text, { colspan: width, class: "dim" }));
  return made;
}

async function redraw() {
  const job = await get(base);
  await Promise.all([readTrain(), overlay.read(job.phase)]);
  showCharts(job);
}

for (const control of [axis, isLog, overlay.toggle]) {
  control.addEventListener("change", () => redraw().catch(console.warn));
}
byId("log").form.addEventListener("submit", (event) => event.preventDefault());
keepLooking(look);
