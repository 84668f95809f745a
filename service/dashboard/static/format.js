// Numbers, times and phases as people read them.

export const NOTHING = "-";

const TERMINAL = new Set(["STOPPED", "SUCCEEDED", "FAILED", "CANCELLED"]);
const TONE = {
  RUNNING: "good",
  SUCCEEDED: "good",
  FAILED: "bad",
  FAILING: "bad",
  RECOVERING: "warn",
  CANCELLING: "warn",
  CANCELLED: "warn",
};
const REASONS = {
  waiting_for_capacity: "waiting for free workers",
  no_runner: "no runner is connected; is `roadless up` running?",
};

export const isTerminal = (phase) => TERMINAL.has(phase);

export function showPhase(element, phase) {
  if (element.dataset.phase === phase) return;
  element.dataset.phase = phase;
  element.className = `phase ${TONE[phase] ?? ""} ${isTerminal(phase) ? "done" : ""}`;
  element.replaceChildren(node("span", phase));
}

export function reason(job) {
  if (!job.reason) return "";
  return REASONS[job.reason] ?? job.reason.replaceAll("_", " ");
}

export const count = (value) => value.toLocaleString("en");
export const loss = (value) =>
  value === null || value === undefined ? NOTHING : String(+value.toPrecision(5));

export function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? +seconds.toFixed(1) : Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function age(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172_800
    ? `${Math.floor(seconds / 3600)} h`
    : `${Math.floor(seconds / 86_400)} d`;
}

export function bytes(size) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 1000) return `${+size.toPrecision(3)} ${unit}`;
    size /= 1000;
  }
  return `${+size.toPrecision(3)} TB`;
}

export function node(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Changes the text only when it differs: a selection or a screen reader is not disturbed.
export function write(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}
