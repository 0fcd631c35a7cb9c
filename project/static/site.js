// Two courtesies; every page works without them.

// The pages are in English, so their dates are too: the reader's own English, if they have one.
const languages = navigator.languages.filter((language) => language.startsWith("en-"));
const zoned = new Intl.DateTimeFormat([...languages, "en-GB"], {
  dateStyle: "medium",
  timeStyle: "medium",
});

/** Show times in the reader's zone instead of the site's. */
function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.valueOf())) {
      time.title = time.textContent;
      time.textContent = zoned.format(moment);
    }
  }
}

let fetching = new AbortController();

/** Bring parts of a task's page up to date, without a reload. A newer call replaces an older. */
async function refresh(ids) {
  fetching.abort();
  fetching = new AbortController();
  const { signal } = fetching;
  const response = await fetch(location.href, { headers: { Accept: "text/html" }, signal });
  if (!response.ok || response.redirected) {
    throw new Error(`The page could not be fetched again: ${response.status}`);
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

/** Fetch the history in a moment: however many facts arrive at once, they come together. */
function historySoon() {
  if (ended || historyDue || !document.getElementById(HISTORY)) return;
  historyDue = setTimeout(async () => {
    historyDue = 0;
    try {
      await refresh([HISTORY]);
    } catch (error) {
      // The next fact tries again, and the end, which may have been faster, does in any case.
      if (error.name !== "AbortError") console.debug(error);
    }
  }, HISTORY_DELAY);
}

document.addEventListener("task-progress:event", historySoon);

// What happened between the page and its stream comes as a new status and not as a fact.
const statuses = new MutationObserver(historySoon);
for (const bar of document.querySelectorAll("task-progress")) {
  statuses.observe(bar, { attributeFilter: ["status"] });
}

document.addEventListener("task-progress:end", async () => {
  if (!document.getElementById(OUTCOME)) return;
  // What is fetched now is the last of it; nothing may replace it half-way.
  ended = true;
  clearTimeout(historyDue);
  try {
    await refresh([OUTCOME, HISTORY]);
  } catch (error) {
    console.debug(error);
    const hint = document.createElement("p");
    hint.textContent = "The task has ended. Reload the page to see its result.";
    document.getElementById(OUTCOME).append(hint);
  }
});
