/**
 * Growing what came from the server into what is on the page, so that focus, what is selected, open
 * details and a click under way stay. Nodes with the same `data-key` are the same.
 */

const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.dataset?.key : undefined);
const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);

// Trusted Types, where a site enforces them, want a policy wherever text becomes a document.
const policy = globalThis.trustedTypes?.createPolicy("tasks_app-admin", {
  createHTML: (text) => text,
});

/** Parse what the server sent. */
export const parsePage = (html) =>
  new DOMParser().parseFromString(policy?.createHTML(html) ?? html, "text/html");

/** Make `here` like `there`, keeping every node that can stay. */
export function grow(here, there) {
  if (here.nodeType !== Node.ELEMENT_NODE) {
    if (here.nodeValue !== there.nodeValue) here.nodeValue = there.nodeValue;
    return;
  }
  growAttributes(here, there);
  growChildren(here, there);
}

/** Make the contents of `here` like those of `there`. */
export function growChildren(here, there) {
  const keyed = new Map();
  for (const child of here.childNodes) if (key(child)) keyed.set(key(child), child);
  let next = here.firstChild;
  for (const wanted of [...there.childNodes]) {
    const known = keyed.get(key(wanted));
    if (known && known !== next && alike(known, wanted)) next = here.insertBefore(known, next);
    if (next && alike(next, wanted)) {
      grow(next, wanted);
      next = next.nextSibling;
    } else {
      here.insertBefore(document.importNode(wanted, true), next);
    }
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function growAttributes(here, there) {
  // Whether details are open is the reader's to say.
  for (const { name } of [...here.attributes])
    if (!there.hasAttribute(name) && name !== "open") here.removeAttribute(name);
  for (const { name, value } of there.attributes)
    if (here.getAttribute(name) !== value) here.setAttribute(name, value);
}
