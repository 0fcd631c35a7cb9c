/**
 * The admin's list of tasks, kept as they stand: rows are patched where they are, and neither move
 * nor vanish. One stream tells of all tasks; while it fails, the list asks every few seconds.
 */

const root = document.querySelector("[data-task-list]");
const words = JSON.parse(root.dataset.words);
// By the address that the page gives, for storages that rename static files.
const { bounded, reduce, describe, duration } = await import(root.dataset.module);

const ENDS = { task_completed: "completed", task_failed: "failed", task_cancelled: "cancelled" };
const TERMINAL = new Set(Object.values(ENDS));
const FACTS = [
  "task_queued",
  "task_started",
  "task_cancel_requested",
  "task_retry_scheduled",
  ...Object.keys(ENDS),
];
const EVENTS = [...FACTS, "task_status", "progress_update"];

// Milliseconds.
const PATIENCE = 5_000; // a stream may be away before anybody is told
const POLL = { least: 3_000, most: 10_000, growth: 1.2 };
const RETRY = { least: 1_000, most: 30_000, growth: 2 };
const NEWS = 2_000; // between two looks for new tasks
const LEASES = 10_000; // between two looks at leases, of which no stream tells
const GATHER = 3_000; // what ended or came meanwhile is read out together
const QUIET = 15_000; // between two such announcements
const FETCH_TIMEOUT = 10_000;
const REST = 3_000; // a hidden page keeps its stream; a browser has six for all tabs of a site
const KEEPALIVES = 2.5;

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
const part = (within, name) => within.querySelector(`[data-part="${name}"]`);
const say = (element, text) => {
  if (element && element.textContent !== text) element.textContent = text;
};
const backoff = ({ least, most, growth }, tries) =>
  Math.min(most, least * growth ** tries) * (0.5 + Math.random() / 2);

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
    else if (type in ENDS && data.stuck) this.stuck = true;
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
  #dirty = new Set();
  #frame = 0;
  #paused = false;
  #polling = false; // instead of the stream
  #unreachable = false;
  #denied = false; // for good
  #refusal = ""; // of the last button that was pressed
  #stopped = false;
  #resting = false; // nobody looks
  #source = null;
  #lastEventId = "";
  #failures = 0;
  #polls = 0;
  #asked = 0;
  #failed = new Set();
  #timers = new Map();
  #ends = [];
  #newTasks = ""; // the words about them that are yet to be read out
  #announced = -Infinity; // when, of what nobody pressed a button for
  #fetching = new AbortController();

  constructor() {
    for (const marker of document.querySelectorAll("template[data-task]")) {
      const row = new Row(marker);
      this.rows.set(row.id, row);
    }
    const pause = part(root, "pause");
    pause.hidden = false;
    pause.addEventListener("click", () => this.#pause(!this.#paused));
    document.addEventListener("click", (event) => this.#act(event));
    setInterval(() => this.#tick(), 1000);
    addEventListener("pagehide", () => this.#leave());
    addEventListener("pageshow", (event) => event.persisted && location.reload());
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => this.#looked());
    this.#watch();
    if (document.hidden) this.#looked();
  }

  #watch() {
    if (root.dataset.streamUrl) this.#open();
    if (this.#polling || !root.dataset.streamUrl) this.#poll();
    this.#later("leases", LEASES, () => this.#leases());
    this.#tell();
  }

  /** Rest a while after the last look; at the next one ask how all rows stand. */
  #looked() {
    if (this.#stopped) return;
    if (document.hidden) {
      this.#later("rest", REST, () => this.#rest());
      return;
    }
    this.#never("rest");
    if (this.#resting) {
      this.#resting = false;
      this.#watch();
    } else {
      this.#hurry();
      this.#news();
    }
  }

  #rest() {
    this.#resting = true;
    // A list of all tasks may have missed very much, and asks for its rows anyway.
    this.#lastEventId = "";
    this.#silence();
  }

  #later(name, delay, action) {
    clearTimeout(this.#timers.get(name));
    this.#timers.set(
      name,
      setTimeout(() => {
        this.#timers.delete(name);
        action();
      }, delay),
    );
  }

  #never(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  #leave() {
    this.#stopped = true;
    this.#silence();
    this.#fetching.abort();
  }

  #silence() {
    this.#source?.close();
    this.#source = null;
    for (const name of [...this.#timers.keys()]) this.#never(name);
  }

  #deny() {
    this.#denied = true;
    this.#refusal = "";
    this.#leave();
    part(root, "pause").hidden = true;
    this.#tell();
  }

  #hurry() {
    if (this.#stopped || this.#resting) return;
    if (this.#timers.has("retry")) this.#open();
    if (this.#polling) this.#poll();
  }

  /* -- What is shown -- */

  #changed(row) {
    this.#dirty.add(row);
    if (!this.#paused && this.#frame === 0)
      this.#frame = requestAnimationFrame(() => this.#render());
  }

  #render() {
    this.#frame = 0;
    for (const row of this.#dirty) row.render();
    this.#dirty.clear();
  }

  /** The time that passes. */
  #tick() {
    if (this.#paused || document.hidden) return;
    for (const row of this.rows.values()) if (!row.ended) row.render();
  }

  #pause(paused) {
    this.#paused = paused;
    part(root, "pause").setAttribute("aria-pressed", String(paused));
    this.#tell();
    if (paused) return;
    this.#render();
    this.#news();
  }

  /** Say how what is shown comes here. */
  #tell() {
    const state = part(root, "live-state");
    let live = !this.#polling && root.dataset.streamUrl ? "on" : "polled";
    if (this.#denied) live = "off";
    else if (this.#paused) live = "paused";
    state.dataset.live = live;
    say(state, { on: words.live, polled: words.no_stream, paused: words.paused, off: "" }[live]);
    let trouble = "";
    if (this.#denied) trouble = words.signed_out;
    else if (this.#unreachable) trouble = words.unreachable;
    else if (this.#polling && root.dataset.streamUrl) trouble = words.polling;
    const banner = part(root, "banner");
    say(banner, [trouble, this.#refusal].filter(Boolean).join(" "));
    banner.hidden = !banner.textContent;
  }

  #announce(text) {
    // Anew also where it is the same as before, which is another's news: names repeat.
    part(root, "announcer").textContent = text;
  }

  /** Read out soon what ended and what is new, but not all the time. */
  #announceSoon() {
    if (this.#timers.has("announce")) return;
    const wait = Math.max(GATHER, this.#announced + QUIET - performance.now());
    this.#later("announce", wait, () => {
      const said = [this.#endings(), this.#newTasks].filter(Boolean).join(". ");
      this.#newTasks = "";
      if (this.#paused || !said) return;
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

  /* -- The stream -- */

  #open() {
    this.#source?.close();
    this.#never("retry");
    const url = new URL(root.dataset.streamUrl, document.baseURI);
    url.searchParams.set("events", EVENTS.join(","));
    url.searchParams.set("results", "0");
    if (this.#lastEventId) url.searchParams.set("lastEventId", this.#lastEventId);
    const source = new EventSource(url);
    this.#source = source;
    this.#asked = performance.now();
    this.#mind();
    this.#watchdog();
    source.addEventListener("open", () => source === this.#source && this.#opened());
    source.addEventListener("keep-alive", () => source === this.#source && this.#alive());
    for (const type of EVENTS)
      source.addEventListener(type, (event) => source === this.#source && this.#receive(event));
    source.addEventListener("error", () => {
      if (source !== this.#source) return;
      // The browser comes back to what broke off, but not to what was refused.
      if (source.readyState === EventSource.CLOSED) this.#lose();
      else {
        this.#asked = performance.now();
        this.#mind();
      }
    });
  }

  #mind() {
    if (!this.#polling && !this.#timers.has("patience"))
      this.#later("patience", PATIENCE, () => {
        this.#polling = true;
        this.#tell();
        this.#poll();
      });
  }

  #watchdog() {
    const silence = Math.max(KEEPALIVES * Number(root.dataset.keepalive) * 1000, 2 * PATIENCE);
    this.#later("watchdog", silence, () => this.#lose());
  }

  #opened() {
    this.#alive();
    // The stream opens with what is unfinished; the rows may show what ended meanwhile.
    this.#ask([...this.rows.keys()], { news: true });
  }

  #alive() {
    this.#watchdog();
    this.#never("patience");
    this.#failures = this.#polls = 0;
    if (!this.#polling && !this.#unreachable) return;
    this.#polling = this.#unreachable = false;
    this.#never("poll");
    this.#tell();
  }

  #lose() {
    this.#source?.close();
    this.#source = null;
    this.#never("watchdog");
    this.#mind();
    this.#later("retry", backoff(RETRY, this.#failures++), () => this.#open());
  }

  #receive(event) {
    this.#alive();
    if (event.lastEventId) this.#lastEventId = event.lastEventId;
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
      asked: this.#asked,
      received: performance.now(),
    });
    if (event.type === "task_failed") this.#detailsSoon(row);
  }

  /** A stream has the words for a task's owner. Those for staff are asked for, of many at once. */
  #detailsSoon(row) {
    this.#failed.add(row.id);
    if (this.#timers.has("details")) return;
    this.#later("details", NEWS, () => {
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
    if (root.dataset.top && !this.#timers.has("news"))
      this.#later("news", NEWS, () => this.#news());
  }

  #news() {
    if (!this.#paused && !document.hidden && root.dataset.top) this.#ask([], { news: true });
  }

  async #leases() {
    const running = [...this.rows.values()].filter((row) => row.state.status === "running");
    if (running.length > 0 && !this.#polling && !document.hidden && !this.#paused)
      await this.#ask(running.map((row) => row.id));
    if (!this.#stopped && !this.#resting) this.#later("leases", LEASES, () => this.#leases());
  }

  async #poll() {
    this.#never("poll");
    await this.#ask([...this.rows.keys()], { news: true });
    const instead = this.#polling || !root.dataset.streamUrl;
    if (instead && !this.#stopped && !this.#resting)
      this.#later("poll", backoff(POLL, this.#polls++), () => this.#poll());
  }

  async #ask(ids, { news = false } = {}) {
    const url = new URL(root.dataset.liveUrl, document.baseURI);
    url.search = root.dataset.query;
    url.searchParams.set("_ids", ids.join(","));
    if (news && root.dataset.top) url.searchParams.set("_new", "1");
    const asked = performance.now();
    try {
      const response = await fetch(url, {
        headers: { Accept: "application/json" },
        cache: "no-store",
        redirect: "manual", // it leads to a log-in page
        signal: bounded(this.#fetching.signal),
      });
      if (response.type === "opaqueredirect" || [401, 403, 404].includes(response.status)) {
        this.#deny();
        return;
      }
      if (!response.ok) throw new Error(`${response.status}`);
      const answer = await response.json();
      this.#answered(ids, answer, {
        time: Date.parse(answer.now),
        asked,
        received: performance.now(),
      });
      if (this.#unreachable) {
        this.#unreachable = false;
        this.#tell();
      }
    } catch (error) {
      if (this.#stopped) return;
      // While the stream is well, what it does not tell can wait.
      this.#unreachable = this.#polling || !root.dataset.streamUrl;
      this.#tell();
    }
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
    if (top && !this.#paused) this.#tellNew(top);
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
    if (!row || this.#stopped) return;
    event.preventDefault();
    // Not `disabled`, by which a keyboard loses its place.
    if (button.ariaDisabled === "true") return;
    if (button.dataset.act === "cancel" && !(await this.#confirmed(row))) return;
    button.ariaDisabled = "true";
    this.#refusal = await this.#send(button, row);
    button.ariaDisabled = null;
    if (this.#denied) return;
    this.#tell();
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
        signal: AbortSignal.timeout(FETCH_TIMEOUT),
      });
      if (response.type === "opaqueredirect" || response.status === 401) {
        this.#deny();
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
