/** Logging in, registering, logging out. */

import { get, onPress } from "./dom.js";

/** The names of the fields that an error is about; none if it may be any. */
function fieldsOf({ code = "", errors = [] }) {
  const named = errors.map((each) => each.field);
  if (code.startsWith("user.")) named.push("username");
  if (code.startsWith("password.") && code !== "password.wrong") named.push("password");
  return named;
}

/** Tell what is wrong below the form, mark the fields, and go to the first; with null nothing is wrong. */
function tell(form, error) {
  const line = form.querySelector(".error"), wrong = error ? fieldsOf(error) : [];
  line.textContent = error?.message ?? "";
  for (const { field, message } of error?.errors ?? []) line.textContent += ` ${field}: ${message}`;
  for (const input of form.querySelectorAll("input")) {
    const hit = error && (wrong.length === 0 || wrong.includes(input.name));
    if (hit) input.setAttribute("aria-invalid", "true"); else input.removeAttribute("aria-invalid");
    input.setAttribute("aria-describedby", line.id);
  }
  if (error) (form.querySelector("[aria-invalid]") ?? form.querySelector("input")).focus();
}

function enterBy(form, work, say) {
  const button = form.querySelector("button");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.getAttribute("aria-disabled") === "true") return;
    const { username, password } = form.elements;
    tell(form, null);
    button.setAttribute("aria-disabled", "true");
    try {
      await work(username.value, password.value);
      password.value = "";
      say.done(`Logged in as ${username.value}.`);
    } catch (error) { tell(form, error); } finally { button.removeAttribute("aria-disabled"); }
  });
}

export function entrance({ auth, about, say }) {
  const login = get("log-in"), fill = () => {
    login.elements.username.value = about.username;
    login.elements.password.value = about.password;
  };
  fill();
  auth.subscribe((event) => { if (event.type === "ended") fill(); });
  enterBy(login, (name, password) => auth.login(name, password), say);
  enterBy(get("register"), (name, password) => auth.register(name, password), say);
  onPress(get("log-out"), say, () => auth.logout());
  onPress(get("log-out-all"), say, () => auth.logout({ all: true }));
}
