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

/** Bring the parts of a task's page that its end changes up to date, without a reload. */
async function refresh(ids) {
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!response.ok || response.redirected) {
    throw new Error(`The page could not be fetched again: ${response.status}`);
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
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

document.addEventListener("task-progress:end", async () => {
  const outcome = document.getElementById("task-outcome");
  if (!outcome) return;
  try {
    await refresh(["task-outcome", "task-history"]);
  } catch {
    const hint = document.createElement("p");
    hint.textContent = "The task has ended. Reload the page to see its result.";
    outcome.append(hint);
  }
});
