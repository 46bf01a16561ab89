/** The endpoints under /dev, which only a development server has, and its clock, which they move. */

/** What the clock said (s since the epoch), how far it is ahead (s), and when that was here. */
let clock = { now: 0, offset: 0, seen: 0 };

const keep = ({ now, offset }) => { clock = { now, offset, seen: performance.now() }; };

/** The time there, now; seconds since the epoch. */
export const now = () => clock.now + (performance.now() - clock.seen) / 1000;

/** How far it is ahead of the machine's; seconds. */
export const ahead = () => clock.offset;

async function answer(response) {
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.detail ?? `the server said ${response.status}`);
}

const post = async (path, body) => answer(await fetch(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
}));

const watchers = new Set();

/** Call it with each state that is read: another tab may have moved the clock, or caused a fault. */
export const watch = (watcher) => watchers.add(watcher);

/** Its clock, the fault that waits, its mode, the demo user. */
export async function state() {
  const about = await answer(await fetch("/dev/state"));
  keep(about.clock);
  for (const watcher of watchers) watcher(about);
  return about;
}

/** Let its clock go ahead, by whole seconds. */
export const advance = async (seconds) => keep(await post("/dev/clock", { seconds }));

export const setFault = (fault) => post("/dev/faults", fault);
