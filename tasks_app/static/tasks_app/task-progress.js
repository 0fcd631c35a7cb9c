/**
 * <task-progress>: a task, rendered by Django and kept live from here.
 * <task-list>: a list of them, which the user's new tasks join.
 *
 * All of a page share one EventSource. While it fails, they ask the status endpoint and say so.
 * Dispatches, bubbling:
 *   task-progress:end    when a task ends while the page is open; detail {taskId, status}
 *   task-progress:event  for each fact of its history;
 *                        detail {taskId, eventId, eventType, timestamp, data}
 *
 * One file, though it has four parts: storages that rename static files for caching do not rename
 * what a module imports, so an import might find an older file, or none.
 */

const TERMINAL_EVENTS = {
  task_completed: "completed",
  task_failed: "failed",
  task_cancelled: "cancelled",
};
const TERMINAL = new Set(Object.values(TERMINAL_EVENTS));
const FACTS = [
  "task_queued",
  "task_started",
  "task_log",
  "task_cancel_requested",
  "task_retry_scheduled",
  ...Object.keys(TERMINAL_EVENTS),
];
const STATES = ["task_status", "progress_update"];

// Milliseconds, unless they say otherwise.
const GATHER = 20; // bars that appear together share a request
const PATIENCE = 5_000; // a stream may be silent at first, or away, before anybody is told
const POLL = { least: 3_000, most: 10_000, growth: 1.2 };
const RETRY = { least: 1_000, most: 30_000, growth: 2 };
const HOPELESS = 3; // failures in a row, where no stream has ever opened
const FETCH_TIMEOUT = 10_000;
const ANNOUNCE = 5_000; // between two progress announcements of a page
const KEEPALIVES = 2.5; // a stream that misses two keep-alives is dead, whatever it says
const SURE = { from: 400, until: 10_000 }; // when the second press of Cancel counts
const NEW_TASKS = 10_000; // between two announcements of a list's new tasks
const NEW_ROWS = 250; // tasks started together appear together
const WAITING = 10_000; // between two looks for a worker, while a task waits
const DRIFT = 2_000; // what a message may be under way before its times count more than ours
const STALLED = { least: 10_000, most: 60_000, part: 0.25 }; // of the time before the last report
const REST = 3_000; // a hidden page keeps its stream; a browser has six for all tabs of a site

// How many tasks one request asks of: a request line has its limits.
const ASKED_AT_ONCE = 100;
// How many facts of one's tasks are kept for rows that are yet to appear.
const KEPT_FACTS = 500;
// As the server has them, in display.py: characters of a result, and what an estimate needs.
const RESULT_SHOWN = 2_000;
const ESTIMATE = { after: 2_000, from: 0.01 };
const LEFT = [
  ["left_days", 86_400, 172_800],
  ["left_hours", 3_600, 7_200],
  ["left_minutes", 60, 90],
];

/* ---- What a task's messages make of its state. Pure. ---- */

// Times of the server are compared with each other only, and made into ours by what lies between
// them and the message that brought them: clocks differ.
const sinceThen = (then, { time, received }) => received - Math.max(0, time - Date.parse(then));
const untilThen = (then, { time, received }) =>
  then && Date.parse(then) > time ? received + Date.parse(then) - time : 0;

const begin = (state, message) => ({
  ...state,
  status: "running",
  attempt: message.data.attempt,
  maxAttempts: message.data.max_attempts ?? state.maxAttempts,
  value: null,
  text: "",
  started: message.time,
  began: message.received,
  moved: message.received,
  due: 0,
});

const wait = (state, attempt, message) => ({
  ...state,
  status: "pending",
  attempt,
  value: null,
  text: "",
  due: untilThen(message.data.run_after, message),
});

const finish = (state, status, { data, time }) => ({
  ...state,
  status,
  // The last of it comes with the end: what is sent in between may have been overtaken.
  text: data.progress?.text ?? state.text,
  value: status === "completed" ? 1 : (data.progress?.value ?? state.value),
  error: data.error ?? null,
  result: data.result ?? null,
  took: state.started === null ? null : Math.max(0, time - state.started),
});

function fromInfo(info, message) {
  const { start_time: start, end_time: end, created_time: created } = info;
  // As the server has it: a clock that is behind must not make a new task wait.
  const time = Math.max(message.time, Date.parse(created));
  return {
    status: info.status,
    attempt: info.attempt,
    maxAttempts: info.max_attempts,
    value: info.progress.value,
    text: info.progress.text,
    cancelling: info.cancel_requested,
    error: info.error ?? null,
    result: info.result ?? null,
    started: start ? Date.parse(start) : null,
    began: start ? sinceThen(start, message) : null,
    moved: message.received,
    took: start && end ? Math.max(0, Date.parse(end) - Date.parse(start)) : null,
    due: untilThen(info.run_after, { ...message, time }),
    // Undefined in a stream, which does not look for workers.
    noWorker: info.no_worker,
  };
}

// Grows with every step of a task, except where a worker hands it back.
const rank = (state) => 2 * state.attempt + (state.status === "pending" ? 1 : 0);

function snapshot(state, message) {
  const next = fromInfo(message.data, message);
  if (TERMINAL.has(next.status)) return next;
  const older = message.asked < state.heard;
  const sameRun =
    next.status === state.status &&
    next.attempt === state.attempt &&
    next.started === state.started;
  if (!sameRun) return older && rank(next) <= rank(state) ? state : next;
  const behind = (next.value ?? 0) < (state.value ?? 0) || (older && next.value === state.value);
  const { value, text } = behind ? state : next;
  const cancelling = next.cancelling || state.cancelling;
  const noWorker = next.noWorker ?? state.noWorker;
  // A page may be older than it seems: restored by Back or htmx, or asleep. The message knows.
  const began = Math.abs(next.began - state.began) > DRIFT ? next.began : state.began;
  const moved = next.value > state.value ? next.moved : state.moved;
  return { ...next, value, text, cancelling, noWorker, began, moved };
}

/**
 * Return the state after a message; the same object where the message is stale.
 *
 * A message has the server's `time` of making it, and ours of when it was `asked` for and
 * `received`. What was asked for after all else was heard is the newest, whatever it says. The
 * rest may come twice or late (a stream that resumes tells the state first, and then the facts that
 * led to it): an ended task stays ended, and progress never goes back in an attempt.
 */
export function reduce(state, message) {
  if (TERMINAL.has(state.status)) return state;
  const { type, data, time } = message;
  const running = state.status === "running";
  switch (type) {
    case "task_status":
      return snapshot(state, message);
    case "progress_update": {
      if (data.attempt < state.attempt) return state;
      if (data.attempt === state.attempt && !running) return state;
      const now = data.attempt > state.attempt ? begin(state, message) : state;
      if (data.value !== null && data.value < now.value) return state;
      const moved = data.value > now.value || data.text !== now.text ? message.received : now.moved;
      return { ...now, text: data.text, value: data.value ?? now.value, moved };
    }
    case "task_started": {
      // Handed back and taken again, the attempt has the number it had.
      const again = running && data.attempt === state.attempt && time > state.started;
      return data.attempt > state.attempt || again ? begin(state, message) : state;
    }
    case "task_queued":
      // A worker that shut down hands it back, the attempt not counted; not so when it was started.
      return data.reason && running && time >= state.started ? wait(state, state.attempt - 1, message) : state;
    case "task_retry_scheduled":
      return data.attempt > state.attempt || (running && data.attempt === state.attempt)
        ? wait(state, data.attempt, message)
        : state;
    case "task_cancel_requested":
      return state.cancelling ? state : { ...state, cancelling: true };
    default:
      return type in TERMINAL_EVENTS ? finish(state, TERMINAL_EVENTS[type], message) : state;
  }
}

/* ---- What people read. The template tag says the same. ---- */

const fill = (words, values) => words.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));

/** Say a length of time in its two largest units. */
export function duration(milliseconds, words) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const [minutes, hours, days] = [60, 3600, 86_400].map((unit) => Math.floor(seconds / unit));
  const unit = days ? "days" : hours ? "hours" : minutes ? "minutes" : "seconds";
  return fill(words[unit], {
    days,
    hours: hours % 24,
    minutes: minutes % 60,
    seconds: seconds % 60,
  });
}

/** Estimate how much longer a running task runs, or say for how long it has not moved. */
export function timeLeft({ value, began, moved }, words, now) {
  if (began === null) return "";
  const silent = now - moved;
  const before = moved - began;
  const patience = Math.min(Math.max(before * STALLED.part, STALLED.least), STALLED.most);
  if (silent >= patience) return fill(words.stalled, { duration: duration(silent, words) });
  if (value === null || value < ESTIMATE.from || value >= 1 || now - began < ESTIMATE.after)
    return "";
  // By its pace up to the last report, so that the estimate falls while nothing is reported.
  const pace = Math.max(before, ESTIMATE.after);
  const seconds = Math.max(0, (pace * (1 - value)) / value - silent) / 1000;
  const unit = LEFT.find(([, , least]) => seconds >= least);
  return unit
    ? fill(words[unit[0]], { count: Math.floor(seconds / unit[1] + 0.5) })
    : fill(words.left_seconds, { count: 5 * Math.max(1, Math.ceil(seconds / 5)) });
}

/** Return a result as text: JSON, indented, but for a plain text. */
function resultText(result) {
  if (result === null) return "";
  const text = typeof result === "string" ? result : JSON.stringify(result, null, 2);
  const letters = Array.from(text);
  return letters.length <= RESULT_SHOWN ? text : `${letters.slice(0, RESULT_SHOWN - 1).join("")}…`;
}

/**
 * The page's language, as it is spoken where the viewer is, if they say so: English has clocks of
 * 12 hours and of 24. The viewer's own where the page names none, or none that there is.
 */
function pageLanguage() {
  const { lang } = document.documentElement;
  const own = navigator.languages.filter((language) => language.startsWith(`${lang}-`));
  try {
    return Intl.DateTimeFormat.supportedLocalesOf([...own, lang]);
  } catch {
    return [];
  }
}

/** The time zone that the admin's page of a task names; elsewhere none, which is the viewer's own. */
function pageZone() {
  const timeZone = document.querySelector("[data-task-page][data-zone]")?.dataset.zone;
  try {
    return new Intl.DateTimeFormat("en", { timeZone }).resolvedOptions().timeZone;
  } catch {
    return undefined; // one that Python knows and the browser does not
  }
}

/** Say when, in the time zone of the page. */
function moment(date) {
  const timeZone = pageZone();
  const day = new Intl.DateTimeFormat("en", { dateStyle: "short", timeZone });
  const style = { timeStyle: "short", timeZone };
  if (day.format(date) !== day.format(new Date())) style.dateStyle = "medium";
  return new Intl.DateTimeFormat(pageLanguage(), style).format(date);
}

/** Return what to show of a state, at a time of ours. */
export function describe(state, words, now) {
  const { status, attempt, maxAttempts, value } = state;
  const attempts = { attempt, max_attempts: maxAttempts };
  const ended = TERMINAL.has(status);
  const running = status === "running";
  let said;
  if (ended) said = words[status];
  else if (state.cancelling) said = words.cancelling;
  else if (running) said = fill(words[attempt > 1 ? "running_again" : "running"], attempts);
  else if (state.due <= now) said = state.noWorker || words.waiting;
  else {
    const time = moment(new Date(Date.now() + state.due - now));
    said = fill(words[attempt ? "retry_at" : "waiting_until"], { time, ...attempts });
  }
  const known = value !== null && status !== "pending";
  let time = "";
  if (running && state.began !== null) time = duration(now - state.began, words);
  if (ended && state.took !== null)
    time = fill(words.took, { duration: duration(state.took, words) });
  return {
    state: said,
    // Null is a bar in motion with no end in sight.
    value: known ? value : running ? null : 0,
    // Rounded down, so that 100 means all of it.
    percent: known ? fill(words.percent, { percent: Math.floor(value * 100 + 1e-9) }) : "",
    // What an attempt said that is over, or was handed back, is not what the next one does.
    text: status === "pending" ? "" : state.text,
    time,
    left: running && !state.cancelling ? timeLeft(state, words, now) : "",
    // Where there is but one, or where it has been said already, it is not worth a word.
    attempts:
      maxAttempts === 1 || attempt === 0 || status === "pending" ||
      (running && attempt > 1 && !state.cancelling)
        ? ""
        : fill(words.attempts, attempts),
    result: status === "completed" ? resultText(state.result) : "",
    // Without a type it is for the task's owner; with one, for staff.
    error: state.error ? [state.error.type, state.error.message].filter(Boolean).join(": ") : "",
  };
}

/* ---- The page's one stream, and what stands in for it. ---- */

class DeniedError extends Error {}

/** Return a signal that aborts with another one, or after FETCH_TIMEOUT. */
export function bounded(signal) {
  // Not AbortSignal.any, which is younger than the browsers that the guide names.
  const own = new AbortController();
  if (signal.aborted) own.abort();
  setTimeout(() => own.abort(), FETCH_TIMEOUT);
  signal.addEventListener("abort", () => own.abort(), { signal: own.signal });
  return own.signal;
}

/**
 * Parse JSON of the server's. What results hold keeps its digits, of which a number of JavaScript
 * has 16, in browsers that can tell them (JSON.rawJSON).
 */
function parseMessage(text) {
  const message = JSON.parse(text);
  if (!JSON.rawJSON || !text.includes('"result":')) return message;
  const exact = JSON.parse(text, (_, value, { source }) =>
    typeof value === "number" && String(value) !== source ? JSON.rawJSON(source) : value,
  );
  if (message.data) message.data.result = exact.data.result;
  message.tasks?.forEach((task, index) => (task.result = exact.tasks[index].result));
  return "result" in message ? { ...message, result: exact.result } : message;
}

/** Fetch JSON. Raises DeniedError where asking again would not help. */
async function fetchJSON(url, { signal, ...options } = {}) {
  const asked = performance.now();
  const response = await fetch(url, {
    ...options,
    headers: { Accept: "application/json" },
    cache: "no-store",
    // A redirect leads to a log-in page.
    redirect: "manual",
    signal: signal ? bounded(signal) : AbortSignal.timeout(FETCH_TIMEOUT),
  });
  if (response.type === "opaqueredirect" || [401, 403, 404, 410].includes(response.status))
    throw new DeniedError(`${response.status}`);
  if (!response.ok) throw new Error(`${response.status}`);
  const body = parseMessage(await response.text());
  return { body, time: Date.parse(body.time) || Date.now(), asked, received: performance.now() };
}

/** The wait before try number `tries` (from 0): it grows, and no two pages' are alike. */
const backoff = ({ least, most, growth }, tries) =>
  Math.min(most, least * growth ** tries) * (0.5 + Math.random() / 2);

/**
 * The number of the fact that an id of the stream stands at. Within a task it grows; whether one
 * moment is before another, only the server can tell.
 */
const factId = (id) => Number.parseInt(id, 10) || 0;

/** Of which history of the database an id is: after a failover, numbers may be given again. */
const historyOf = (id) => id.split("@")[3] ?? "";

/** A task's id in 22 characters: a server may refuse a request line of more than 4,094. */
const shortId = (id) => {
  const bytes = id.replaceAll("-", "").match(/../g) ?? [];
  const text = String.fromCharCode(...bytes.map((byte) => Number.parseInt(byte, 16)));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
};

/** What lies between the clock that may be set and the one that may stand still. */
const clockOffset = () => Date.now() - performance.now();

class Hub {
  #page = null; // the <template> with the addresses and the words
  #bars = new Set(); // connected, unfinished, or ended and not yet told all that led to it
  #left = new Set(); // those that left a moment ago, maybe for another place, and missed nothing
  #lists = new Set(); // connected, that new tasks may join
  #source = null;
  #following = false; // all tasks of the user, and not only those named
  #recent = []; // the newest facts of them, for those whose rows are yet to appear
  #fresh = new Set(); // what no stream has gone on from yet, and says from where one must
  #streamed = new Set(); // ids of the open stream
  #ends = new Set(); // ids of tasks whose terminal event a stream has brought
  #opened = false; // whether a stream ever brought anything
  #unheard = new Set(); // those it has not said a thing about since it was asked
  #asked = 0;
  #lastEventId = "";
  #failures = 0;
  #polls = 0;
  #polling = false; // instead of the stream
  #unreachable = false;
  #fetching = new Set();
  #away = document.hidden; // a tab that nobody has looked at yet needs no stream
  #offset = 0; // between the two clocks, when the stream was asked for
  #timers = new Map();

  constructor() {
    addEventListener("pagehide", () => this.#leave());
    addEventListener("pageshow", (event) => event.persisted && this.#return());
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => this.#looked());
  }

  #leave() {
    this.#away = true;
    this.#stop();
  }

  /** Go on from where the stream was left. */
  #return() {
    this.#away = false;
    this.#plan();
    // After very long there may be more to tell than a stream does.
    for (const list of this.#lists) list.look();
  }

  #looked() {
    if (document.hidden) {
      this.#later("rest", REST, () => this.#leave());
      return;
    }
    this.#never("rest");
    if (this.#away) this.#return();
    // Timers of a hidden page are slowed down to a minute.
    else this.#hurry();
  }

  get words() {
    return this.#page.words;
  }

  /** Whether this page says where to ask. */
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
    // What the open stream has told since the list was rendered, it told to others.
    if (this.#following) list.look();
    this.#plan();
  }

  unfollow(list) {
    this.#fresh.delete(list);
    if (this.#lists.delete(list)) this.#plan();
  }

  /** Forget a bar that left the page, if only for another place of it, or that gave up. */
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

  /** Whether a stream will still bring facts of a bar's ended task. */
  #owed(bar) {
    if (this.#ends.has(bar.taskId) || !this.#page.streams) return false;
    if (this.#source) return this.#streamed.has(bar.taskId);
    // Where there are no streams, there is nothing to wait for.
    return this.#opened || this.#failures < HOPELESS;
  }

  /** Ask how a task stands, now. */
  async ask(bar) {
    await this.#fetch([bar.taskId]);
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

  #plan() {
    if (!this.#timers.has("settle")) this.#later("settle", GATHER, () => this.#settle());
  }

  #ids() {
    return [...new Set([...this.#bars].map((bar) => bar.taskId))];
  }

  #unfinished() {
    return [...new Set([...this.#bars].filter((bar) => !bar.ended).map((bar) => bar.taskId))];
  }

  /** The tasks that one stream can carry: the user's own where it follows those. */
  #carried() {
    if (!this.#lists.size) return this.#ids();
    return [...new Set([...this.#bars].filter((bar) => bar.mine).map((bar) => bar.taskId))];
  }

  #settle() {
    this.#left.clear();
    if (this.#away) return;
    for (const bar of [...this.#bars])
      if (bar.ended && !this.#owed(bar)) {
        this.#bars.delete(bar);
        this.#fresh.delete(bar);
      }
    const ids = this.#carried();
    if (this.#bars.size + this.#lists.size === 0) {
      this.#stop();
      return;
    }
    if (document.hidden && !this.#timers.has("rest")) this.#looked();
    const missing = ids.filter((id) => !this.#streamed.has(id));
    const room = this.#page.maxTasks - (ids.length - missing.length);
    const wanted =
      missing.length > 0 &&
      (this.#following || missing.length <= room || room >= this.#page.maxTasks / 2);
    const other = this.#following !== this.#lists.size > 0;
    const reopen = this.#source ? wanted || other : !this.#timers.has("retry");
    if (this.#page.streams && reopen && (ids.length > 0 || this.#lists.size > 0)) this.#open();
    this.#hint();
    if (this.#mustPoll() && !this.#timers.has("poll")) this.#pollSoon();
    if (!this.#timers.has("waiting")) this.#later("waiting", WAITING, () => this.#askForWorkers());
  }

  /** No stream tells that a task waits for want of a worker. */
  #askForWorkers() {
    const ids = [...this.#bars].filter((bar) => bar.waits).map((bar) => bar.taskId);
    if (ids.length > 0 && !this.#polling && !document.hidden) this.#fetch([...new Set(ids)]);
    if (this.#unfinished().length > 0)
      this.#later("waiting", WAITING, () => this.#askForWorkers());
  }

  #stop() {
    this.#source?.close();
    this.#source = null;
    this.#following = false;
    this.#recent = [];
    this.#streamed.clear();
    for (const fetching of this.#fetching) fetching.abort();
    for (const name of [...this.#timers.keys()]) this.#never(name);
    this.#failures = this.#polls = 0;
    this.#polling = this.#unreachable = false;
  }

  /* -- The stream -- */

  #open() {
    this.#source?.close();
    this.#never("retry");
    this.#following = this.#lists.size > 0;
    const ids = this.#following ? this.#carried() : this.#ids().slice(0, this.#page.maxTasks);
    const url = new URL(this.#page.streams, document.baseURI);
    if (this.#following) url.searchParams.set("mine", "1");
    else for (const id of ids) url.searchParams.append("task", shortId(id));
    for (const since of this.#since()) url.searchParams.append("lastEventId", since);
    this.#streamed = new Set(ids);
    const source = new EventSource(url);
    this.#source = source;
    this.#expect();
    for (const type of [...STATES, ...FACTS])
      source.addEventListener(type, (event) => this.#receive(source, event));
    source.addEventListener("keep-alive", () => this.#alive(source));
    source.addEventListener("stream-end", () => this.#finished(source));
    source.addEventListener("error", () => this.#error(source));
    this.#watchdog();
  }

  /** The moments that a stream must go on from, of which the server takes the earliest. */
  #since() {
    const all = [...this.#fresh].map(({ since }) => since);
    return new Set([this.#lastEventId, ...all].filter(Boolean));
  }

  /** Bring a row that has just appeared up to date, in a stream that carries its task already. */
  #join(bar) {
    this.#streamed.add(bar.taskId);
    // Also those that its rendering includes: an id does not tell, and stale ones change nothing.
    const missed = this.#recent.filter(({ taskId }) => taskId === bar.taskId);
    for (const { message } of missed) bar.receive(message);
    if (missed.length === 0) this.ask(bar);
  }

  /** Bring a bar up to date whose task the open stream has told of to others. */
  #catchUp(bar) {
    // One that shows each event must be told each; to others it is enough how things stand.
    if (bar.since) this.#streamed.delete(bar.taskId);
    else this.ask(bar);
  }

  /** The stream is asked for, by us or by the browser on its own: each task's state comes first. */
  #expect() {
    this.#offset = clockOffset();
    this.#asked = performance.now();
    this.#unheard = new Set(this.#streamed);
    this.#mind();
  }

  #mind() {
    if (!this.#polling && !this.#timers.has("patience"))
      this.#later("patience", PATIENCE, () => this.#impatient());
  }

  #watchdog() {
    const silence = Math.max(KEEPALIVES * this.#page.keepalive, 2 * PATIENCE);
    this.#later("watchdog", silence, () => this.#lose());
  }

  /** The stream has told all there was of its tasks. */
  #finished(source) {
    if (source !== this.#source) return;
    for (const bar of this.#bars) if (bar.ended) this.#ends.add(bar.taskId);
    this.#plan();
  }

  #alive(source) {
    if (source !== this.#source) return;
    this.#opened = true;
    this.#watchdog();
    this.#failures = 0;
    // The machine slept, and performance.now() with it: have the stream say anew when tasks began.
    if (Math.abs(clockOffset() - this.#offset) > DRIFT) this.#open();
    if (!this.#polling) return;
    this.#polling = this.#unreachable = false;
    this.#polls = 0;
    if (this.#unstreamed().length === 0) this.#never("poll");
    this.#hint();
  }

  #receive(source, event) {
    if (source !== this.#source) return;
    let message;
    try {
      message = parseMessage(event.data);
    } catch {
      return; // not one of ours
    }
    if (event.lastEventId) {
      if (this.#lastEventId && historyOf(this.#lastEventId) !== historyOf(event.lastEventId))
        this.#beginAnew();
      this.#lastEventId = event.lastEventId;
      for (const one of this.#fresh)
        if (!one.taskId || this.#streamed.has(one.taskId)) this.#fresh.delete(one);
    }
    this.#unheard.delete(message.task_id);
    if (this.#unheard.size === 0) this.#never("patience");
    this.#alive(source);
    this.#deliver(message.task_id, {
      type: event.type,
      id: factId(event.lastEventId),
      data: message.data,
      time: Date.parse(message.timestamp),
      timestamp: message.timestamp,
      asked: this.#asked,
      received: performance.now(),
    });
  }

  /** The database was replaced: what was heard before is no newer than what is told from now on. */
  #beginAnew() {
    this.#asked = performance.now();
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

  #error(source) {
    if (source !== this.#source) return;
    // The browser comes back to what broke off, but not to what was refused.
    if (source.readyState === EventSource.CLOSED) this.#lose();
    else this.#expect();
  }

  /** The stream is gone for good: try a new one later; meanwhile see whether all has ended. */
  #lose() {
    this.#source?.close();
    this.#source = null;
    this.#never("watchdog");
    this.#mind();
    this.#later("retry", backoff(RETRY, this.#failures++), () => this.#open());
    if (!this.#polling) this.#fetch(this.#unfinished());
    this.#plan();
    // Without a bar nobody else would learn that the viewer was signed out.
    if (this.#bars.size === 0) for (const list of this.#lists) list.look();
  }

  /** Some task has not been heard of in time. */
  #impatient() {
    const silent = this.#streamed.size > 0 && this.#unheard.size === this.#streamed.size;
    if (this.#source === null || silent) {
      this.#polling = true;
      this.#hint({ aloud: true });
      this.#poll();
      return;
    }
    const unheard = this.#unfinished().filter((id) => this.#unheard.has(id));
    if (unheard.length > 0) this.#fetch(unheard);
  }

  #hurry() {
    if (this.#away) return;
    if (this.#timers.has("retry")) this.#open();
    if (this.#polling) this.#poll();
  }

  /* -- Asking instead -- */

  #unstreamed() {
    return this.#unfinished().filter((id) => this.#polling || !this.#streamed.has(id));
  }

  /** Whether somebody here learns what is new by asking only. */
  #mustPoll() {
    return this.#unstreamed().length > 0 || (!this.#page.streams && this.#lists.size > 0);
  }

  #pollSoon() {
    this.#later("poll", backoff(POLL, this.#polls++), () => this.#poll());
  }

  async #poll() {
    this.#never("poll");
    await this.#fetch(this.#unstreamed());
    if (!this.#page.streams) for (const list of this.#lists) list.look();
    if (!this.#away && this.#mustPoll()) this.#pollSoon();
  }

  async #fetch(ids) {
    const fetching = new AbortController();
    this.#fetching.add(fetching);
    try {
      const most = Math.min(this.#page.maxTasks, ASKED_AT_ONCE);
      for (let start = 0; start < ids.length; start += most)
        await this.#fetchSome(ids.slice(start, start + most), fetching.signal);
      this.#unreachable = false;
    } catch (error) {
      if (fetching.signal.aborted) return;
      if (error instanceof DeniedError) {
        for (const bar of [...this.#bars]) bar.giveUp(this.words.denied);
        return;
      }
      this.#unreachable = true;
    } finally {
      this.#fetching.delete(fetching);
    }
    this.#hint();
  }

  async #fetchSome(ids, signal) {
    const url = new URL(this.#page.statuses, document.baseURI);
    for (const id of ids) url.searchParams.append("task", shortId(id));
    const { body, ...times } = await fetchJSON(url, { signal });
    const missing = new Set(ids);
    for (const info of body.tasks) {
      missing.delete(info.task_id);
      this.#unheard.delete(info.task_id);
      this.#deliver(info.task_id, { type: "task_status", data: info, ...times });
    }
    for (const bar of [...this.#bars]) if (missing.has(bar.taskId)) bar.giveUp(this.words.gone);
  }

  #hint({ aloud = false } = {}) {
    const trouble = this.#unreachable ? this.words.lost : this.words.interrupted;
    for (const bar of this.#bars) {
      const asks = this.#unreachable ? this.words.lost : this.words.polled;
      const streams = this.#streamed.has(bar.taskId);
      bar.hint(this.#polling ? trouble : streams ? "" : asks);
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

/** When the page may next read out progress: bars take turns, however many there are. */
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

  /** The ids of facts are given anew. */
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
    const { attempt, maxAttempts, started, elapsed, wait, cancelling, noWorker } = this.dataset;
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
      moved: now,
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

  /** Read out a change of state at once, mere progress when it is this bar's turn. */
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
      const { body: data, ...times } = await fetchJSON(form.action, { method: "POST", body });
      this.receive({ type: "task_status", data, ...times });
    } catch (error) {
      // Refused: not allowed, or over already. The newest state tells which.
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

/** Parse a page of this site. Where Trusted Types are enforced, by a policy of this name. */
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
      const response = await fetch(location.href, {
        headers: { Accept: "text/html" },
        cache: "no-store",
        redirect: "manual",
        signal: AbortSignal.timeout(FETCH_TIMEOUT),
      });
      if (response.type === "opaqueredirect" || [401, 403].includes(response.status)) {
        hub.unfollow(this);
        this.#say(hub.words.denied);
        return;
      }
      if (!response.ok) throw new Error(`${response.status}`);
      const page = parsePage(await response.text());
      const { dataset, children } = this.#counterpart(page);
      const rows = [...children].find((part) => part.dataset.part === "list").children;
      this.#told = false;
      if (this.isConnected) this.#take([...rows], dataset.since);
    } catch (error) {
      console.debug(error);
      if (this.#told) this.#say(hub.words.new_tasks);
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
    // The newest come first; below a row that is here, older ones are not news.
    const known = rows.findIndex((row) => this.#row(barOf(row).getAttribute("task-id")));
    const news = known < 0 ? rows : rows.slice(0, known);
    this.#part("news").hidden = true;
    if (news.length === 0) return;
    for (const row of news) {
      // As old as the page it comes from: the facts since then are still to be told.
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

  /** Announce what is new at once, and what follows soon after it together. */
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
