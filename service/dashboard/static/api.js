// Reading the API with the cookie, and doing so again and again while somebody looks.

const TIMEOUT_MS = 15_000;

export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const url = given.length ? `${path}?${new URLSearchParams(given)}` : path;
  const response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Problem(response.status, problem.detail ?? `the service answered ${response.status}`);
  }
  return response.json();
}

// Calls `look` until it asks to end, one call at a time, and tells in the header how the line to the
// service is. `look` returns the milliseconds until its next call.
export async function keepLooking(look) {
  const link = document.getElementById("link");
  const show = (state, text) => {
    if (link.textContent !== text) link.textContent = text;
    link.className = `link ${state}`;
  };
  for (;;) {
    let pause = 3000;
    try {
      pause = await look();
      show("on", "live");
    } catch (error) {
      if (error instanceof Problem && error.status < 500) {
        show("off", error.message);
        return;
      }
      console.warn(error);
      show("off", "the service is not answering; trying again");
    }
    await new Promise((resume) => setTimeout(resume, pause));
    await whenVisible();
  }
}

function whenVisible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resume) =>
    document.addEventListener("visibilitychange", resume, { once: true }),
  );
}
