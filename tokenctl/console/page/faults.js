/** What can go wrong, on demand: the next refresh, the server's clock, the end of this login. */

import { dayAndTime, duration, get, having, onPress } from "./dom.js";
import * as server from "./server.js";

const WAITING = {
  drop: "the response is dropped after the commit", unavailable: "503", delay: "a delay", none: "none",
};

export function faults({ auth, about, say }) {
  function tellClock() {
    get("server-clock").textContent = dayAndTime(server.now());
    get("clock-offset").textContent = server.ahead() ? `(${duration(server.ahead())} ahead)` : "";
  }

  function tellFault({ kind }) {
    get("fault").textContent = WAITING[kind];
    for (const button of having("fault")) {
      button.setAttribute("aria-pressed", String(kind !== "none" && button.dataset.fault === kind));
    }
  }

  /** How far that is (s): a number, or until just behind the end of a token. */
  function until(what) {
    const { accessExpiresIn, refreshExpiresIn } = auth.state;
    const left = { access: accessExpiresIn, refresh: refreshExpiresIn }[what];
    return left === undefined ? Number(what) : Math.ceil(left / 1000) + 1;
  }

  for (const button of having("fault")) {
    onPress(button, say, async () => {
      const { fault: kind, milliseconds = 0 } = button.dataset;
      tellFault(await server.setFault({ kind, milliseconds: Number(milliseconds) }));
      say.done(kind === "none" ? "All is well again." : `For the next refresh: ${WAITING[kind]}.`);
    });
  }
  for (const button of having("advance")) {
    onPress(button, say, async () => {
      const seconds = until(button.dataset.advance);
      await server.advance(seconds);
      tellClock();
      say.done(`The server's clock went ahead by ${duration(seconds)}.`);
    });
  }
  onPress(get("revoke-me"), say, async () => {
    const answer = await auth.fetch(`/auth/sessions/${auth.state.login}`, { method: "DELETE" });
    if (!answer.ok) throw new Error(`the server said ${answer.status}`);
    say.done("This login is revoked at the server. The next call shows it.");
  });

  auth.subscribe((event) => {
    if (event.type === "refreshed" || event.type === "unavailable") { // then a fault may be used up
      server.state().catch(() => {}); // that it is away has been told
    }
  });
  server.watch(({ fault }) => { tellFault(fault); tellClock(); });
  tellFault(about.fault);
  tellClock();
  setInterval(tellClock, 1000);
}
