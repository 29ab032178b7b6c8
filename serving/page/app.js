// The page: its tabs, and who is told of what.

import { Chat } from "./chat.js";
import { Classify } from "./classify.js";
import { Compare } from "./compare.js";
import { make } from "./element.js";
import { Models } from "./models.js";
import { takeFromEverywhere } from "./pictures.js";
import { Similarity } from "./similarity.js";
import { Status } from "./status.js";

const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const status = new Status(offer);
const chat = new Chat(status);
const views = [chat, new Compare(status), new Classify(status), new Similarity(status), new Models()];
let shown = null;

for (const view of views) {
  const name = `tab-${view.name}`;
  view.tab = make("button", { type: "button", role: "tab", id: name, onclick: () => show(view) }, view.title);
  view.tab.setAttribute("aria-controls", `view-${view.name}`);
  Object.assign(view.element, { id: `view-${view.name}`, hidden: true });
  view.element.setAttribute("role", "tabpanel");
  view.element.setAttribute("aria-labelledby", name);
  tabs.append(view.tab);
  main.append(view.element);
}
tabs.addEventListener("keydown", (event) => {
  const there = views.filter((view) => !view.tab.hidden);
  const steps = {
    ArrowRight: 1,
    ArrowLeft: -1,
    Home: -there.indexOf(shown),
    End: there.length - 1 - there.indexOf(shown),
  };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const next = there[(there.indexOf(shown) + steps[event.key] + there.length) % there.length];
  show(next);
  next.tab.focus();
});

function show(view) {
  for (const each of views) {
    each.element.hidden = each !== view;
    each.tab.setAttribute("aria-selected", String(each === view));
    each.tab.tabIndex = each === view ? 0 : -1;
  }
  shown = view;
  document.title = view === chat ? "PocketVLM" : `${view.title} · PocketVLM`;
  history.replaceState(null, "", view === chat ? location.pathname : `#${view.name}`);
}

/** Give every view the models that it can use; one without any is not shown. */
function offer(cards) {
  const own = cards.filter((card) => card.root === card.id); // aliases name the same models again
  for (const view of views) {
    const usable = own.filter(view.wants);
    view.tab.hidden = own.length > 0 && usable.length === 0;
    if (usable.length) view.offer(usable);
  }
  if (shown.tab.hidden) show(views.find((view) => !view.tab.hidden));
}

document.getElementById("words").hidden = true;
document.getElementById("app").hidden = false;
show(views.find((view) => `#${view.name}` === location.hash) ?? chat);
takeFromEverywhere(() => shown.tray);
if (matchMedia("(max-width: 60rem)").matches) document.querySelector(".fold").open = false;
chat.restore();
status.look();
