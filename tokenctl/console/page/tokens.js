/** Both tokens: whose, how long they still live, where they are, and what the access token says. */

import { claimsUnverified } from "/client/tokenctl.js";
import { amount, dayAndTime, duration, get, make, onPress } from "./dom.js";

const MEANING = {
  iss: "who issued it", sub: "the user", aud: "for whom it is", exp: "when it ends", iat: "when it was issued",
  jti: "its own id", client_id: "the application", scope: "what it allows", sid: "the login",
};

const KEPT = {
  cookie: "In an HttpOnly cookie: no script of a page can read it.",
  memory: "In the memory of this page: a reload logs you out.",
  local: "In localStorage: it survives a reload, all tabs share it, and any script of the page can read it.",
};

const text = (name, value) => (name === "exp" || name === "iat" ? `${value} (${dayAndTime(value)})` : String(value));

/** Where the refresh token is, and with a link where else it could be. */
function tellPlace(about, stored) {
  const place = about.cookies ? "cookie" : stored ? "local" : "memory";
  get("kept").textContent = KEPT[place];
  if (about.cookies) return;
  const other = stored
    ? make("a", { href: "/" }, "Keep it in memory") : make("a", { href: "/?storage=local" }, "Keep it in localStorage");
  get("kept").append(" ", other, ", or start the server with --cookies.");
}

function tellClaims(claims) {
  get("claims").replaceChildren(...Object.entries(claims).map(([name, value]) => make("tr", {},
    make("th", { scope: "row" }, name, make("span", { className: "hint" }, MEANING[name] ?? "")),
    make("td", {}, text(name, value) || "none"))));
}

async function nameOf(auth, { user: { name } }) {
  if (name) return name;
  const answer = await auth.fetch("/auth/me");
  if (!answer.ok) throw new Error(`the server said ${answer.status}`);
  return (await answer.json()).name;
}

function count(bar, line, left, whole) {
  bar.max = whole;
  bar.value = left;
  line.textContent = left > 0 ? `${duration(left / 1000)} left` : "expired; the next call renews it";
}

export function tokens({ auth, about, say, stored }) {
  let whole = null; // how long both lived when they came here
  let refreshed = 0;
  const tick = () => {
    const { accessExpiresIn, refreshExpiresIn } = auth.state;
    if (accessExpiresIn === null) return;
    whole ??= { access: accessExpiresIn, refresh: refreshExpiresIn };
    count(get("access-bar"), get("access-left"), accessExpiresIn, whole.access);
    count(get("refresh-bar"), get("refresh-left"), refreshExpiresIn, whole.refresh);
  };
  async function tell(state) {
    const name = await nameOf(auth, state);
    const claims = claimsUnverified(await auth.getToken());
    if (auth.state.login !== state.login) return; // meanwhile somebody else has logged in, or nobody
    get("user-name").textContent = name;
    tellClaims(claims);
    whole.access = (claims.exp - claims.iat) * 1000; // of another tab's some is spent
  }

  setInterval(tick, 500);
  tellPlace(about, stored);
  auth.subscribe((event, state) => {
    if (event.type === "refreshed") refreshed += 1;
    get("refreshed").textContent = amount(refreshed, "time");
    if (event.type === "ended") for (const id of ["claims", "user-name"]) get(id).replaceChildren();
    if (state.status !== "in" || event.type === "unavailable") return;
    whole = null;
    tick();
    tell(state).catch(say.wrong);
  });
  onPress(get("copy-token"), say, async () => {
    await navigator.clipboard.writeText(await auth.getToken());
    say.done("The access token is copied.");
  });
}
