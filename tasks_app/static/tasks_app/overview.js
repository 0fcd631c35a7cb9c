/**
 * The admin's overview, and its pages of workers, kept up to date: a page asks the server for itself
 * again when the stream
 * of all tasks says that one was queued, began or ended; now and then for the sake of heartbeats;
 * and every few seconds while there is no stream.
 *
 * What comes is grown into what is there, so that focus, open details and scrolling stay.
 */

// Milliseconds.
const LEAST = 2_000; // between two fetches, however much happens
const HEARTBEATS = 10_000; // no event tells of a worker
const POLL = 5_000; // instead of the stream
const PATIENCE = 5_000; // a stream may be away for so long before anybody is told
const RETRY = { least: 1_000, most: 30_000, growth: 2 };
const FETCH_TIMEOUT = 10_000;
const KEEPALIVES = 2.5; // a stream that misses two keep-alives is dead, whatever it says

/** What changes a number. Progress does not. */
const EVENTS = [
  "task_queued",
  "task_started",
  "task_retry_scheduled",
  "task_completed",
  "task_failed",
  "task_cancelled",
];

const page = document.querySelector("[data-overview-live]");
const part = document.querySelector("[data-overview]");
// By the address that the page gives, for storages that rename static files.
const { grow, parsePage } = await import(page.dataset.grow);

/* ---- The page. ---- */

class DeniedError extends Error {}

/** Return a signal that aborts with another one, or after FETCH_TIMEOUT. */
function bounded(signal) {
  // Not AbortSignal.any, which is younger than the browsers that the guide names.
  const own = new AbortController();
  if (signal.aborted) own.abort();
  setTimeout(() => own.abort(), FETCH_TIMEOUT);
  signal.addEventListener("abort", () => own.abort(), { signal: own.signal });
  return own.signal;
}

class Overview {
  #page;
  #part;
  #words;
  #source = null;
  #failures = 0;
  #streaming = false;
  #paused = false;
  #given = false; // up
  #fetching = null;
  #fetched = performance.now();
  #unreachable = false;
  #impatient = false;
  #timers = new Map();

  constructor(page, part) {
    this.#page = page;
    this.#part = part;
    this.#words = JSON.parse(page.dataset.words);
    const pause = this.#find("pause");
    pause.hidden = false;
    this.#find("refresh").hidden = true;
    pause.addEventListener("click", () => this.#pause(!this.#paused));
    document.addEventListener("visibilitychange", () => this.#wake());
    addEventListener("pagehide", () => this.#rest());
    addEventListener("pageshow", (event) => event.persisted && this.#wake());
    addEventListener("online", () => this.#wake());
    this.#wake({ fresh: true });
  }

  #find(name) {
    return this.#page.querySelector(`[data-part="${name}"]`);
  }

  #later(name, delay, action) {
    this.#never(name);
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

  /** Watch, unless nobody looks. */
  #wake({ fresh = false } = {}) {
    if (this.#paused || this.#given || document.hidden) {
      this.#rest();
      return;
    }
    if (this.#source === null) this.#open();
    if (fresh) this.#plan(HEARTBEATS);
    else this.#fetch();
    this.#say();
  }

  #rest() {
    this.#source?.close();
    this.#source = null;
    this.#streaming = this.#impatient = false;
    this.#fetching?.abort();
    for (const name of [...this.#timers.keys()]) this.#never(name);
    this.#say();
  }

  #pause(paused) {
    this.#paused = paused;
    this.#find("pause").setAttribute("aria-pressed", String(paused));
    this.#wake();
  }

  #giveUp() {
    this.#given = true;
    this.#find("pause").hidden = true;
    this.#rest();
  }

  /* -- The stream -- */

  #open() {
    if (!this.#page.dataset.streamUrl) return;
    const url = new URL(this.#page.dataset.streamUrl, document.baseURI);
    url.searchParams.set("events", EVENTS.join(","));
    url.searchParams.set("results", "0");
    const source = new EventSource(url);
    this.#source = source;
    const alive = () => source === this.#source && this.#alive();
    source.addEventListener("open", alive);
    source.addEventListener("keep-alive", alive);
    for (const type of EVENTS)
      source.addEventListener(type, () => {
        if (!alive() && source !== this.#source) return;
        this.#plan(0);
      });
    source.addEventListener("error", () => source === this.#source && this.#error());
    this.#watchdog();
    this.#mind();
  }

  #watchdog() {
    const silence = KEEPALIVES * Number(this.#page.dataset.keepalive) * 1000;
    this.#later("watchdog", Math.max(silence, 2 * PATIENCE), () => this.#lose());
  }

  #mind() {
    if (!this.#impatient && !this.#timers.has("patience"))
      this.#later("patience", PATIENCE, () => {
        this.#impatient = true;
        this.#fetch();
        this.#say();
      });
  }

  #alive() {
    this.#watchdog();
    this.#never("patience");
    this.#failures = 0;
    const was = this.#streaming;
    this.#streaming = true;
    this.#impatient = false;
    if (!was) {
      // What happened before it opened was said to nobody.
      this.#plan(0);
      this.#say();
    }
  }

  #error() {
    this.#streaming = false;
    this.#mind();
    // The browser comes back to what broke off, but not to what was refused.
    if (this.#source.readyState === EventSource.CLOSED) this.#lose();
  }

  #lose() {
    this.#source?.close();
    this.#source = null;
    this.#streaming = false;
    this.#never("watchdog");
    this.#mind();
    const { least, most, growth } = RETRY;
    const wait = Math.min(most, least * growth ** this.#failures++) * (0.5 + Math.random() / 2);
    this.#later("retry", wait, () => this.#open());
  }

  /* -- Asking -- */

  /** Fetch after a wait, or sooner where something else is planned sooner; not too often. */
  #plan(wait) {
    const due = Math.max(performance.now() + wait, this.#fetched + LEAST);
    if (this.#timers.has("fetch") && this.#due <= due) return;
    this.#due = due;
    this.#later("fetch", due - performance.now(), () => this.#fetch());
  }
  #due = 0;

  async #fetch() {
    this.#never("fetch");
    if (this.#fetching) return;
    const fetching = new AbortController();
    this.#fetching = fetching;
    this.#fetched = performance.now();
    this.#part.setAttribute("aria-busy", "true");
    try {
      const html = await this.#ask(fetching.signal);
      const there = parsePage(`<div>${html}</div>`);
      const focused = document.activeElement;
      // Where the server has no answer of its own for the part, it is in that of the whole page.
      const wanted = there.querySelector("[data-overview]") ?? there.body.firstChild;
      for (const { name, value } of this.#part.attributes) wanted.setAttribute(name, value);
      grow(this.#part, wanted);
      if (focused?.isConnected && focused !== document.activeElement) focused.focus();
      this.#unreachable = false;
    } catch (error) {
      if (fetching.signal.aborted) return;
      if (error instanceof DeniedError) {
        this.#giveUp();
        return;
      }
      this.#unreachable = true;
    } finally {
      this.#fetching = null;
      this.#part.setAttribute("aria-busy", "false");
    }
    this.#say();
    if (this.#paused || document.hidden) return;
    this.#plan(this.#streaming ? HEARTBEATS : POLL);
  }

  async #ask(signal) {
    const response = await fetch(this.#page.dataset.partUrl, {
      cache: "no-store",
      // A redirect leads to a log-in page.
      redirect: "manual",
      signal: bounded(signal),
    });
    if (response.type === "opaqueredirect" || [401, 403, 404].includes(response.status))
      throw new DeniedError(`${response.status}`);
    if (!response.ok) throw new Error(`${response.status}`);
    return response.text();
  }

  /* -- Saying how it goes -- */

  #say() {
    const words = this.#words;
    let live = "off";
    let trouble = "";
    if (this.#given) trouble = words.signed_out;
    else if (this.#unreachable) trouble = words.unreachable;
    else if (this.#impatient && this.#page.dataset.streamUrl) trouble = words.polling;
    if (this.#given) live = "off";
    else if (this.#paused) live = "paused";
    else if (this.#streaming) live = "live";
    else live = "polling";
    const state = this.#find("state");
    state.dataset.live = live;
    const said = { live: words.live, paused: words.paused, polling: words.checked, off: "" }[live];
    if (state.textContent !== said) state.textContent = said;
    const banner = this.#find("banner");
    if (banner.textContent !== trouble) banner.textContent = trouble;
    banner.hidden = !trouble;
  }
}

new Overview(page, part);
