/**
 * The admin's page of one task. Its bar is a <task-progress>, which dispatches every event. Log lines
 * are added as they come; the other parts of the page are fetched again from the server.
 */

const root = document.querySelector("[data-task-page]");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const log = part("log");

// Milliseconds.
const GATHER = 300; // events that come together are looked up together
const LEAST = 1_000; // between two looks
const LATER = 5_000; // after one that brought nothing
const LEASES = 15_000; // between two looks at the lease, which no event reports
const COPIED = 3_000; // a button says that it has copied

const BOTTOM = 40; // pixels from the end of the log, at which a reader follows it

// Looked up each time: without a stream, the bar is one of the parts that are exchanged.
const bar = () => root.querySelector("task-progress");
const ended = () => ["completed", "failed", "cancelled"].includes(bar()?.getAttribute("status"));

// The bar's own script comes after this one: its stream continues from where the page was read.
root
  .querySelector("task-progress:not([data-since])")
  ?.setAttribute("data-since", root.dataset.since);
// Storages that rename static files do not rename imports, so the script tag has the URLs. Awaited
// only where they are used: no event may come before its listener.
const urls = [...document.scripts].find(({ src }) => src === import.meta.url)?.dataset ?? {};
const live = import(urls.live ?? "./live.js");
const growing = import(urls.grow ?? "./grow.js");

/* ---- The log ---- */

function clock(timeZone) {
  try {
    return new Intl.DateTimeFormat("en-GB", { timeStyle: "medium", timeZone });
  } catch {
    // A zone that Python knows and browsers do not: then in the viewer's own.
    return new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
  }
}

const time = clock(root.dataset.zone || undefined);
const idOf = (line) => Number(line?.dataset.line ?? 0);

function lineOf({ eventId, timestamp, data }) {
  const line = document.createElement("li");
  line.dataset.level = data.level;
  line.dataset.line = eventId;
  const [when, level, message] = ["time", "b", "span"].map((tag) => document.createElement(tag));
  when.dateTime = timestamp;
  when.textContent = time.format(new Date(timestamp));
  level.textContent = data.level;
  message.textContent = data.message;
  message.dir = "auto";
  line.append(when, " ", level, " ", message);
  return line;
}

/** Put a line where its id belongs, unless it is there. */
function place(line) {
  let before = log.lastElementChild;
  while (idOf(before) > idOf(line)) before = before.previousElementSibling;
  if (before && idOf(before) === idOf(line)) return;
  if (before) before.after(line);
  else log.prepend(line);
}

/** Take over lines, of the stream or of a look at the page: the same come by both. */
function take(lines, { instead = false } = {}) {
  if (lines.length === 0) return;
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < BOTTOM;
  if (instead) log.replaceChildren();
  for (const line of lines) place(line);
  let cut = instead;
  for (; log.childElementCount > Number(root.dataset.logMost); cut = true)
    log.firstElementChild.remove();
  if (cut) {
    const earlier = part("log-earlier");
    earlier.querySelector("a").href = `?before=${idOf(log.firstElementChild)}#task-log`;
    earlier.hidden = false;
  }
  part("log-empty").hidden = true;
  if (follows) log.scrollTop = log.scrollHeight;
}

/** Take over the newest lines, as a look at the page shows them. */
function catchUp(lines) {
  const last = log.lastElementChild;
  // If they all are newer than the lines here, some may be missing between: a link leads to those.
  take(lines, { instead: last !== null && idOf(lines[0]) > idOf(last) });
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
  let answered = true;
  const { DeniedError, request } = await live;
  const { grow, parsePage } = await growing;
  try {
    const page = parsePage(await (await request(location.href)).text());
    for (const there of page.querySelectorAll("[data-refresh]")) renew(there, grow);
    if ("tail" in log.dataset) catchUp([...page.querySelector("[data-tail]").children]);
  } catch (error) {
    // If the answer was refused, asking again would not help. The bar says what is wrong.
    answered = error instanceof DeniedError;
  }
  asking = false;
  timer = again || !answered ? setTimeout(refresh, answered ? LEAST : LATER) : 0;
  again = false;
}

function renew(there, grow) {
  const here = root.querySelector(`[data-refresh="${there.dataset.refresh}"]`);
  if (!here) return;
  const focused = here.contains(document.activeElement) && document.activeElement;
  there.tabIndex = -1;
  grow(here, there);
  if (!focused || focused === document.activeElement) return;
  // A keyboard keeps its place, also when the button that has the focus goes.
  (focused.isConnected ? focused : here).focus({ preventScroll: true });
}

root.addEventListener("task-progress:event", ({ detail }) => {
  if (detail.eventType !== "task_log") refreshSoon();
  else if ("tail" in log.dataset) take([lineOf(detail)]);
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
  say(button, said);
});

/** Let a button say for a while what it has done, and have it read out. */
function say(button, said) {
  button.dataset.label ??= button.textContent;
  button.textContent = part("said").textContent = said;
  setTimeout(() => {
    button.textContent = button.dataset.label;
    part("said").textContent = "";
  }, COPIED);
}
