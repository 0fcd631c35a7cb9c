/**
 * Keeps the overview and the pages of workers up to date. The page fetches its part again when the
 * stream reports that a task was queued, began or ended, and every few seconds as well, because no
 * event reports heartbeats.
 *
 * The answer is grown into the page, so focus, open details and scroll positions stay.
 */

// Storages that rename static files do not rename imports, so the script tag has the URLs.
const urls = [...document.scripts].find(({ src }) => src === import.meta.url)?.dataset ?? {};
const { Connection } = await import(urls.live ?? "./live.js");
const { grow, parsePage } = await import(urls.grow ?? "./grow.js");

// Milliseconds.
const LEAST = 2_000; // between two fetches, however much happens
const HEARTBEATS = 10_000;

class Overview {
  #page = document.querySelector("[data-overview-live]");
  #part = document.querySelector("[data-overview]");
  #words = JSON.parse(this.#page.dataset.words);
  #connection = new Connection(this);
  #fetched = performance.now();
  #fetching = null;
  #due = 0;
  #pause = this.#find("pause");

  streamUrl = this.#page.dataset.streamUrl;
  keepalive = Number(this.#page.dataset.keepalive) * 1000;
  // The stream's URL names the events that it carries.
  events = new URL(this.streamUrl, document.baseURI).searchParams.get("events")?.split(",") ?? [];

  constructor() {
    this.#pause.hidden = false;
    this.#find("refresh").hidden = true;
    this.#pause.addEventListener("click", () => {
      const paused = this.#connection.state !== "paused";
      this.#pause.setAttribute("aria-pressed", String(paused));
      this.#connection.pause(paused);
    });
    this.start();
  }

  #find(name) {
    return this.#page.querySelector(`[data-part="${name}"]`);
  }

  /* -- What the connection calls -- */

  start() {
    this.changed();
    if (this.#connection.resting) return;
    this.#connection.open();
    this.#plan(HEARTBEATS);
  }

  /** No stream has sent what happened before it opened. */
  opened() {
    this.#plan(0);
  }

  receive() {
    this.#plan(0);
  }

  looked() {
    this.poll();
  }

  rested() {
    this.#fetching = null;
  }

  denied() {
    this.#pause.hidden = true;
    this.#connection.end();
  }

  /** Fetch the part, unless that is under way. */
  async poll() {
    this.#connection.never("fetch");
    if (this.#fetching) return;
    const fetching = {};
    this.#fetching = fetching;
    this.#fetched = performance.now();
    this.#part.setAttribute("aria-busy", "true");
    const html = await this.#connection.ask(this.#page.dataset.partUrl, (answer) => answer.text());
    if (html !== undefined) this.#show(html);
    this.#part.setAttribute("aria-busy", "false");
    // After a rest another fetch may be under way.
    if (this.#fetching === fetching) this.#fetching = null;
    if (!this.#connection.resting) this.#plan(HEARTBEATS);
  }

  /** Show how the page is kept up to date, and what is wrong with that. */
  changed() {
    const words = this.#words;
    const { state, trouble } = this.#connection;
    const shown = this.#find("state");
    shown.dataset.live = state;
    const how = words[state] ?? "";
    if (shown.textContent !== how) shown.textContent = how;
    const wrong = words[trouble] ?? "";
    const banner = this.#find("banner");
    if (banner.textContent !== wrong) banner.textContent = wrong;
    banner.hidden = !wrong;
  }

  /** Fetch after a delay, or earlier if that is planned already; but not too often. */
  #plan(delay) {
    const due = Math.max(performance.now() + delay, this.#fetched + LEAST);
    if (this.#connection.waits("fetch") && this.#due <= due) return;
    this.#due = due;
    this.#connection.later("fetch", due - performance.now(), () => this.poll());
  }

  #show(html) {
    const page = parsePage(`<div>${html}</div>`);
    const focused = document.activeElement;
    // If the server has no view for the part alone, the answer is the whole page.
    const wanted = page.querySelector("[data-overview]") ?? page.body.firstChild;
    for (const { name, value } of this.#part.attributes) wanted.setAttribute(name, value);
    grow(this.#part, wanted);
    if (focused?.isConnected && focused !== document.activeElement) focused.focus();
  }
}

new Overview();
