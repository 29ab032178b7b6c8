// Elements made without HTML text: nothing that a model or a user writes is ever parsed as markup.

/**
 * Return a new element.
 * @param {string} kind "button.primary": tag and classes.
 * @param {Object} fields Attributes; functions under "onclick" and the like; true and false for those without a value.
 * @param {...(Node|string|null)} children Strings become text; null is left out.
 */
export function make(kind, fields = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  element.className = classes.join(" ");
  for (const [name, value] of Object.entries(fields)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Return a labelled control: its words, the control, and a note below it. */
export function field(words, control, note = null) {
  control.id ||= nextId();
  const told = note === null ? null : make("p.note", { id: `${control.id}-note` }, note);
  if (told) control.setAttribute("aria-describedby", told.id);
  return make("div.field", {}, make("label", { for: control.id }, words), control, told);
}

/** Return a select of some names. */
export const choices = (names, chosen) => fill(make("select"), names, chosen);

/** Give a select other names, and return it; `chosen` alone counts, whatever was chosen before. */
export function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  select.value = chosen;
  return select;
}

let lastId = 0;
export function nextId() {
  lastId += 1;
  return `e${lastId}`;
}

/** Tell a screen reader something that sighted users see elsewhere. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}
