/** Code to copy, with this server's addresses in it. */

import { get, having, onPress } from "./dom.js";

export function snippets({ about, say }) {
  const values = { ...about, origin: location.origin };
  for (const place of having("fill")) place.textContent = values[place.dataset.fill];
  const mode = about.cookies ? "cookie" : "token";
  for (const part of having("mode")) if (part.dataset.mode !== mode) part.remove();
  for (const button of having("copy")) {
    onPress(button, say, async () => {
      await navigator.clipboard.writeText(get(button.dataset.copy).textContent);
      say.done("Copied.");
    });
  }
}
