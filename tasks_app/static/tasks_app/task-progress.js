/**
 * <task-progress>: a task, rendered by Django and kept live from here.
 * <task-list>: a list of them, which the user's new tasks join.
 *
 * All of a page share one EventSource. While it fails, they ask the status endpoint and say so.
 * Dispatches, bubbling:
 *   task-progress:end    when a task ends while the page is open; detail {taskId, status}
 *   task-progress:event  for each fact of its history;
 *                        detail {taskId, eventId, eventType, timestamp, data}
 */

// Storages that rename static files do not rename imports, so the script tag has the URLs.
const { live, state } =
  [...document.scripts].find(({ src }) => src === import.meta.url)?.dataset ?? {};
const { Connection, DeniedError, request } = await import(live ?? "./live.js");
const { FACTS, STATES, TERMINAL, TERMINAL_EVENTS, describe, fill, moment, parseMessage, reduce } =
  await import(state ?? "./task-state.js");

// Milliseconds, unless they say otherwise.
const GATHER = 20; // bars that appear together share a request
const HOPELESS = 3; // failures in a row, where no stream has ever opened
const ANNOUNCE = 5_000; // between two progress announcements of a page
const SURE = { from: 400, until: 10_000 }; // when the second press of Cancel counts
const NEW_TASKS = 10_000; // between two announcements of a list's new tasks
const NEW_ROWS = 250; // tasks started together appear together
const WAITING = 10_000; // between two looks for a worker, while a task waits

// The most tasks that one request names, because a request line has its limits.
const ASKED_AT_ONCE = 100;
// The most facts of the user's tasks that are kept for rows that will appear later.
const KEPT_FACTS = 500;

/* ---- The page's one stream, or the polling in its place. ---- */

/**
 * The number of the fact that an id of the stream is at. Within a task it grows. Only the server
 * knows whether one id is before another.
 */
const factId = (id) => Number.parseInt(id, 10) || 0;

/** The history of the database that an id belongs to: after a failover, numbers can repeat. */
const historyOf = (id) => id.split("@")[3] ?? "";

/** A task's id in 22 characters: a server may refuse a request line of more than 4,094. */
const shortId = (id) => {
  const bytes = id.replaceAll("-", "").match(/../g) ?? [];
  const text = String.fromCharCode(...bytes.map((byte) => Number.parseInt(byte, 16)));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
};

/** Read an answer of the server, with its time and ours. */
async function readAnswer(response, asked) {
  const body = parseMessage(await response.text());
  return { body, time: Date.parse(body.time) || Date.now(), asked, received: performance.now() };
}

const JSON_ONLY = { Accept: "application/json" };

/** The one connection that the bars and lists of a page share. */
class Hub {
  events = [...STATES, ...FACTS, "stream-end"];
  #connection = new Connection(this);
  #page = null; // the <template> with the URLs and the words
  #bars = new Set(); // connected, and unfinished or still missing facts
  #left = new Set(); // removed a moment ago, maybe to be moved, and up to date until now
  #lists = new Set(); // connected, that new tasks may join
  #following = false; // the stream carries all tasks of the user, not only those named
  #recent = []; // the newest facts of them, for rows that appear later
  #fresh = new Set(); // elements whose `since` the next stream must start from
  #streamed = new Set(); // ids of tasks in the open stream
  #ends = new Set(); // ids of tasks whose terminal event has come
  #opened = false; // whether a stream ever brought anything
  #unheard = new Set(); // ids of tasks without a message since the stream was requested
  #lastEventId = "";

  get words() {
    return this.#page.words;
  }

  /** Whether this page has the server's URLs. */
  find() {
    const data = document.querySelector("template[data-task-progress]")?.dataset;
    if (data && this.#page?.raw !== data.words)
      this.#page = {
        raw: data.words,
        words: JSON.parse(data.words),
        streams: data.streamsUrl,
        statuses: data.statusesUrl,
        maxTasks: Number(data.maxTasks),
        keepalive: Number(data.keepalive) * 1000,
      };
    return this.#page !== null;
  }

  watch(bar) {
    this.#bars.add(bar);
    if (this.#following && bar.mine) this.#join(bar);
    else {
      if (bar.since) this.#fresh.add(bar);
      if (this.#streamed.has(bar.taskId) && !this.#left.has(bar)) this.#catchUp(bar);
    }
    this.#plan();
  }

  /** Let tasks that the user starts from now on join a list. */
  follow(list) {
    this.#lists.add(list);
    if (list.since) this.#fresh.add(list);
    // The list has missed what the open stream sent since it was rendered.
    if (this.#following) list.look();
    this.#plan();
  }

  unfollow(list) {
    this.#fresh.delete(list);
    if (this.#lists.delete(list)) this.#plan();
  }

  /** Forget a bar that was removed, perhaps only to be moved, or that gave up. */
  unwatch(bar) {
    this.#fresh.delete(bar);
    if (!this.#bars.delete(bar)) return;
    this.#left.add(bar);
    this.#plan();
  }

  /** A bar's task has ended. The facts that led to it may be still to come. */
  ended() {
    this.#plan();
  }

  /** Ask for the state of a task, now. */
  async ask(bar) {
    await this.#fetch([bar.taskId]);
  }

  /** Whether a stream will still bring facts of a bar's ended task. */
  #owed(bar) {
    if (this.#ends.has(bar.taskId) || !this.#page.streams) return false;
    if (this.#connection.streaming) return this.#streamed.has(bar.taskId);
    // If no stream can be opened, do not wait for one.
    return this.#opened || this.#connection.failures < HOPELESS;
  }

  #plan() {
    if (!this.#connection.waits("settle"))
      this.#connection.later("settle", GATHER, () => this.#settle());
  }

  #ids(wanted = () => true) {
    return [...new Set([...this.#bars].filter(wanted).map((bar) => bar.taskId))];
  }

  #unfinished() {
    return this.#ids((bar) => !bar.ended);
  }

  /** The tasks that one stream can carry: only the user's own if it follows those. */
  #carried() {
    return this.#ids((bar) => !this.#lists.size || bar.mine);
  }

  /** Open, replace or close the stream, as the elements on the page need it. */
  #settle() {
    const connection = this.#connection;
    this.#left.clear();
    if (connection.resting) return;
    for (const bar of [...this.#bars])
      if (bar.ended && !this.#owed(bar)) {
        this.#bars.delete(bar);
        this.#fresh.delete(bar);
      }
    if (this.#bars.size + this.#lists.size === 0) {
      connection.rest();
      return;
    }
    const ids = this.#carried();
    const missing = ids.filter((id) => !this.#streamed.has(id));
    const room = this.#page.maxTasks - (ids.length - missing.length);
    const wanted =
      missing.length > 0 &&
      (this.#following || missing.length <= room || room >= this.#page.maxTasks / 2);
    const other = this.#following !== this.#lists.size > 0;
    const reopen = connection.streaming ? wanted || other : !connection.waits("retry");
    if (this.#page.streams && reopen && (ids.length > 0 || this.#lists.size > 0)) connection.open();
    this.#hint();
    connection.pollSoon();
    if (!connection.waits("waiting"))
      connection.later("waiting", WAITING, () => this.#askForWorkers());
  }

  /** No stream reports that a task waits because there is no worker. */
  #askForWorkers() {
    const ids = this.#ids((bar) => bar.waits);
    if (ids.length > 0 && !this.#connection.polling && !document.hidden) this.#fetch(ids);
    if (this.#unfinished().length > 0)
      this.#connection.later("waiting", WAITING, () => this.#askForWorkers());
  }

  /* -- The stream: called by the connection -- */

  get keepalive() {
    return this.#page.keepalive;
  }

  get streamUrl() {
    return this.#page.streams;
  }

  start() {
    this.#plan();
    // After a long time a stream may not bring everything.
    for (const list of this.#lists) list.look();
  }

  rested() {
    this.#following = false;
    this.#recent = [];
    this.#streamed.clear();
  }

  /** Add to a stream's URL what it is to carry, and from where. */
  query(url) {
    this.#following = this.#lists.size > 0;
    const ids = this.#following ? this.#carried() : this.#ids().slice(0, this.#page.maxTasks);
    if (this.#following) url.searchParams.set("mine", "1");
    else for (const id of ids) url.searchParams.append("task", shortId(id));
    // The server takes the earliest.
    const since = [this.#lastEventId, ...[...this.#fresh].map((each) => each.since)];
    for (const id of new Set(since.filter(Boolean))) url.searchParams.append("lastEventId", id);
    this.#streamed = new Set(ids);
  }

  /** The first message of each task is its state. */
  asked() {
    this.#unheard = new Set(this.#streamed);
  }

  expecting() {
    return this.#unheard.size > 0;
  }

  late() {
    if (this.#streamed.size > 0 && this.#unheard.size === this.#streamed.size) return true;
    const unheard = this.#unfinished().filter((id) => this.#unheard.has(id));
    if (unheard.length > 0) this.#fetch(unheard);
    return false;
  }

  receive(event) {
    if (event.type === "stream-end") {
      for (const bar of this.#bars) if (bar.ended) this.#ends.add(bar.taskId);
      this.#plan();
      return;
    }
    let message;
    try {
      message = parseMessage(event.data);
    } catch {
      return; // not one of ours
    }
    if (event.lastEventId) {
      if (this.#lastEventId && historyOf(this.#lastEventId) !== historyOf(event.lastEventId))
        this.#restart();
      this.#lastEventId = event.lastEventId;
      for (const each of this.#fresh)
        if (!each.taskId || this.#streamed.has(each.taskId)) this.#fresh.delete(each);
    }
    this.#unheard.delete(message.task_id);
    this.#deliver(message.task_id, {
      type: event.type,
      id: factId(event.lastEventId),
      data: message.data,
      time: Date.parse(message.timestamp),
      timestamp: message.timestamp,
      asked: this.#connection.asked,
      received: performance.now(),
    });
  }

  /** The stream is closed. See whether all tasks have ended. */
  lost() {
    if (!this.#connection.polling) this.#fetch(this.#unfinished());
    this.#plan();
    // Without a bar, nothing else would find out that the user was signed out.
    if (this.#bars.size === 0) for (const list of this.#lists) list.look();
  }

  denied() {
    for (const bar of [...this.#bars]) bar.giveUp(this.words.denied);
  }

  changed(news = false) {
    this.#opened ||= this.#connection.live;
    this.#hint({ aloud: news });
  }

  /* -- Messages -- */

  /** Bring a row that has just appeared up to date, if the stream carries its task already. */
  #join(bar) {
    this.#streamed.add(bar.taskId);
    // Some of these may be in its rendering already. They are stale, so they change nothing.
    const missed = this.#recent.filter(({ taskId }) => taskId === bar.taskId);
    for (const { message } of missed) bar.receive(message);
    if (missed.length === 0) this.ask(bar);
  }

  /** Bring a bar up to date whose task the open stream has already reported to others. */
  #catchUp(bar) {
    // A bar that shows each event needs all of them. For others the state is enough.
    if (bar.since) this.#streamed.delete(bar.taskId);
    else this.ask(bar);
  }

  /** The database was replaced: ids start again, and every message from now on is newer. */
  #restart() {
    this.#connection.asked = performance.now();
    this.#recent = [];
    this.#ends.clear();
    for (const bar of this.#bars) bar.forgetFacts();
  }

  #deliver(taskId, message) {
    if (this.#following && FACTS.includes(message.type)) {
      this.#recent.push({ taskId, message });
      if (this.#recent.length > KEPT_FACTS) this.#recent.shift();
    }
    for (const bar of this.#left) if (bar.taskId === taskId) this.#left.delete(bar);
    for (const list of this.#lists) list.receive(taskId, message);
    for (const bar of [...this.#bars]) if (bar.taskId === taskId) bar.receive(message);
    if (!(message.type in TERMINAL_EVENTS)) return;
    this.#ends.add(taskId);
    this.#plan();
  }

  /* -- Asking -- */

  #unstreamed() {
    return this.#unfinished().filter((id) => this.#connection.polling || !this.#streamed.has(id));
  }

  mustPoll() {
    return this.#unstreamed().length > 0 || (!this.#page.streams && this.#lists.size > 0);
  }

  async poll() {
    await this.#fetch(this.#unstreamed());
    if (!this.#page.streams) for (const list of this.#lists) list.look();
  }

  async #fetch(ids) {
    const most = Math.min(this.#page.maxTasks, ASKED_AT_ONCE);
    for (let start = 0; start < ids.length; start += most)
      if (!(await this.#fetchSome(ids.slice(start, start + most)))) return;
  }

  /** Ask for the states of some tasks; return whether there was an answer. */
  async #fetchSome(ids) {
    const url = new URL(this.#page.statuses, document.baseURI);
    for (const id of ids) url.searchParams.append("task", shortId(id));
    const asked = performance.now();
    const read = (response) => readAnswer(response, asked);
    const answer = await this.#connection.ask(url, read, { headers: JSON_ONLY });
    if (!answer) return false;
    const { body, ...times } = answer;
    const missing = new Set(ids);
    for (const info of body.tasks) {
      missing.delete(info.task_id);
      this.#unheard.delete(info.task_id);
      this.#deliver(info.task_id, { type: "task_status", data: info, ...times });
    }
    for (const bar of [...this.#bars]) if (missing.has(bar.taskId)) bar.giveUp(this.words.gone);
    return true;
  }

  #hint({ aloud = false } = {}) {
    const { polling, unreachable } = this.#connection;
    const trouble = unreachable ? this.words.lost : this.words.interrupted;
    for (const bar of this.#bars) {
      const asks = unreachable ? this.words.lost : this.words.polled;
      const streams = this.#streamed.has(bar.taskId);
      bar.hint(polling ? trouble : streams ? "" : asks);
    }
    // One voice is enough for all bars.
    if (aloud) [...this.#bars].find((bar) => !bar.ended)?.announce(trouble);
  }
}

const hub = new Hub();

/* ---- One task. ---- */

/** Call once what an element has in it is there: a busy parser has made the element alone. */
function whenParsed(start) {
  if (document.readyState === "loading")
    document.addEventListener("DOMContentLoaded", start, { once: true });
  else start();
}

/** The time at which the page may next read out progress. All bars take turns. */
let nextAnnouncement = 0;

/** The parts whose words `describe` gives. A form shows some of them. */
const WORDED = ["state", "percent", "text", "time", "left", "attempts", "error", "result"];

class TaskProgress extends HTMLElement {
  #state = null;
  #shown = {};
  #frame = 0;
  #tick = 0;
  #announcement = 0;
  #cancelling = false; // asked here, not yet confirmed
  #givenUp = false;

  #fact = 0; // the newest that was received

  get taskId() {
    return this.getAttribute("task-id");
  }

  /** Whether the task is this user's own. */
  get mine() {
    return this.hasAttribute("data-mine");
  }

  /** Whether it could have been started by now. */
  get waits() {
    const { status, due, cancelling } = this.#state;
    return status === "pending" && due <= performance.now() && !cancelling;
  }

  get ended() {
    return this.#state !== null && TERMINAL.has(this.#state.status);
  }

  /** The stream's id of the moment when the server rendered this, where that matters. */
  get since() {
    return this.dataset.since ?? "";
  }

  connectedCallback() {
    whenParsed(() => this.#start());
  }

  disconnectedCallback() {
    hub.unwatch(this);
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#tick);
    clearTimeout(this.#announcement);
    this.#frame = this.#announcement = 0;
    this.#unask?.();
    this.removeEventListener("submit", this.#cancel);
  }

  /** Take a message about this task: from the stream, or from the status endpoint. */
  receive(message) {
    const before = this.#state;
    const after = reduce(before, message);
    if (FACTS.includes(message.type)) {
      // It comes again where the stream went back for the sake of another.
      if (message.id && message.id <= this.#fact) return;
      this.#fact = message.id;
      if (message.type === "task_log") this.#log(message);
      const { id: eventId, type: eventType, timestamp, data } = message;
      this.#tell("task-progress:event", { eventId, eventType, timestamp, data });
    }
    if (after === before) return;
    this.#state = { ...after, heard: message.received };
    if (TERMINAL.has(after.status)) {
      hub.ended();
      this.hint("");
      // Not in the next frame: a hidden page has none, and listeners read what is shown.
      this.#render();
      this.#tell("task-progress:end", { status: after.status });
    } else if (this.#frame === 0) {
      this.#frame = requestAnimationFrame(() => this.#render());
    }
  }

  /** Forget the last fact, because the ids of facts begin again. */
  forgetFacts() {
    this.#fact = 0;
    for (const line of this.#part("log")?.children ?? []) line.dataset.id = 0;
  }

  /** Say what is wrong with the connection; empty when nothing is. */
  hint(text) {
    if (!this.#givenUp) this.#show("hint", this.ended ? "" : text);
  }

  /** Stop watching, and say why. */
  giveUp(why) {
    if (this.ended) {
      hub.unwatch(this);
      return;
    }
    this.hint(why);
    this.announce(why);
    this.#givenUp = true;
    hub.unwatch(this);
    this.#render();
  }

  /** Have a screen reader read this out when it is done with what it reads. */
  announce(text) {
    const announcer = this.#part("announcer");
    const label = this.#part("label")?.textContent.trim();
    if (announcer) announcer.textContent = label ? `${label}: ${text}` : text;
  }

  #part(name) {
    return this.querySelector(`[data-part="${name}"]`);
  }

  #show(name, text) {
    const part = this.#part(name);
    if (!part) return;
    if (part.textContent !== text) part.textContent = text;
    if (["error", "hint", "notice", "result"].includes(name)) part.hidden = !text;
  }

  #tell(name, detail) {
    this.dispatchEvent(
      new CustomEvent(name, { bubbles: true, detail: { taskId: this.taskId, ...detail } }),
    );
  }

  #start() {
    if (!this.isConnected || !hub.find()) return;
    this.#state ??= this.#read();
    if (TERMINAL.has(this.#state.status) || this.#givenUp) return;
    this.addEventListener("submit", this.#cancel);
    this.#render({ quietly: true });
    hub.watch(this);
  }

  /** Read the state that the server rendered. */
  #read() {
    const { attempt, maxAttempts, started, elapsed, silent, wait, cancelling, noWorker } =
      this.dataset;
    const bar = this.#part("bar");
    const now = performance.now();
    return {
      status: this.getAttribute("status"),
      attempt: Number(attempt),
      maxAttempts: Number(maxAttempts),
      value: bar?.hasAttribute("value") ? bar.value : null,
      text: this.#part("text")?.textContent ?? "",
      cancelling: cancelling !== undefined,
      noWorker,
      error: null,
      result: null,
      started: started ? Date.parse(started) : null,
      began: elapsed ? now - Number(elapsed) * 1000 : null,
      moved: now - Number(silent ?? 0) * 1000,
      took: null,
      due: wait ? now + Number(wait) * 1000 : 0,
      // The page is older than anything that is yet to be asked for.
      heard: 0,
    };
  }

  #render({ quietly = false } = {}) {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#tick);
    this.#frame = 0;
    const state = this.#state;
    const now = performance.now();
    const cancelling = state.cancelling || this.#cancelling;
    const shown = describe({ ...state, cancelling }, hub.words, now);
    this.setAttribute("status", state.status);
    this.toggleAttribute("data-cancelling", cancelling && !TERMINAL.has(state.status));
    for (const part of WORDED) this.#show(part, shown[part]);
    const bar = this.#part("bar");
    if (bar && shown.value === null) bar.removeAttribute("value");
    else if (bar && bar.getAttribute("value") !== String(shown.value)) bar.value = shown.value;
    this.#offer("cancel", !TERMINAL.has(state.status) && !state.cancelling && !this.#givenUp);
    this.#offer("retry", ["failed", "cancelled"].includes(state.status));
    const before = this.#shown;
    this.#shown = shown;
    if (!quietly) this.#announceChange(before);
    // The time that passes, and the moment when a wait is over.
    if (!this.#givenUp && (state.status === "running" || state.due > now))
      this.#tick = setTimeout(() => {
        this.#frame ||= requestAnimationFrame(() => this.#render());
      }, 1000);
  }

  /** Read out a change of state immediately, mere progress when it is this bar's turn. */
  #announceChange(before) {
    const shown = this.#shown;
    if (shown.state !== before.state || shown.error !== before.error) {
      this.#announceShown();
    } else if (shown.percent !== before.percent || shown.text !== before.text) {
      if (this.#announcement !== 0) return;
      const now = performance.now();
      const turn = Math.max(now, nextAnnouncement);
      nextAnnouncement = turn + ANNOUNCE;
      this.#announcement = setTimeout(() => this.#announceShown(), turn - now);
    }
  }

  #announceShown() {
    clearTimeout(this.#announcement);
    this.#announcement = 0;
    const { state, percent, text, error } = this.#shown;
    this.announce([state, percent, error || text].filter(Boolean).join(", "));
  }

  /** Add a line to the log, which keeps its newest few. */
  #log({ id, data }) {
    const log = this.#part("log");
    if (!log || (id && id <= Number(log.lastElementChild?.dataset.id ?? 0))) return;
    const line = document.createElement("li");
    line.dir = "auto";
    line.dataset.id = id;
    line.dataset.level = data.level;
    line.textContent = data.message;
    log.append(line);
    while (log.childElementCount > Number(log.dataset.lines)) log.firstElementChild.remove();
  }

  /* -- Cancelling -- */

  /** Show the button of an action where it is legal, or hide it. */
  #offer(action, offered) {
    const form = this.#part(action);
    if (!form || form.hidden === !offered) return;
    this.#keepFocus(form);
    form.hidden = !offered;
  }

  /** Keep a keyboard's place when the button that has the focus goes. */
  #keepFocus(form) {
    if (!form.contains(document.activeElement)) return;
    this.tabIndex = -1;
    this.focus({ preventScroll: true });
  }

  #unask = null; // while Cancel asks whether to, takes the question back

  /** Ask by the button itself, which keeps the focus: a second press within some time cancels. */
  #ask(button) {
    const offered = button.textContent;
    button.textContent = hub.words.cancel_sure;
    button.ariaDisabled = "true";
    this.announce(hub.words.cancel_sure);
    const open = setTimeout(() => {
      button.ariaDisabled = null;
    }, SURE.from);
    const over = setTimeout(() => this.#unask?.(), SURE.until);
    this.#unask = () => {
      clearTimeout(open);
      clearTimeout(over);
      button.ariaDisabled = this.#unask = null;
      button.textContent = offered;
    };
  }

  #cancel = async (event) => {
    const form = event.target;
    if (form !== this.#part("cancel")) return;
    event.preventDefault();
    if (this.#cancelling) return;
    const button = form.querySelector("button");
    if (!this.#unask) {
      this.#ask(button);
      return;
    }
    // Too soon after the first press: a double click is no answer.
    if (button.ariaDisabled === "true") return;
    this.#unask();
    const body = new FormData(form);
    this.#cancelling = true;
    this.#show("notice", "");
    this.#keepFocus(form);
    button.disabled = true;
    this.#render();
    let problem = "";
    try {
      const asked = performance.now();
      const response = await request(form.action, { method: "POST", body, headers: JSON_ONLY });
      const { body: data, ...times } = await readAnswer(response, asked);
      this.receive({ type: "task_status", data, ...times });
    } catch (error) {
      // Refused: not allowed, or already ended. The newest state shows which.
      await hub.ask(this);
      if (!TERMINAL.has(this.#state.status) && !this.#state.cancelling && !this.#givenUp)
        problem = error instanceof DeniedError ? hub.words.cancel_refused : hub.words.cancel_failed;
    }
    this.#cancelling = false;
    this.#render();
    this.#show("notice", problem);
    button.disabled = false;
    if (problem && document.activeElement === this) button.focus();
  };
}

/* ---- A list of tasks. ---- */

/** Parse a page of this site. A policy makes the HTML trusted if Trusted Types are enforced. */
function parsePage(html) {
  // Made at the first use: a page that loads this file twice may not make the policy twice.
  parsePage.policy ??= globalThis.trustedTypes?.createPolicy("tasks_app", {
    createHTML: (text) => text,
  });
  const trusted = parsePage.policy?.createHTML(html) ?? html;
  return new DOMParser().parseFromString(trusted, "text/html");
}

class TaskList extends HTMLElement {
  #timer = 0;
  #announcement = 0;
  #unannounced = []; // labels of tasks that appeared since the last announcement
  #told = false; // of a new task, and not yet seen it

  get since() {
    return this.dataset.since ?? "";
  }

  connectedCallback() {
    whenParsed(() => this.#start());
  }

  disconnectedCallback() {
    hub.unfollow(this);
    clearTimeout(this.#timer);
    clearTimeout(this.#announcement);
    this.#announcement = 0;
  }

  /** Take a message about any task of the user. */
  receive(taskId, { type, data }) {
    // Queued for the first time, and not handed back by a worker.
    if (type !== "task_queued" || data.reason || this.#row(taskId)) return;
    this.#told = true;
    this.look();
  }

  /** See soon which tasks are new. */
  look() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#fetchRows(), NEW_ROWS);
  }

  #start() {
    if (!this.isConnected) return;
    for (const time of this.querySelectorAll("time")) this.#localise(time);
    if (this.hasAttribute("data-follow") && hub.find()) hub.follow(this);
  }

  #part(name) {
    return this.querySelector(`:scope > [data-part="${name}"]`);
  }

  #row(taskId) {
    return this.querySelector(`task-progress[task-id="${taskId}"]`);
  }

  /** Show a time in the viewer's zone; the server's words name its own. */
  #localise(time) {
    const date = new Date(time.dateTime);
    if (!Number.isNaN(date.valueOf())) time.textContent = moment(date);
  }

  /** Fetch this page again and take over the rows that it has and this one has not. */
  async #fetchRows() {
    try {
      const response = await request(location.href, { headers: { Accept: "text/html" } });
      const page = parsePage(await response.text());
      const { dataset, children } = this.#counterpart(page);
      const rows = [...children].find((part) => part.dataset.part === "list").children;
      this.#told = false;
      if (this.isConnected) this.#take([...rows], dataset.since);
    } catch (error) {
      if (error instanceof DeniedError) {
        hub.unfollow(this);
        this.#say(hub.words.denied);
      } else if (this.#told) this.#say(hub.words.new_tasks);
    }
  }

  /** Find this list in a fresh copy of its page: the same one of its form. */
  #counterpart(page) {
    const selector = `task-list[data-form="${this.dataset.form}"]`;
    const index = [...document.querySelectorAll(selector)].indexOf(this);
    return page.querySelectorAll(selector)[index];
  }

  #say(text) {
    this.#part("news").textContent = this.#part("announcer").textContent = text;
    this.#part("news").hidden = false;
  }

  #take(rows, since) {
    const list = this.#part("list");
    const barOf = (row) => row.querySelector("task-progress");
    // The newest come first; rows below one that is already here are not new.
    const known = rows.findIndex((row) => this.#row(barOf(row).getAttribute("task-id")));
    const news = known < 0 ? rows : rows.slice(0, known);
    this.#part("news").hidden = true;
    if (news.length === 0) return;
    for (const row of news) {
      // It is as old as the page it comes from; later facts are still to come.
      barOf(row).dataset.since ??= since ?? "";
      for (const time of row.querySelectorAll("time")) this.#localise(time);
    }
    list.prepend(...news.map((row) => document.importNode(row, true)));
    this.#part("empty").hidden = true;
    // The newest last, as those that are announced later.
    for (const row of [...news].reverse())
      this.#unannounced.push(row.querySelector("[data-part=label]").textContent.trim());
    if (this.#announcement === 0) this.#announceNew();
    this.#trim(list);
  }

  /** Announce new tasks immediately, and those that follow soon after together. */
  #announceNew() {
    this.#announcement = 0;
    const labels = this.#unannounced.splice(0);
    if (labels.length === 0) return;
    this.#part("announcer").textContent = fill(hub.words.new_task, { label: labels.join(", ") });
    this.#announcement = setTimeout(() => this.#announceNew(), NEW_TASKS);
  }

  /** Let go of the oldest rows past the list's length, of tasks that have ended. */
  #trim(list) {
    const limit = Number(this.dataset.limit) || Infinity;
    while (list.childElementCount > limit) {
      const bar = list.lastElementChild.querySelector("task-progress");
      if (!TERMINAL.has(bar.getAttribute("status"))) return;
      // Nor from under a keyboard.
      if (list.lastElementChild.contains(document.activeElement)) return;
      list.lastElementChild.remove();
    }
  }
}

// A page may load this file twice, by two addresses; the first is in charge.
if (!customElements.get("task-progress")) {
  customElements.define("task-progress", TaskProgress);
  customElements.define("task-list", TaskList);
}
