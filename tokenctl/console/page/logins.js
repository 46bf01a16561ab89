/** The user's own logins, and ending them. */

import { amount, get, make, onPress, toTheMinute } from "./dom.js";

/** Those that others claim to be come last. */
const BROWSERS = [/Edg\/[\d.]+/, /OPR\/[\d.]+/, /Firefox\/[\d.]+/, /\w*Chrome\/[\d.]+/, /Safari\/[\d.]+/, /^\S+/];

/** The part of a user agent that people know. */
const known = (agent) => BROWSERS.map((each) => each.exec(agent ?? "")?.[0]).find(Boolean) ?? "an unknown program";

/** So many the server gives at most, the most recently used first. */
const MOST = 200;

export function logins({ auth, say }) {
  let others = [], shown = null; // whose login they are

  async function end(id) {
    const answer = await auth.fetch(`/auth/sessions/${id}`, { method: "DELETE" });
    // Somebody else was faster: it is over all the same.
    if (!answer.ok && answer.status !== 404) throw new Error(`the server said ${answer.status}`);
  }

  function row(login) {
    const device = make("strong", {}, known(login.user_agent));
    const times = `since ${toTheMinute(login.created_at)}, last used ${toTheMinute(login.last_used_at)}`;
    const about = make("div", {}, make("p", {}, device, ` from ${login.ip ?? "an unknown address"}`),
      make("p", { className: "hint" }, times));
    if (login.current) return make("li", { data: { current: true } }, about, "this one");
    const which = make("span", { className: "for-readers" }, ` of ${toTheMinute(login.created_at)}`);
    const button = make("button", {}, "End this one", which);
    onPress(button, say, async () => {
      await end(login.id);
      get("logins-heading").focus(); // the row goes
      await load();
      say.done("That login is over.");
    });
    return make("li", {}, about, button);
  }

  async function load() {
    const { login } = auth.state;
    const answer = await auth.fetch("/auth/sessions");
    if (!answer.ok) throw new Error(`the server said ${answer.status}`);
    const { sessions } = await answer.json();
    if (auth.state.login !== login) return; // they are somebody else's
    others = sessions.filter(({ current }) => !current);
    get("logins").replaceChildren(...sessions.map(row));
    if (sessions.length === MOST) get("logins").append(make("li", { className: "hint" }, `the newest ${MOST}`));
    get("end-others").disabled = others.length === 0;
  }

  async function endOthers() {
    get("logins-heading").focus(); // the button is of no use any more
    let ended = 0;
    try {
      while (others.length) {
        for (const each of others) {
          await end(each.id);
          ended += 1;
        }
        say.done(`${amount(ended, "login is", "logins are")} over.`);
        await load();
      }
    } catch (error) {
      await load().catch(() => {}); // some are over, and what went wrong is to be told
      throw error;
    }
  }

  auth.subscribe((_, state) => {
    if (state.login === shown) return;
    shown = state.login;
    get("logins").replaceChildren(); // the next user's are others
    if (shown) load().catch(say.wrong);
  });
  onPress(get("reload-logins"), say, load);
  onPress(get("end-others"), say, endOthers);
}
