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

/** What a person can do something with: an own sentence where the browser's is none. */
const sentence = (error) => (
  error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message);

let fading;

/** One message at a time. What is done need not be looked at for long; what went wrong stays until the next. */
function tell(notice, alert) {
  get("notice").textContent = notice;
  get("alert").textContent = alert;
  clearTimeout(fading);
  fading = setTimeout(() => { get("notice").textContent = ""; }, 8_000);
}

const say = {
  sentence,
  done(text) { tell(text, ""); },
  // That nobody is logged in an event has told.
  wrong(error) { if (error.code !== "logged_out") tell("", sentence(error)); },
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
  let away = false; // told once: the client goes on trying
  auth.subscribe((event, state) => {
    const unavailable = event.type === "unavailable";
    if (event.type === "ended") say.done(ENDED[event.reason]);
    if (event.type === "adopted" && document.body.dataset.status !== "in") say.done("Logged in by another tab.");
    if (away && event.type === "refreshed") say.done("The tokens are renewed again.");
    if (unavailable && !away) {
      say.wrong({ message: `No refresh is possible now; the login is kept. (${event.cause.message})` });
    }
    away = unavailable;
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
  const known = await auth.resume().catch(say.wrong);
  if (!known) show("out");
  if (!known && location.hash === "#demo") {
    history.replaceState(null, "", location.pathname + location.search); // a reload is no second start
    await auth.login(about.username, about.password);
  }
}

begin().catch(say.wrong);
