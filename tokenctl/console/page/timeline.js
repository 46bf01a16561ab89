/** What happens, as it happens: the server's audit log by its stream, and the events of the client here. */

import { get, make, timeOfDay } from "./dom.js";
import * as server from "./server.js";

const SHOWN = 200;
const ALARMS = new Set(["token.reuse", "ended", "unavailable", "storage_failed"]);

const HERE = {
  login: "new tokens", refreshed: "new tokens", adopted: "the tokens of another tab", absent: "nobody is logged in",
};

const details = (event) => [event.user, event.client_id !== "default" && event.client_id, event.reason, event.token_id]
  .filter(Boolean).join(" · ");

export function timeline({ auth }) {
  let source = null, last = null;

  function add(who, at, type, more) {
    const list = get("events");
    list.prepend(make("li", { data: { who, alarm: ALARMS.has(type) } },
      make("time", {}, timeOfDay(at)), make("span", { className: "who" }, who), make("strong", {}, type),
      make("span", { className: "more" }, more)));
    while (list.children.length > SHOWN) list.lastChild.remove();
  }

  const tell = (text) => { get("stream").textContent = text; };

  function open() {
    source = new EventSource(last === null ? "/dev/events" : `/dev/events?after=${last}`);
    source.onopen = () => tell("live");
    source.onerror = () => tell("the server is away");
    source.addEventListener("audit", ({ data }) => {
      const event = JSON.parse(data);
      last = event.id;
      add("server", event.at, event.type, details(event));
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
    add("this tab", server.now(), type, reason ?? cause?.message ?? HERE[type]);
  });
}
