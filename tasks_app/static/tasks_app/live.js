/**
 * The connection of a page to the server: a stream of events, and polling while the stream fails.
 *
 * Every page that is live has one Connection. A Connection opens the stream, watches for keep-alives,
 * opens it again with growing delays, polls instead after some patience, and rests while the page is
 * hidden or paused. The page builds URLs and handles messages.
 *
 * Modules find each other by attributes of their script tags, such as `data-live`, because storages
 * that rename static files do not rename imports inside modules.
 */

// Milliseconds.
const PATIENCE = 5_000; // how long a stream may be silent before the page polls and says so
const POLL = { least: 3_000, most: 10_000, growth: 1.2 };
const RETRY = { least: 1_000, most: 30_000, growth: 2 };
const FETCH_TIMEOUT = 10_000;
const REST = 3_000; // before a hidden page rests: a browser has six connections for all tabs of a site
const DRIFT = 2_000; // between the two clocks, from which the machine must have slept
const KEEPALIVES = 2.5; // a stream that misses two keep-alives is dead

/** The answer means that asking again would not help: signed out, forbidden, or not there. */
export class DeniedError extends Error {}

/** Return the wait before try number `tries` (from 0). It grows, and differs between pages. */
const backoff = ({ least, most, growth }, tries) =>
  Math.min(most, least * growth ** tries) * (0.5 + Math.random() / 2);

/** Return a signal that aborts with another one, or after FETCH_TIMEOUT. */
function bounded(signal) {
  // AbortSignal.any is too new for some supported browsers.
  const own = new AbortController();
  if (signal?.aborted) own.abort();
  setTimeout(() => own.abort(), FETCH_TIMEOUT);
  signal?.addEventListener("abort", () => own.abort(), { signal: own.signal });
  return own.signal;
}

/** Fetch something of this site. Raise DeniedError if asking again would not help. */
export async function request(url, { signal, ...options } = {}) {
  const response = await fetch(url, {
    cache: "no-store",
    redirect: "manual", // a redirect leads to a log-in page
    signal: bounded(signal),
    ...options,
  });
  if (response.type === "opaqueredirect" || [401, 403, 404, 410].includes(response.status))
    throw new DeniedError(`${response.status}`);
  if (!response.ok) throw new Error(`${response.status}`);
  return response;
}

/** The difference between the clock that users may set and the one that stops while asleep. */
const clockOffset = () => Date.now() - performance.now();

/**
 * A page's connection. The page is an object with:
 *
 *   streamUrl       where to open the stream; "" if there is none
 *   events          the types of messages to listen for
 *   keepalive       milliseconds between two keep-alives of the server
 *   receive(event)  handle a message of the stream
 *   start()         begin, or continue after a rest: the page opens the stream
 *   poll()          fetch everything the stream would bring; may return a promise
 *   changed(begun)  show the new state; `begun` if the page has just begun to poll
 *   denied()        the server refused an answer
 *
 * and it may have:
 *
 *   query(url)      add to the stream's URL
 *   opened()        the stream has opened, which counts as its first sign of life
 *   expecting()     whether some task's first message is still missing
 *   late()          a first message is late; return whether the page must poll for all
 *   asked()         the stream is being opened, by us or again by the browser
 *   rested()        the stream was closed until the next start()
 *   lost()          the stream is closed; another try follows
 *   looked()        the user has come back to a page that was not at rest
 *   mustPoll()      whether to poll, if that is not the same as `live` being false
 */
export class Connection {
  asked = 0; // when the stream was requested, by performance.now()
  live = false; // the stream brings messages
  polling = false; // instead of the stream
  unreachable = false; // the last request failed
  #page;
  #source = null;
  #paused = false;
  #ended = false;
  #away = document.hidden; // a tab that was never shown needs no stream
  #failures = 0;
  #polls = 0;
  #offset = 0; // between the two clocks when the stream was requested
  #timers = new Map();
  #requests = new AbortController();

  constructor(page) {
    this.#page = page;
    addEventListener("pagehide", () => this.#leave());
    addEventListener("pageshow", (event) => event.persisted && this.#return());
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => this.#looked());
  }

  /** Whether the page neither opens streams nor polls. */
  get resting() {
    return this.#away || this.#paused || this.#ended;
  }

  get streaming() {
    return this.#source !== null;
  }

  /** The state to show: `live`, `polling`, `paused`, or `off`, which is final. */
  get state() {
    if (this.#ended) return "off";
    if (this.#paused) return "paused";
    return this.live ? "live" : "polling";
  }

  /** The problem to show: `denied`, `lost`, `interrupted`, or "" if there is none. */
  get trouble() {
    if (this.#ended) return "denied";
    if (this.unreachable) return "lost";
    return this.polling && this.#page.streamUrl ? "interrupted" : "";
  }

  /* -- Beginning and resting -- */

  /** Rest until the user continues, or continue. */
  pause(paused) {
    this.#paused = paused;
    if (paused) this.rest();
    else this.#return();
    this.#page.changed();
  }

  /** Rest for ever. */
  end() {
    this.#ended = true;
    this.rest();
    this.#page.changed();
  }

  /** Close the stream, and forget timers and requests. */
  rest() {
    this.#close();
    this.#requests.abort();
    this.#requests = new AbortController();
    for (const name of [...this.#timers.keys()]) this.never(name);
    this.#failures = this.#polls = 0;
    this.live = this.polling = this.unreachable = false;
    this.#page.rested?.();
  }

  #leave() {
    this.#away = true;
    this.rest();
  }

  #return() {
    this.#away = document.hidden;
    if (this.resting) return;
    this.#page.start();
    if (!this.#page.streamUrl) this.#poll();
  }

  #looked() {
    if (document.hidden) {
      this.later("rest", REST, () => this.#leave());
      return;
    }
    this.never("rest");
    if (this.#away) this.#return();
    else if (!this.resting) {
      // Browsers slow down the timers of a hidden page.
      this.#hurry();
      this.#page.looked?.();
    }
  }

  #restIfHidden() {
    if (document.hidden && !this.waits("rest")) this.#looked();
  }

  #hurry() {
    if (this.waits("retry")) this.open();
    if (this.waits("poll")) this.#poll();
  }

  /* -- Timers, which end with a rest -- */

  later(name, delay, action) {
    this.never(name);
    this.#timers.set(
      name,
      setTimeout(() => {
        this.#timers.delete(name);
        action();
      }, delay),
    );
  }

  never(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  waits(name) {
    return this.#timers.has(name);
  }

  /* -- The stream -- */

  /** Open the stream in place of the last one; poll if there is no stream. */
  open() {
    this.#close();
    this.never("retry");
    if (this.resting) return;
    this.#restIfHidden();
    if (!this.#page.streamUrl) {
      this.pollSoon();
      return;
    }
    const url = new URL(this.#page.streamUrl, document.baseURI);
    this.#page.query?.(url);
    const source = new EventSource(url);
    this.#source = source;
    const listen = (type, action) =>
      source.addEventListener(type, (event) => source === this.#source && action(event));
    if (this.#page.opened) listen("open", () => this.#alive({ opened: true }));
    listen("keep-alive", () => this.#alive());
    listen("error", () => {
      // A browser reconnects if the stream broke off, but not if it was refused.
      if (source.readyState === EventSource.CLOSED) this.#lose();
      else this.#expect();
    });
    for (const type of this.#page.events)
      listen(type, (event) => {
        this.#page.receive(event);
        this.#alive();
      });
    this.#expect();
    this.#watchdog();
  }

  #close() {
    this.#source?.close();
    this.#source = null;
    this.never("watchdog");
  }

  #expect() {
    this.#offset = clockOffset();
    this.asked = performance.now();
    this.#page.asked?.();
    this.#mind();
  }

  #mind() {
    if (!this.polling && !this.waits("patience"))
      this.later("patience", PATIENCE, () => this.#impatient());
  }

  #impatient() {
    if (this.#source && this.#page.late && !this.#page.late()) return;
    this.polling = true;
    this.live = false;
    this.#page.changed(true);
    this.#poll();
  }

  #watchdog() {
    const silence = Math.max(KEEPALIVES * this.#page.keepalive, 2 * PATIENCE);
    this.later("watchdog", silence, () => this.#lose());
  }

  #alive({ opened = false } = {}) {
    this.#watchdog();
    this.#failures = 0;
    if (!this.#page.expecting?.()) this.never("patience");
    const again = !this.live;
    this.live = true;
    if (this.polling) {
      this.polling = this.unreachable = false;
      this.#polls = 0;
      if (!this.#mustPoll) this.never("poll");
    }
    if (again) this.#page.changed();
    if (opened) this.#page.opened();
    // The machine slept, and performance.now() with it: let the server say again when tasks began.
    if (Math.abs(clockOffset() - this.#offset) > DRIFT) this.open();
  }

  #lose() {
    this.#close();
    this.#mind();
    this.later("retry", backoff(RETRY, this.#failures++), () => this.open());
    this.#page.lost?.();
  }

  /** The number of failures to open a stream since the last success. */
  get failures() {
    return this.#failures;
  }

  /* -- Asking -- */

  get #mustPoll() {
    if (this.#page.mustPoll) return this.#page.mustPoll();
    return this.polling || this.unreachable || !this.#page.streamUrl;
  }

  pollSoon() {
    if (this.resting || !this.#mustPoll || this.waits("poll")) return;
    this.#restIfHidden();
    this.later("poll", backoff(POLL, this.#polls++), () => this.#poll());
  }

  async #poll() {
    this.never("poll");
    await this.#page.poll();
    this.pollSoon();
  }

  /** Ask the server, and return what `read` makes of its response; undefined if that failed. */
  async ask(url, read, options) {
    const { signal } = this.#requests;
    let failed = false;
    try {
      const answer = await read(await request(url, { ...options, signal }));
      if (!signal.aborted) return answer;
    } catch (error) {
      if (signal.aborted) return undefined;
      failed = !(error instanceof DeniedError);
      if (!failed) this.#page.denied();
    } finally {
      if (!signal.aborted) {
        this.unreachable = failed;
        this.#page.changed();
        this.pollSoon();
      }
    }
    return undefined;
  }
}
