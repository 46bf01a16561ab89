/**
 * The page of `serve --dev`, which shows the browser client at work on a login of its own.
 *
 * Owns what all parts share: the client, what the server is like, the two lines for messages, and which
 * parts are to be seen. Each part has its module, and begins when it is called with that.
 */

import { createAuth } from "/client/tokenctl.js";
import { calls } from "./calls.js";
import { get, having } from "./dom.js";
import { entrance } from "./entrance.js";
import { faults } from "./faults.js";
import { logins } from "./logins.js";
import * as server from "./server.js";
import { snippets } from "./snippets.js";
import { timeline } from "./timeline.js";
import { tokens } from "./tokens.js";

const say = {
  done(text) { get("notice").textContent = text; get("alert").textContent = ""; },
  wrong(error) { get("alert").textContent = error.message; get("notice").textContent = ""; },
};

const ENDED = {
  logout: "Logged out.",
  invalid_grant: "The server has ended this login.",
  elsewhere: "This login was ended in another tab.",
};

/** What is to be seen; the focus goes where the next step is, if it was on what is gone. */
function show(status) {
  const focused = document.activeElement;
  document.body.dataset.status = status;
  for (const part of having("when")) part.hidden = part.dataset.when !== status;
  if (focused !== document.body && focused.closest("[hidden]")) {
    get(status === "in" ? "tokens-heading" : "log-in-heading").focus();
  }
}

function follow(auth) {
  auth.subscribe((event, state) => {
    if (event.type === "ended") say.done(ENDED[event.reason]);
    if (event.type === "unavailable") {
      say.wrong({ message: `No refresh is possible now; the login is kept. (${event.cause.message})` });
    }
    if (state.status !== document.body.dataset.status) show(state.status);
  });
}

async function begin() {
  const about = await server.state();
  const inBrowser = new URLSearchParams(location.search).get("storage") === "local";
  const auth = createAuth({
    mode: about.cookies ? "cookie" : "token", storage: inBrowser && !about.cookies ? "local" : "memory",
  });
  const page = { auth, about, say, stored: inBrowser };
  follow(auth);
  for (const part of [tokens, calls, logins, faults, timeline, snippets, entrance]) part(page);
  const known = await auth.resume();
  if (!known) show("out");
  if (!known && location.hash === "#demo") await auth.login(about.username, about.password);
}

begin().catch((error) => {
  show("out");
  say.wrong(error);
});
