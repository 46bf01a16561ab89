/** Calls with the access token: one, or many at once, and what became of them. */

import { amount, get, having, make, onPress } from "./dom.js";

const SHOWN = 6;

/** "20 × 200" and the like. */
function outcomes(results) {
  const counts = new Map();
  for (const { value, reason } of results) {
    const outcome = value?.status ?? reason.code ?? "no answer";
    counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
  }
  return [...counts].map(([outcome, times]) => (times === 1 ? `${outcome}` : `${times} × ${outcome}`)).join(", ");
}

export function calls({ auth, say }) {
  let refreshes = 0;
  auth.subscribe(({ type }) => {
    if (type === "refreshed") refreshes += 1;
    if (type !== "ended") return;
    get("calls").replaceChildren(); // the next user's are others
    get("answer").textContent = "none yet";
  });

  async function call(path, count) {
    const before = refreshes, began = performance.now();
    const results = await Promise.allSettled(Array.from({ length: count }, () => auth.fetch(path)));
    const line = `GET ${path}: ${outcomes(results)} in ${Math.round(performance.now() - began)} ms, `
      + `${amount(refreshes - before, "refresh", "refreshes")}`;
    get("calls").prepend(make("li", {}, line));
    while (get("calls").children.length > SHOWN) get("calls").lastChild.remove();
    const last = results.at(-1), failed = results.find((each) => each.reason)?.reason;
    if (failed) return say.wrong(failed);
    say.done(line);
    get("answer").textContent = JSON.stringify(await last.value.json(), null, 2);
  }

  for (const button of having("call")) {
    onPress(button, say, () => call(button.dataset.call, Number(button.dataset.count)));
  }
}
