/**
 * The state of a task: how messages change it, and how it is put into words.
 *
 * Everything here is pure. The server says the same in display.py.
 */

export const TERMINAL_EVENTS = {
  task_completed: "completed",
  task_failed: "failed",
  task_cancelled: "cancelled",
};
export const TERMINAL = new Set(Object.values(TERMINAL_EVENTS));
export const FACTS = [
  "task_queued",
  "task_started",
  "task_log",
  "task_cancel_requested",
  "task_retry_scheduled",
  ...Object.keys(TERMINAL_EVENTS),
];
export const STATES = ["task_status", "progress_update"];

// Milliseconds.
const DRIFT = 2_000; // a message may take this long before its times count more than ours
const STALLED = { least: 10_000, most: 60_000, part: 0.25 }; // of the time before the last report

// The same as in display.py: the length of a result, and the conditions of an estimate.
const RESULT_SHOWN = 2_000;
const ESTIMATE = { after: 2_000, from: 0.01 };
const LEFT = [
  ["left_days", 86_400, 172_800],
  ["left_hours", 3_600, 7_200],
  ["left_minutes", 60, 90],
];

/* ---- What a task's messages make of its state. Pure. ---- */

// Clocks differ. So times of the server are compared with each other only. They become our times by
// their distance from the message that brought them.
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
  // A terminal event has the last progress. Updates sent just before it may be missing.
  text: data.progress?.text ?? state.text,
  value: status === "completed" ? 1 : (data.progress?.value ?? state.value),
  error: data.error ?? null,
  result: data.result ?? null,
  took: state.started === null ? null : Math.max(0, time - state.started),
});

function fromInfo(info, message) {
  const { start_time: start, end_time: end, created_time: created } = info;
  // As on the server: a slow clock must not make a new task wait.
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
    // Undefined except in the admin's list.
    moved: info.progress_time ? sinceThen(info.progress_time, message) : message.received,
    took: start && end ? Math.max(0, Date.parse(end) - Date.parse(start)) : null,
    due: untilThen(info.run_after, { ...message, time }),
    // Undefined in a stream, which does not look for workers.
    noWorker: info.no_worker,
  };
}

// Grows with every step of a task, except if a worker releases it.
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
  // A page may be older than it seems: restored by Back or htmx, or asleep. The message is right.
  const began = Math.abs(next.began - state.began) > DRIFT ? next.began : state.began;
  const reported = next.value > state.value || (message.data.progress_time && !behind);
  const moved = reported ? next.moved : state.moved;
  return { ...next, value, text, cancelling, noWorker, began, moved };
}

/**
 * Return the state after a message; the same object if the message is stale.
 *
 * A message has the server's `time`, and our times at which it was `asked` for and `received`. A
 * message that was asked for after the last one was received is the newest, whatever it says. Others
 * may come twice or late, because a stream that resumes sends the state before the facts that led to
 * it. So an ended task stays ended, and progress never falls within an attempt.
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
      // A task that was released and claimed again has the same attempt number.
      const again = running && data.attempt === state.attempt && time > state.started;
      return data.attempt > state.attempt || again ? begin(state, message) : state;
    }
    case "task_queued":
      // A worker that shuts down releases the task and does not count the attempt. A new task has
      // no reason.
      return data.reason && running && time >= state.started
        ? wait(state, state.attempt - 1, message)
        : state;
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

export const fill = (words, values) =>
  words.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));

/** Return a duration in words, in its two largest units. */
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

/** Estimate how much longer a running task runs, or return for how long it has been silent. */
export function timeLeft({ value, began, moved }, words, now) {
  if (began === null) return "";
  const silent = now - moved;
  const before = moved - began;
  const patience = Math.min(Math.max(before * STALLED.part, STALLED.least), STALLED.most);
  if (silent >= patience) return fill(words.stalled, { duration: duration(silent, words) });
  if (value === null || value < ESTIMATE.from || value >= 1 || now - began < ESTIMATE.after)
    return "";
  // By the speed up to the last report, so the estimate falls while nothing is reported.
  const pace = Math.max(before, ESTIMATE.after);
  const seconds = Math.max(0, (pace * (1 - value)) / value - silent) / 1000;
  const unit = LEFT.find(([, , least]) => seconds >= least);
  return unit
    ? fill(words[unit[0]], { count: Math.floor(seconds / unit[1] + 0.5) })
    : fill(words.left_seconds, { count: 5 * Math.max(1, Math.ceil(seconds / 5)) });
}

/** Return a result as text: a string as it is, anything else as indented JSON. */
function resultText(result) {
  if (result === null) return "";
  const text = typeof result === "string" ? result : JSON.stringify(result, null, 2);
  const letters = Array.from(text);
  return letters.length <= RESULT_SHOWN ? text : `${letters.slice(0, RESULT_SHOWN - 1).join("")}…`;
}

/**
 * Return the page's language, in the viewer's own variant if the browser names one: English has
 * clocks of 12 and of 24 hours. Empty, which is the viewer's language, if the page names no valid one.
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

/** Return the time zone that the admin's page of a task names; undefined, the viewer's, elsewhere. */
function pageZone() {
  const timeZone = document.querySelector("[data-task-page][data-zone]")?.dataset.zone;
  try {
    return new Intl.DateTimeFormat("en", { timeZone }).resolvedOptions().timeZone;
  } catch {
    return undefined; // one that Python knows and the browser does not
  }
}

/** Return a time in words, in the time zone of the page. */
export function moment(date) {
  const timeZone = pageZone();
  const day = new Intl.DateTimeFormat("en", { dateStyle: "short", timeZone });
  const style = { timeStyle: "short", timeZone };
  if (day.format(date) !== day.format(new Date())) style.dateStyle = "medium";
  return new Intl.DateTimeFormat(pageLanguage(), style).format(date);
}

/** Return the texts and the bar's value for a state, at a time of ours. */
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
    // Null is an indeterminate bar.
    value: known ? value : running ? null : 0,
    // Rounded down, so that 100 means all of it.
    percent: known ? fill(words.percent, { percent: Math.floor(value * 100 + 1e-9) }) : "",
    // The text of an attempt that is over does not describe the next one.
    text: status === "pending" ? "" : state.text,
    time,
    left: running && !state.cancelling ? timeLeft(state, words, now) : "",
    // Empty if only one attempt is allowed, or if the state names it already.
    attempts:
      maxAttempts === 1 ||
      attempt === 0 ||
      status === "pending" ||
      (running && attempt > 1 && !state.cancelling)
        ? ""
        : fill(words.attempts, attempts),
    result: status === "completed" ? resultText(state.result) : "",
    // An error without a type is for the task's owner, one with a type for staff.
    error: state.error ? [state.error.type, state.error.message].filter(Boolean).join(": ") : "",
  };
}

/* ---- Messages of the server ---- */

/**
 * Parse JSON of the server. Numbers in results keep all their digits, if the browser has JSON.rawJSON:
 * a number in JavaScript has 16.
 */
export function parseMessage(text) {
  const message = JSON.parse(text);
  if (!JSON.rawJSON || !text.includes('"result":')) return message;
  const exact = JSON.parse(text, (_, value, { source }) =>
    typeof value === "number" && String(value) !== source ? JSON.rawJSON(source) : value,
  );
  if (message.data) message.data.result = exact.data.result;
  for (const [index, task] of (message.tasks ?? []).entries())
    task.result = exact.tasks[index].result;
  return "result" in message ? { ...message, result: exact.result } : message;
}
