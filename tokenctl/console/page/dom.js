/** What all parts of the page need of the document: its elements, text, and times as people read them. */

export const get = (id) => document.getElementById(id);

/** All elements that have a data attribute. */
export const having = (name) => [...document.querySelectorAll(`[data-${name}]`)];

/** A new element; properties by their names in the DOM, children are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { data = {}, ...rest } = properties;
  Object.assign(element, rest);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

/** "1 time", "20 times". */
export const amount = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

const UNITS = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];

/** A duration in the two largest units that it has; `seconds` may be negative. */
export function duration(seconds) {
  const parts = [];
  let left = Math.abs(Math.round(seconds));
  for (const [unit, size] of UNITS) {
    if (left >= size && parts.length < 2) parts.push(`${Math.floor(left / size)} ${unit}`);
    left %= size;
  }
  return (seconds < 0 ? "-" : "") + (parts.join(" ") || "0 s");
}

/** An instant (s since the epoch) in local time: to the second, to the minute, without its day. */
export const dayAndTime = (at) => new Date(at * 1000).toLocaleString("sv");
export const toTheMinute = (at) => dayAndTime(at).slice(0, -3);
export const timeOfDay = (at) => new Date(at * 1000).toLocaleTimeString("sv");

/** Do it when the button is pressed; not again before it is done, and say what went wrong. */
export function onPress(button, say, work) {
  button.addEventListener("click", async () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    // Not `disabled`: that would take the focus from who came by the keyboard.
    button.setAttribute("aria-disabled", "true");
    try { await work(button); } catch (error) { say.wrong(error); } finally { button.removeAttribute("aria-disabled"); }
  });
}
