// The chat of this tab, kept over a reload of the page. It stays in this browser, and is dropped after a day.

const STORE = "chats";
const TAB = "pocketvlm-tab";
const DAY_MS = 24 * 3600 * 1000;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function tab() {
  let name = sessionStorage.getItem(TAB);
  if (!name) {
    name = `${Date.now()}-${Math.random().toString(36).slice(2)}`;
    sessionStorage.setItem(TAB, name);
  }
  return name;
}

async function store(mode) {
  const opening = indexedDB.open("pocketvlm", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
  return (await done(opening)).transaction(STORE, mode).objectStore(STORE);
}

/** Return what `keep` was given last in this tab, or null, also where the browser keeps nothing (private windows). */
export async function kept() {
  try {
    const chats = await store("readwrite");
    for (const name of await done(chats.getAllKeys())) {
      if (Date.now() - Number(String(name).split("-")[0]) > DAY_MS) chats.delete(name);
    }
    return (await done(chats.get(tab()))) ?? null;
  } catch {
    return null;
  }
}

/** Forget the chat of this tab, at once: a page that is loaded again in this moment does not have it. */
export function forget() {
  try {
    const name = tab();
    sessionStorage.removeItem(TAB);
    store("readwrite").then((chats) => chats.delete(name), () => {});
  } catch {
    // nothing was kept, then
  }
}

export async function keep(value) {
  try {
    const name = tab(); // of the chat that this is, whatever comes before the store is open
    await done((await store("readwrite")).put(value, name));
  } catch {
    // the chat lives as long as the page, then
  }
}
