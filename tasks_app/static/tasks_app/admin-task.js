/**
 * The admin's page of one task. Its bar is a <task-progress>, which tells of every event; log lines
 * are added as they come, and of the rest the page asks itself how it looks now.
 */

const root = document.querySelector("[data-task-page]");
const log = root.querySelector('[data-part="log"]');

// Milliseconds.
const GATHER = 300; // events that come together are looked up together
const LEAST = 1_000; // between two looks
const LEASES = 15_000; // between two looks at the lease, of which no event tells

// Looked up each time: where there is no stream, the bar is one of the parts that are exchanged.
const bar = () => root.querySelector("task-progress");
const ended = () => ["completed", "failed", "cancelled"].includes(bar()?.getAttribute("status"));

/* ---- The log ---- */

const time = new Intl.DateTimeFormat("en-GB", {
  timeStyle: "medium",
  timeZone: root.dataset.zone || undefined,
});

function append({ timestamp, data }) {
  if (!("tail" in log.dataset)) return;
  const bottom = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const line = document.createElement("li");
  line.dataset.level = data.level;
  const [when, level, message] = ["time", "b", "span"].map((tag) => document.createElement(tag));
  when.dateTime = timestamp;
  when.textContent = time.format(new Date(timestamp));
  level.textContent = data.level;
  message.textContent = data.message;
  line.append(when, " ", level, " ", message);
  log.append(line);
  while (log.children.length > Number(root.dataset.logMost)) log.firstElementChild.remove();
  root.querySelector('[data-part="log-empty"]').hidden = true;
  if (bottom) log.scrollTop = log.scrollHeight;
}

if ("tail" in log.dataset) log.scrollTop = log.scrollHeight;

/* ---- The rest ---- */

let timer = 0;
let asking = false;
let again = false;

function refreshSoon(delay = GATHER) {
  again = asking;
  if (!asking && timer === 0) timer = setTimeout(refresh, delay);
}

async function refresh() {
  asking = true;
  try {
    const response = await fetch(location.href, { cache: "no-store", redirect: "error" });
    if (response.ok) {
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const there of page.querySelectorAll("[data-refresh]")) swap(there);
      const tail = page.querySelector("[data-tail]");
      // More lines than before: some came before the stream was open.
      if (tail && tail.children.length > log.children.length) {
        log.replaceChildren(...tail.children);
        log.scrollTop = log.scrollHeight;
        root.querySelector('[data-part="log-empty"]').hidden = true;
      }
    }
  } catch {
    // The bar says what is wrong with the connection.
  }
  asking = false;
  timer = again ? setTimeout(refresh, LEAST) : 0;
  again = false;
}

function swap(there) {
  const here = root.querySelector(`[data-refresh="${there.dataset.refresh}"]`);
  if (!here || here.innerHTML === there.innerHTML) return;
  // What somebody reads or selects is left alone.
  const open = [...here.querySelectorAll("details[open]")].length > 0;
  const focused = here.contains(document.activeElement);
  here.replaceChildren(...there.childNodes);
  if (open) for (const details of here.querySelectorAll("details")) details.open = true;
  if (focused) here.focus({ preventScroll: true });
}

root.addEventListener("task-progress:event", ({ detail }) => {
  if (detail.eventType === "task_log") append(detail);
  else refreshSoon();
});
root.addEventListener("task-progress:end", () => refreshSoon());
if (!ended()) {
  refreshSoon(LEAST);
  const leases = setInterval(() => {
    if (ended()) clearInterval(leases);
    else if (!document.hidden) refreshSoon();
  }, LEASES);
}

/* ---- Copying ---- */

root.addEventListener("click", async ({ target }) => {
  const button = target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  let said = root.dataset.copied;
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // Without HTTPS a page has no clipboard: select it, and try the old way.
    const selection = getSelection();
    selection.selectAllChildren(source);
    if (!document.execCommand("copy")) said = root.dataset.selected;
  }
  button.textContent = said;
});
