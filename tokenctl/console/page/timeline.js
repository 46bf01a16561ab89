/** What happens, as it happens: the server's audit log by its stream, and the events of the client here. */

import { get, make, timeOfDay } from "./dom.js";
import * as server from "./server.js";

const SHOWN = 200;
const ALARMS = new Set(["token.reuse", "unavailable", "storage_failed"]);

const HERE = {
  login: "new tokens", refreshed: "new tokens", adopted: "the tokens of another tab", absent: "nobody is logged in",
};

/** The end of a login's id: enough to tell one from the others. */
const short = (id) => make("span", { title: id }, `rt_…${id.slice(-8)}`);

const details = (event) => [event.user, event.client_id !== "default" && event.client_id, event.reason,
  event.token_id && short(event.token_id)];

/** What became of a refresh at the server. */
const refresh = ({ reason, code, token_id: id }) => [
  reason === "retried" ? "presented again: the same new tokens, no other rotation" : reason ?? code ?? "rotated",
  id && short(id)];

export function timeline({ auth }) {
  let source = null, last = null;

  function add(who, at, type, more, alarm = ALARMS.has(type)) {
    const list = get("events"), parts = more.filter(Boolean).flatMap((part) => [" · ", part]).slice(1);
    list.prepend(make("li", { data: { who, alarm } },
      make("time", {}, timeOfDay(at)), make("span", { className: "who" }, who), make("strong", {}, type),
      make("span", { className: "more" }, ...parts)));
    while (list.children.length > SHOWN) list.lastChild.remove();
  }

  const tell = (text) => { get("stream").textContent = text; };

  function open() {
    source = new EventSource(last === null ? "/dev/events" : `/dev/events?after=${last}`);
    source.onerror = () => tell("the server is away");
    source.addEventListener("listening", ({ lastEventId }) => {
      last = lastEventId;
      tell("live");
      server.state().catch(() => {}); // what another tab or another server has changed
    });
    source.addEventListener("audit", ({ data, lastEventId }) => {
      last = lastEventId;
      const event = JSON.parse(data);
      add("server", event.at, event.type, details(event));
    });
    source.addEventListener("refresh", ({ data }) => {
      const told = JSON.parse(data);
      add("server", told.at, `refresh ${told.status}`, refresh(told));
    });
  }

  // A browser has six connections to a server for all tabs: only those that are seen may keep one.
  function follow() {
    if (document.hidden) source?.close();
    else if (!source || source.readyState === EventSource.CLOSED) open();
  }

  document.addEventListener("visibilitychange", follow);
  follow();
  auth.subscribe(({ type, reason, cause }) => {
    const alarm = ALARMS.has(type) || (type === "ended" && reason !== "logout");
    add("this tab", server.now(), type, [reason ?? cause?.message ?? HERE[type]], alarm);
  });
}
