/**
 * The admin's list of tasks, kept up to date. Rows are changed in place: they neither move nor
 * vanish. Links offer to show new tasks.
 */

// Storages that rename static files do not rename imports, so the script tag has the URLs.
const urls = [...document.scripts].find(({ src }) => src === import.meta.url)?.dataset ?? {};
const { Connection } = await import(urls.live ?? "./live.js");
const { growChildren, parsePage } = await import(urls.grow ?? "./grow.js");
const { FACTS, TERMINAL, describe, duration, fill, reduce } = await import(
  urls.state ?? "./task-state.js"
);

const root = document.querySelector("[data-task-list]");
const words = JSON.parse(root.dataset.words);

// Milliseconds.
const ROWS = { after: 250, least: 1_000 }; // milliseconds after a change, and between two fetches
const NEWS = 2_000; // between two looks for new tasks
const LEASES = 10_000; // between two checks of leases, which no stream reports
const GATHER = 3_000; // before an announcement, so that it covers several changes
const QUIET = 15_000; // between two such announcements
const SEND_TIMEOUT = 10_000;

const part = (within, name) => within.querySelector(`[data-part="${name}"]`);
const say = (element, text) => {
  if (element && element.textContent !== text) element.textContent = text;
};
/* ---- A row ---- */

const UNKNOWN = { status: "", attempt: -1, heard: -1, value: null, text: "", due: 0 };

/** A row. The server renders it; only its progress and its times are changed here. */
class Row {
  #asked = -1; // when the newest rendering was requested
  #state = UNKNOWN;
  #lost = false; // its worker may be lost
  #ready = 0; // when the task could start, by our clock
  sending = false; // one of its buttons was pressed, and there is no answer yet

  constructor(marker) {
    this.id = marker.dataset.task;
    this.line = marker.closest("tr");
    const now = performance.now();
    this.#read({ time: Date.parse(root.dataset.now), asked: 0, received: now });
  }

  get label() {
    return this.#part("label").textContent;
  }

  get status() {
    return this.#state.status;
  }

  get ended() {
    return this.#part("status").dataset.status === "removed" || TERMINAL.has(this.status);
  }

  #part(name) {
    return part(this.line, name);
  }

  /** Handle a message; return whether the task ended by it. */
  receive(message) {
    const { ended } = this;
    const after = reduce(this.#state, message);
    if (after !== this.#state) this.#state = { ...after, heard: message.received };
    this.patch();
    return !ended && this.ended;
  }

  /** Read what the server rendered; return whether the task has ended since. */
  #read(times) {
    const info = JSON.parse(this.line.querySelector("[data-task]").dataset.info);
    this.#lost = info.lost;
    this.#ready = times.received - (times.time - Date.parse(info.run_after));
    return this.receive({ type: "task_status", data: info, ...times });
  }

  /** Take over cells that the server rendered; return whether the task has ended since. */
  take(cells, times) {
    if (times.asked < this.#asked || this.sending) return false;
    this.#asked = times.asked;
    const focused = this.line.contains(document.activeElement) && document.activeElement;
    for (const [column, html] of Object.entries(cells))
      growChildren(
        this.line.querySelector(`.field-${column}`),
        parsePage(`<div>${html}</div>`).body.firstChild,
      );
    // A keyboard keeps its place if the button that has the focus goes.
    if (focused && (focused.hidden || !focused.isConnected)) this.#part("label").focus();
    return this.#read(times);
  }

  remove() {
    this.#part("status").dataset.status = "removed";
    say(this.#part("state"), words.removed);
    for (const gone of this.line.querySelectorAll(".task-badge, button[data-act]"))
      gone.hidden = true;
    this.line.toggleAttribute("data-removed", true);
  }

  /** Show progress and times as they are now. */
  patch() {
    if (this.ended) return;
    const now = performance.now();
    if (this.status === "pending") {
      const wait = this.#ready - now;
      const scheduled = wait > 1000;
      const said = duration(Math.abs(wait), words);
      const waited = this.#part("waited");
      say(waited, scheduled ? fill(words.starts_in, { duration: said }) : said);
      waited.parentNode.toggleAttribute("data-unnamed", scheduled);
    } else if (this.status === "running") {
      const { value, percent, text, left, time } = describe(this.#state, words, now);
      const bar = this.#part("bar");
      if (value === null) bar.removeAttribute("value");
      else if (bar.getAttribute("value") !== String(value)) bar.value = value;
      say(this.#part("percent"), percent);
      say(this.#part("text"), text);
      say(this.#part("remaining"), this.#lost ? "" : left);
      say(this.#part("ran"), time);
    }
  }

  /** Whether a message changes more than progress. */
  isOutdatedBy({ type, data }) {
    return FACTS.includes(type) || this.#lost || data.attempt > this.#state.attempt;
  }
}

/* ---- The list ---- */

class List {
  rows = new Map();
  streamUrl = root.dataset.streamUrl;
  keepalive = Number(root.dataset.keepalive) * 1000;
  // The stream's URL names the events that it carries.
  events = new URL(this.streamUrl, document.baseURI).searchParams.get("events")?.split(",") ?? [];
  #connection = new Connection(this);
  #outdated = new Set(); // ids of rows to fetch
  #fetched = 0; // when rows were fetched
  #refusal = ""; // of the last button that was pressed
  #ends = [];
  #newTasks = ""; // the words about them that are not announced yet
  #announced = -Infinity; // when something was last announced that no button asked for
  #pause = part(root, "pause");

  constructor() {
    for (const marker of document.querySelectorAll("template[data-task]")) {
      const row = new Row(marker);
      this.rows.set(row.id, row);
    }
    this.#pause.hidden = false;
    this.#pause.addEventListener("click", () => {
      const paused = this.#connection.state !== "paused";
      this.#pause.setAttribute("aria-pressed", String(paused));
      this.#connection.pause(paused);
    });
    document.addEventListener("click", (event) => this.#act(event));
    setInterval(() => this.#tick(), 1000);
    this.start();
  }

  /* -- What the connection calls -- */

  start() {
    this.changed();
    if (this.#connection.resting) return;
    this.#connection.open();
    this.#connection.later("leases", LEASES, () => this.#leases());
  }

  /** The stream begins with unfinished tasks. Rows may show tasks that have ended since. */
  opened() {
    this.poll();
  }

  looked() {
    this.#news();
  }

  async poll() {
    await this.#ask([...this.rows.keys()], { news: true });
  }

  denied() {
    this.#refusal = "";
    this.#pause.hidden = true;
    this.#connection.end();
  }

  /** Show how the list is kept up to date, and what is wrong with that. */
  changed() {
    const { state, trouble } = this.#connection;
    const shown = part(root, "live-state");
    shown.dataset.live = { live: "on", polling: "polled" }[state] ?? state;
    say(shown, words[state] ?? "");
    const said = words[trouble] ?? "";
    const banner = part(root, "banner");
    say(banner, [said, this.#refusal].filter(Boolean).join(" "));
    banner.hidden = !banner.textContent;
  }

  /* -- What is shown -- */

  /** The time that passes. */
  #tick() {
    if (this.#connection.resting || document.hidden) return;
    for (const row of this.rows.values()) row.patch();
  }

  #announce(text) {
    // Also if the text is the same as before: it is about another task, because names repeat.
    part(root, "announcer").textContent = text;
  }

  /** Announce soon which tasks ended and which are new, but not too often. */
  #announceSoon() {
    if (this.#connection.resting || this.#connection.waits("announce")) return;
    const wait = Math.max(GATHER, this.#announced + QUIET - performance.now());
    this.#connection.later("announce", wait, () => {
      const said = [this.#endings(), this.#newTasks].filter(Boolean).join(". ");
      this.#newTasks = "";
      if (!said) return;
      this.#announced = performance.now();
      this.#announce(said);
    });
  }

  /** Return which tasks ended since the last announcement. */
  #endings() {
    const ends = this.#ends.splice(0);
    if (ends.length === 1) {
      const [{ label, status }] = ends;
      return fill(words.news, { label, state: words[`is_${status}`] });
    }
    const counts = new Map();
    for (const { status } of ends) counts.set(status, (counts.get(status) ?? 0) + 1);
    return [...counts].map(([end, n]) => `${words[`is_${end}`]}: ${n}`).join(", ");
  }

  receive(event) {
    let message;
    try {
      message = JSON.parse(event.data);
    } catch {
      return; // not one of ours
    }
    const row = this.rows.get(message.task_id);
    if (!row) {
      if (FACTS.includes(event.type)) this.#newsSoon();
      return;
    }
    const { data, timestamp } = message;
    if (row.isOutdatedBy({ type: event.type, data })) this.#fetchSoon(row);
    const ended = row.receive({
      type: event.type,
      data,
      time: Date.parse(timestamp),
      asked: this.#connection.asked,
      received: performance.now(),
    });
    if (ended) this.#announceEnd(row);
  }

  #announceEnd(row) {
    this.#ends.push(row);
    this.#announceSoon();
  }

  /* -- Asking -- */

  /** Fetch soon how the server renders a row, together with others. */
  #fetchSoon(row) {
    this.#outdated.add(row.id);
    if (this.#connection.waits("rows")) return;
    const due = Math.max(ROWS.after, this.#fetched + ROWS.least - performance.now());
    this.#connection.later("rows", due, () => this.#ask([...this.#outdated]));
  }

  #newsSoon() {
    if (root.dataset.top && !this.#connection.waits("news"))
      this.#connection.later("news", NEWS, () => this.#news());
  }

  #news() {
    if (!document.hidden && root.dataset.top) this.#ask([], { news: true });
  }

  async #leases() {
    const running = [...this.rows.values()].filter((row) => row.status === "running");
    if (running.length > 0 && this.#connection.live && !document.hidden)
      await this.#ask(running.map((row) => row.id));
    if (!this.#connection.resting) this.#connection.later("leases", LEASES, () => this.#leases());
  }

  async #ask(ids, { news = false } = {}) {
    const url = new URL(root.dataset.liveUrl, document.baseURI);
    url.search = root.dataset.query;
    url.searchParams.set("_ids", ids.join(","));
    if (news && root.dataset.top) url.searchParams.set("_new", "1");
    const asked = performance.now();
    if (ids.length > 0) this.#fetched = asked;
    for (const id of ids) this.#outdated.delete(id);
    const read = (response) => response.json();
    const answer = await this.#connection.ask(url, read, {
      headers: { Accept: "application/json" },
    });
    if (!answer) return;
    const times = { time: Date.parse(answer.now), asked, received: performance.now() };
    this.#answered(ids, answer, times);
  }

  #answered(ids, { rows, top }, times) {
    for (const id of ids) {
      const row = this.rows.get(id);
      if (!(id in rows)) row.remove();
      else if (row.take(rows[id], times)) this.#announceEnd(row);
    }
    if (top && !this.#connection.resting) this.#tellNew(top);
  }

  #tellNew(top) {
    const count = top.filter((id) => !this.rows.has(id)).length;
    const link = part(root, "new");
    link.hidden = count === 0;
    if (count === 0) return;
    link.href = location.href;
    let text = words.new_some;
    if (count === 1) text = words.new_one;
    else if (count === top.length && count >= 100) text = words.new_many;
    text = fill(text, { count });
    if (link.textContent === text) return;
    link.textContent = text;
    this.#newTasks = text;
    this.#announceSoon();
  }

  /* -- The buttons of a row -- */

  async #act(event) {
    const button = event.target.closest("button[data-act]");
    const row =
      button && this.rows.get(button.closest("tr")?.querySelector("[data-task]")?.dataset.task);
    if (!row || this.#connection.state === "off") return;
    event.preventDefault();
    // Not `disabled`: the keyboard focus would be lost.
    if (button.ariaDisabled === "true") return;
    if (button.dataset.act === "cancel" && !(await this.#confirmed(row))) return;
    button.ariaDisabled = "true";
    row.sending = true;
    this.#refusal = await this.#send(button, row);
    row.sending = false;
    button.ariaDisabled = null;
    if (this.#connection.state === "off") return;
    this.changed();
    // Also while updates are paused: it is the answer to what was pressed.
    await this.#ask([row.id], { news: true });
  }

  /** Ask for confirmation. The browser returns the focus to the button. */
  async #confirmed(row) {
    const dialog = part(root, "ask");
    part(dialog, "asked").textContent = row.label;
    dialog.returnValue = "";
    const closed = new Promise((resolve) => {
      dialog.addEventListener("close", resolve, { once: true });
    });
    dialog.showModal();
    await closed;
    return dialog.returnValue === "yes";
  }

  /** Send what a button is for. Return why it was refused; empty if it was not. */
  async #send(button, row) {
    const token = document.querySelector("#changelist-form [name=csrfmiddlewaretoken]").value;
    let reason = words.no_answer;
    try {
      const response = await fetch(button.getAttribute("formaction"), {
        method: "POST",
        headers: { Accept: "application/json", "X-CSRFToken": token },
        redirect: "manual", // it leads to a log-in page
        signal: AbortSignal.timeout(SEND_TIMEOUT),
      });
      if (response.type === "opaqueredirect" || response.status === 401) {
        this.denied();
        return "";
      }
      // Only answers about the task itself are JSON.
      if (response.status === 403) reason = words.forbidden;
      else if (response.status === 404) reason = words.gone_now;
      else if (response.ok || response.status === 409) {
        const { detail } = await response.json();
        if (response.ok) {
          this.#announce(fill(words.news, { label: row.label, state: detail }));
          this.#announced = performance.now();
          return "";
        }
        reason = detail;
      }
    } catch {
      // There was no answer, or it cannot be parsed.
    }
    return fill(words.refused, { reason });
  }
}

new List();

/* ---- The filters: at most one is open, and a click elsewhere closes it. ---- */

const filters = [...document.querySelectorAll(".task-filter")];

document.addEventListener("click", ({ target }) => {
  for (const filter of filters) if (!filter.contains(target)) filter.open = false;
});
document.addEventListener("keydown", ({ key }) => {
  const open = key === "Escape" && filters.find((filter) => filter.open);
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});
