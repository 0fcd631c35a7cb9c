// Local times, and results without a reload. Every page works without this script.

// Dates are in English, like the pages: in the reader's own variant of English if they have one.
const languages = navigator.languages.filter((language) => language.startsWith("en-"));
const timeFormat = new Intl.DateTimeFormat([...languages, "en-GB"], {
  dateStyle: "medium",
  timeStyle: "medium",
});

/** Show times in the reader's zone instead of the site's. */
function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const date = new Date(time.dateTime);
    if (!Number.isNaN(date.valueOf())) {
      time.title = time.textContent;
      time.textContent = timeFormat.format(date);
    }
  }
}

let fetching = new AbortController();

/** Replace parts of a task's page by their newest version. A later call aborts an earlier one. */
async function refresh(ids) {
  fetching.abort();
  fetching = new AbortController();
  const { signal } = fetching;
  const response = await fetch(location.href, { headers: { Accept: "text/html" }, signal });
  if (!response.ok || response.redirected) {
    throw new Error(`Could not fetch the page again: status ${response.status}`);
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  if (signal.aborted) return;
  for (const id of ids) {
    const old = document.getElementById(id);
    const fresh = page.getElementById(id);
    if (!old || !fresh) continue;
    const focused = old.contains(document.activeElement);
    localise(fresh);
    old.replaceWith(fresh);
    if (focused) fresh.focus({ preventScroll: true });
  }
}

localise(document);

const HISTORY = "task-history";
const OUTCOME = "task-outcome";
const HISTORY_DELAY = 500;
let historyDue = 0;
let ended = false;

/** Fetch the history after a short delay, so that many events cause one request. */
function historySoon() {
  if (ended || historyDue || !document.getElementById(HISTORY)) return;
  historyDue = setTimeout(async () => {
    historyDue = 0;
    try {
      await refresh([HISTORY]);
    } catch (error) {
      // The next event tries again, and so does the end of the task, which may have aborted this.
      if (error.name !== "AbortError") console.debug(error);
    }
  }, HISTORY_DELAY);
}

document.addEventListener("task-progress:event", historySoon);

// A change between the rendering of the page and the start of its stream sends no event: only the
// status of the bar changes.
const statuses = new MutationObserver(historySoon);
for (const bar of document.querySelectorAll("task-progress")) {
  statuses.observe(bar, { attributeFilter: ["status"] });
}

document.addEventListener("task-progress:end", async () => {
  if (!document.getElementById(OUTCOME)) return;
  // This is the last update, so no other one may replace it.
  ended = true;
  clearTimeout(historyDue);
  try {
    await refresh([OUTCOME, HISTORY]);
  } catch (error) {
    console.debug(error);
    const hint = document.createElement("p");
    hint.textContent = "The task has ended. Reload the page to see the result.";
    document.getElementById(OUTCOME).append(hint);
  }
});
