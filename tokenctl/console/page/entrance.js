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
function tell(form, error, say) {
  const line = form.querySelector(".error"), wrong = error ? fieldsOf(error) : [];
  line.textContent = error ? say.sentence(error) : "";
  for (const input of form.querySelectorAll("input")) {
    const hit = error && (wrong.length === 0 || wrong.includes(input.name));
    if (hit) input.setAttribute("aria-invalid", "true"); else input.removeAttribute("aria-invalid");
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
      const name = username.value;
      await work(name, password.value);
      get("unheard").hidden = true;
      say.done(`Logged in as ${name}.`);
    } catch (error) { tell(form, error, say); } finally { button.removeAttribute("aria-disabled"); }
  });
}

export function entrance({ auth, about, say }) {
  const login = get("log-in"), register = get("register");
  let unheard; // how the logout was meant that the server has not heard of

  function fill() {
    for (const form of [login, register]) {
      form.reset();
      tell(form, null);
    }
    login.elements.username.value = about.username;
    login.elements.password.value = about.password;
  }

  /** It is over here in any case; what the server has not heard of is to be said again. */
  async function leave(options) {
    unheard = options;
    try { await auth.logout(options); } catch (error) {
      get("unheard").hidden = error.code === "invalid_grant"; // that login was over, and can end no others
      throw error;
    }
    get("unheard").hidden = true;
    say.done("Logged out.");
  }

  fill();
  auth.subscribe((event) => { if (["login", "adopted", "ended"].includes(event.type)) fill(); });
  enterBy(login, (name, password) => auth.login(name, password), say);
  enterBy(register, (name, password) => auth.register(name, password), say);
  onPress(get("log-out"), say, () => leave());
  onPress(get("log-out-all"), say, () => leave({ all: true }));
  onPress(get("log-out-again"), say, () => leave(unheard));
}
