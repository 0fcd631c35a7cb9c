/**
 * The state of a task: what messages make of it, and the words that people read of it.
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
const DRIFT = 2_000; // what a message may be under way before its times count more than ours
const STALLED = { least: 10_000, most: 60_000, part: 0.25 }; // of the time before the last report

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
    // Undefined except in the admin's list.
    moved: info.progress_time ? sinceThen(info.progress_time, message) : message.received,
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
  const reported = next.value > state.value || (message.data.progress_time && !behind);
  const moved = reported ? next.moved : state.moved;
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

export const fill = (words, values) => words.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));

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
export function moment(date) {
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

/* ---- Messages of the server ---- */

/**
 * Parse JSON of the server's. What results hold keeps its digits, of which a number of JavaScript
 * has 16, in browsers that can tell them (JSON.rawJSON).
 */
export function parseMessage(text) {
  const message = JSON.parse(text);
  if (!JSON.rawJSON || !text.includes('"result":')) return message;
  const exact = JSON.parse(text, (_, value, { source }) =>
    typeof value === "number" && String(value) !== source ? JSON.rawJSON(source) : value,
  );
  if (message.data) message.data.result = exact.data.result;
  message.tasks?.forEach((task, index) => (task.result = exact.tasks[index].result));
  return "result" in message ? { ...message, result: exact.result } : message;
}
