/** Calls with the access token: one, or many at once, and what became of them. */

import { amount, get, having, make, onPress } from "./dom.js";

const SHOWN = 6;

/** "20 × 200" and the like. */
function outcomes(results) {
  const counts = new Map();
  for (const { status, value, reason } of results) {
    const outcome = status === "fulfilled" ? value.status : reason.code ?? reason.message;
    counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
  }
  return [...counts].map(([outcome, times]) => (times === 1 ? `${outcome}` : `${times} × ${outcome}`)).join(", ");
}

export function calls({ auth, say }) {
  let refreshes = 0;
  auth.subscribe(({ type }) => { if (type === "refreshed") refreshes += 1; });

  async function call(path, count) {
    const before = refreshes, began = performance.now();
    const results = await Promise.allSettled(Array.from({ length: count }, () => auth.fetch(path)));
    const line = `GET ${path}: ${outcomes(results)} in ${Math.round(performance.now() - began)} ms, `
      + `${amount(refreshes - before, "refresh", "refreshes")}`;
    get("calls").prepend(make("li", {}, line));
    while (get("calls").children.length > SHOWN) get("calls").lastChild.remove();
    if (auth.state.status === "in") say.done(line); // else that is what there is to say, and it is said
    const last = results.at(-1);
    get("answer").textContent = last.value ? JSON.stringify(await last.value.json(), null, 2) : last.reason.message;
  }

  for (const button of having("call")) {
    onPress(button, say, () => call(button.dataset.call, Number(button.dataset.count)));
  }
}
