/**
 * The admin's list of tasks, kept up to date. Rows are changed in place: they neither move nor
 * vanish. Links offer to show new tasks.
 */

// Storages that rename static files do not rename imports, so the script tag has the URLs.
const { live, state } =
  [...document.scripts].find(({ src }) => src === import.meta.url)?.dataset ?? {};
const { Connection } = await import(live ?? "./live.js");
const { FACTS, TERMINAL, TERMINAL_EVENTS, describe, duration, fill, reduce } = await import(
  state ?? "./task-state.js"
);

const root = document.querySelector("[data-task-list]");
const words = JSON.parse(root.dataset.words);

// Milliseconds.
const NEWS = 2_000; // between two looks for new tasks
const LEASES = 10_000; // between two looks at leases, of which no stream tells
const GATHER = 3_000; // what ended or came meanwhile is read out together
const QUIET = 15_000; // between two such announcements
const SEND_TIMEOUT = 10_000;

const part = (within, name) => within.querySelector(`[data-part="${name}"]`);
const say = (element, text) => {
  if (element && element.textContent !== text) element.textContent = text;
};
/* ---- A row ---- */

const UNKNOWN = { status: "", attempt: -1, heard: -1, value: null, text: "", due: 0 };

class Row {
  constructor(marker) {
    this.id = marker.dataset.task;
    this.line = marker.closest("tr");
    this.removed = false;
    this.retried = false;
    this.lastError = ""; // of a task that waits for its next attempt
    this.state = UNKNOWN;
    this.receive({
      type: "task_status",
      data: JSON.parse(marker.dataset.info),
      time: Date.parse(root.dataset.now),
      asked: 0,
      received: performance.now(),
    });
  }

  get label() {
    return part(this.line, "label").textContent;
  }

  get ended() {
    return this.removed || TERMINAL.has(this.state.status);
  }

  /** Take a message of the stream, or an answer of the list's own; return whether it ended by it. */
  receive(message) {
    const { type, data, time, received } = message;
    const ended = this.ended;
    let after = reduce(this.state, message);
    // An answer of the list's own has the words for staff, also after the end.
    if (after.error && data.error?.type) after = { ...after, error: data.error };
    if (type === "task_status" && "worker" in data)
      Object.assign(this, { worker: data.worker, lost: data.lost, stuck: data.stuck });
    else if (type === "task_started") Object.assign(this, { worker: data.worker, lost: false });
    else if (type === "progress_update") this.lost = false;
    else if (type in TERMINAL_EVENTS && data.stuck) this.stuck = true;
    if (type === "task_retry_scheduled") this.lastError = `${data.error.type}: ${data.error.message}`;
    else if ("last_error" in data) this.lastError = data.last_error;
    // When it might begin, by the server's clock and by ours.
    const ready = data.run_after ?? (this.ready === undefined ? data.created_time : null);
    if (ready) {
      this.ready = Date.parse(ready);
      this.readyHere = received - (time - this.ready);
    }
    if (TERMINAL.has(after.status) && after.started === null)
      this.endedAt ??= data.end_time ? Date.parse(data.end_time) : time;
    if (after !== this.state) this.state = { ...after, heard: received };
    return !ended && this.ended;
  }

  remove() {
    this.removed = true;
  }

  #isScheduled(now) {
    return this.state.status === "pending" && this.readyHere - now > 1000;
  }

  #waited(now) {
    const { status, started } = this.state;
    if (status === "pending") {
      const until = this.readyHere - now;
      if (this.#isScheduled(now)) return fill(words.starts_in, { duration: duration(until, words) });
      return duration(-until, words);
    }
    const until = started ?? this.endedAt;
    return until === undefined || until === null ? "" : duration(until - this.ready, words);
  }

  #ran(now) {
    const { status, began, took } = this.state;
    if (status === "running" && began !== null) return duration(now - began, words);
    return TERMINAL.has(status) && took !== null ? duration(took, words) : "";
  }

  render() {
    const { line, state } = this;
    const now = performance.now();
    const shown = describe(state, words, now);
    const cancelling = Boolean(state.cancelling) && !this.ended;
    const status = part(line, "status");
    status.dataset.status = this.removed ? "removed" : state.status;
    status.toggleAttribute("data-cancelling", cancelling);
    const word = cancelling ? words.cancelling : words[`is_${state.status}`];
    say(part(line, "state"), this.removed ? words.removed : word);
    part(line, "lost").hidden = !(this.lost && state.status === "running") || this.removed;
    part(line, "stuck").hidden = !this.stuck;
    const bar = part(line, "bar");
    bar.dataset.status = state.status;
    if (shown.value === null) bar.removeAttribute("value");
    else if (bar.getAttribute("value") !== String(shown.value)) bar.value = shown.value;
    say(part(line, "percent"), shown.percent);
    say(part(line, "text"), shown.text);
    say(part(line, "remaining"), this.lost ? "" : (shown.left ?? ""));
    const error = shown.error || (state.status === "pending" ? this.lastError : "");
    say(part(line, "error"), error);
    part(line, "error").hidden = !error;
    say(
      part(line, "attempt"),
      state.attempt > 0
        ? fill(words.attempt_of, { attempt: state.attempt, max_attempts: state.maxAttempts })
        : "",
    );
    const waited = part(line, "waited");
    say(waited, this.#waited(now));
    waited.parentNode.toggleAttribute("data-unnamed", this.#isScheduled(now));
    say(part(line, "ran"), this.#ran(now));
    say(part(line, "worker"), this.worker ?? "");
    this.#offer("cancel", !this.ended && !cancelling);
    const again = state.status === "failed" || state.status === "cancelled";
    this.#offer("retry", again && !this.retried && !this.removed);
    line.toggleAttribute("data-removed", this.removed);
  }

  #offer(act, offered) {
    const button = this.line.querySelector(`button[data-act="${act}"]`);
    if (!button || button.hidden === !offered) return;
    // A keyboard keeps its place when the button that has the focus goes.
    if (!offered && document.activeElement === button) part(this.line, "label").focus();
    button.hidden = !offered;
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
  #dirty = new Set();
  #frame = 0;
  #refusal = ""; // of the last button that was pressed
  #failed = new Set();
  #ends = [];
  #newTasks = ""; // the words about them that are not announced yet
  #announced = -Infinity; // when something was announced that nobody pressed a button for
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
    say(shown, { live: words.live, polling: words.no_stream, paused: words.paused, off: "" }[state]);
    const said = {
      denied: words.signed_out,
      unreachable: words.unreachable,
      interrupted: words.polling,
    }[trouble];
    const banner = part(root, "banner");
    say(banner, [said, this.#refusal].filter(Boolean).join(" "));
    banner.hidden = !banner.textContent;
  }

  /* -- What is shown -- */

  #changed(row) {
    this.#dirty.add(row);
    if (this.#frame === 0) this.#frame = requestAnimationFrame(() => this.#render());
  }

  #render() {
    this.#frame = 0;
    for (const row of this.#dirty) row.render();
    this.#dirty.clear();
  }

  /** The time that passes. */
  #tick() {
    if (this.#connection.resting || document.hidden) return;
    for (const row of this.rows.values()) if (!row.ended) row.render();
  }

  #announce(text) {
    // Also if the text is the same as before: it is about another task, because names repeat.
    part(root, "announcer").textContent = text;
  }

  /** Read out soon what ended and what is new, but not all the time. */
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

  /** Say what ended since this was said last. */
  #endings() {
    const ends = this.#ends.splice(0);
    if (ends.length === 1) {
      const [{ label, state }] = ends;
      return fill(words.news, { label, state: words[`is_${state.status}`] });
    }
    const counts = new Map();
    for (const { state } of ends) counts.set(state.status, (counts.get(state.status) ?? 0) + 1);
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
    this.#take(row, {
      type: event.type,
      data: message.data,
      time: Date.parse(message.timestamp),
      asked: this.#connection.asked,
      received: performance.now(),
    });
    if (event.type === "task_failed") this.#detailsSoon(row);
  }

  /** A stream has the words for a task's owner. Those for staff are asked for, of many at once. */
  #detailsSoon(row) {
    this.#failed.add(row.id);
    if (this.#connection.waits("details")) return;
    this.#connection.later("details", NEWS, () => {
      const ids = [...this.#failed].filter((id) => this.rows.has(id));
      this.#failed.clear();
      if (ids.length > 0) this.#ask(ids);
    });
  }

  #take(row, message) {
    if (row.receive(message)) {
      this.#ends.push(row);
      this.#announceSoon();
    }
    this.#changed(row);
  }

  /* -- Asking -- */

  #newsSoon() {
    if (root.dataset.top && !this.#connection.waits("news"))
      this.#connection.later("news", NEWS, () => this.#news());
  }

  #news() {
    if (!document.hidden && root.dataset.top) this.#ask([], { news: true });
  }

  async #leases() {
    const running = [...this.rows.values()].filter((row) => row.state.status === "running");
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
    const read = (response) => response.json();
    const answer = await this.#connection.ask(url, read, { headers: { Accept: "application/json" } });
    if (!answer) return;
    const times = { time: Date.parse(answer.now), asked, received: performance.now() };
    this.#answered(ids, answer, times);
  }

  #answered(ids, { tasks, top }, times) {
    const missing = new Set(ids);
    for (const data of tasks) {
      missing.delete(data.task_id);
      this.#take(this.rows.get(data.task_id), { type: "task_status", data, ...times });
    }
    for (const id of missing) {
      const row = this.rows.get(id);
      row.remove();
      this.#changed(row);
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
    const row = button && this.rows.get(button.closest("tr")?.querySelector("[data-task]")?.dataset.task);
    if (!row || this.#connection.state === "off") return;
    event.preventDefault();
    // Not `disabled`, by which a keyboard loses its place.
    if (button.ariaDisabled === "true") return;
    if (button.dataset.act === "cancel" && !(await this.#confirmed(row))) return;
    button.ariaDisabled = "true";
    this.#refusal = await this.#send(button, row);
    button.ariaDisabled = null;
    if (this.#connection.state === "off") return;
    this.changed();
    await this.#ask([row.id], { news: true });
    // Also while updates are paused: it is the answer to what was pressed.
    row.render();
  }

  /** Ask whether a task is to be cancelled. The browser gives the focus back to the button. */
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

  /** Do what a button says; return why not, if so. */
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
      // Only what the task itself says is JSON.
      if (response.status === 403) reason = words.forbidden;
      else if (response.status === 404) reason = words.gone_now;
      else if (response.ok || response.status === 409) {
        const { detail } = await response.json();
        if (response.ok) {
          if (button.dataset.act === "retry") row.retried = true;
          this.#announce(fill(words.news, { label: row.label, state: detail }));
          this.#announced = performance.now();
          return "";
        }
        reason = detail;
      }
    } catch {
      // Nothing came back, or nothing that can be read.
    }
    return fill(words.refused, { reason });
  }
}

new List();

/* ---- The filters: one open at a time, and none when somebody turns away. ---- */

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
