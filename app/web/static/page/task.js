/** The same request as a task: sent, watched by long polls, cancelled. */

import * as api from "./api.js";
import { byId } from "./dom.js";
import { readColours } from "./drawing.js";
import { describeError, describeFault } from "./problems.js";
import { hasChanged } from "./state.js";
import { fieldsOf } from "./work.js";

/** @typedef {import("./work.js").Work} Work @typedef {import("./state.js").Task} Task @typedef {import("./state.js").Field} Field */

/** An answer comes at once when the task ends; in between, this often, so that its progress can be seen. */
const WAIT_S = 2;
const PAUSE_MS = 1500;
const MOST_FAILURES = 5;
const WORDS = /** @type {Record<string, string>} */ ({
  PENDING: "Waiting for a worker",
  STARTED: "Being worked on",
  SUCCESS: "Done: the picture shows its result",
  PASSED: "Done, for what was chosen before: the picture shows something else by now",
  FAILURE: "Failed",
  CANCELLED: "Cancelled",
});
const ENDED = new Set(["SUCCESS", "FAILURE", "CANCELLED"]);

/**
 * @param {Work} work
 * @param {boolean} hasTasks
 */
export function showTasks(work, hasTasks) {
  byId("task-off").hidden = hasTasks;
  byId("task-on").hidden = !hasTasks;
  const start = /** @type {HTMLButtonElement} */ (byId("task-start"));
  const stop = /** @type {HTMLButtonElement} */ (byId("task-cancel"));
  start.addEventListener("click", () => start.getAttribute("aria-disabled") === "true" || runTask(work));
  stop.addEventListener("click", () => cancelTask(work));
  work.store.show((state, before) => {
    if (!hasChanged(state, before, "photo", "result", "task", "isTaskRunning", "taskNote")) return;
    const { task, isTaskRunning } = state;
    start.setAttribute("aria-disabled", String(!state.photo || isTaskRunning)); // and not disabled, which would take the focus from it
    const hadFocus = document.activeElement === stop;
    stop.hidden = !isTaskRunning || !task;
    if (hadFocus && stop.hidden) start.focus();
    byId("after").hidden = !state.photo;
    byId("task").hidden = !task;
    if (task) showTask(task, state);
  });
}

/**
 * @param {Task} task
 * @param {import("./state.js").State} state
 */
function showTask(task, { result, taskNote }) {
  const progress = /** @type {HTMLProgressElement} */ (byId("task-progress"));
  progress.value = task.progress;
  progress.dataset.status = task.status;
  const percent = task.status === "STARTED" ? `: ${Math.round(100 * task.progress)} %` : "";
  const word = task.status === "SUCCESS" && result?.taskId !== task.task_id ? "PASSED" : task.status;
  const text = taskNote || `${WORDS[word] || word}${percent}`;
  const line = byId("task-status");
  if (line.textContent !== text) line.textContent = text; // said aloud each time it is set
  byId("task-id").textContent = task.task_id;
}

/** @param {Work} work */
function runTask(work) {
  return submit(work, fieldsOf(work.store.state), api.makeIdempotencyKey());
}

/**
 * Send a task, and watch it. Where its answer was lost, it may have been taken: tried again, it is the same one.
 * @param {Work} work
 * @param {Field[]} fields
 * @param {string} idempotencyKey
 */
async function submit(work, fields, idempotencyKey) {
  const { store } = work;
  const again = () => submit(work, fields, idempotencyKey);
  if (store.state.isTaskRunning || !work.isAllowed(fields, again)) return;
  store.set({ task: null, taskNote: "", isTaskRunning: true, trouble: null, isKeyAsked: false });
  try {
    store.set({ task: await api.submit(fields, idempotencyKey) });
  } catch (error) {
    work.fail(error, again, true);
    store.set({ isTaskRunning: false });
    return;
  }
  await watch(work, fields);
}

/**
 * Ask after the task until it has ended. Who loses sight of it can look for it again, and sends no second one.
 * @param {Work} work
 * @param {Field[]} fields
 */
async function watch(work, fields) {
  const { store } = work;
  let task = /** @type {Task} */ (store.state.task);
  try {
    while (!ENDED.has(task.status)) {
      task = await askAfter(task.task_id);
      if (!ENDED.has(task.status)) store.set({ task, taskNote: "" });
    }
    finish(work, task, fields);
  } catch (error) {
    const isGone = error instanceof api.ApiError && error.code === "task_unknown";
    store.set({ taskNote: isGone ? "Its record is gone" : "Lost sight of it: it may still be worked on" });
    work.fail(error, () => watchAgain(work, fields), true);
  } finally {
    store.set({ isTaskRunning: false });
  }
}

/**
 * @param {Work} work
 * @param {Field[]} fields
 */
function watchAgain(work, fields) {
  work.store.set({ taskNote: "", isTaskRunning: true, trouble: null, isKeyAsked: false });
  return watch(work, fields);
}

/**
 * Ask after a task; a connection that breaks, or a queue that is away for a moment, is no end of it.
 * @param {string} taskId
 */
async function askAfter(taskId) {
  for (let failures = 1; ; failures += 1) {
    try {
      return await api.status(taskId, WAIT_S);
    } catch (error) {
      const isPassing = error instanceof api.ApiError && (error.status === 0 || error.status >= 500);
      if (!isPassing || failures === MOST_FAILURES) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * failures));
    }
  }
}

/**
 * Show what became of a task; the picture shows its result only where nothing else was chosen meanwhile.
 * @param {Work} work
 * @param {Task} task
 * @param {Field[]} fields
 */
function finish(work, task, fields) {
  const { store } = work;
  const answer = task.result;
  if (task.status === "SUCCESS" && answer && isSame(fields, fieldsOf(store.state))) {
    work.running.abort();
    work.finish({ answer, text: JSON.stringify(answer), colours: readColours(answer), fields, taskId: task.task_id });
  }
  const fault = task.status === "FAILURE" && task.error ? { trouble: describeFault(task.error) } : {};
  store.set({ task, taskNote: "", ...fault });
}

/**
 * @param {Field[]} first
 * @param {Field[]} second
 */
function isSame(first, second) {
  return first.length === second.length && first.every((field, at) => field.name === second[at].name && field.value === second[at].value);
}

/** @param {Work} work */
async function cancelTask({ store }) {
  const { task } = store.state;
  if (!task) return;
  const isStillIt = () => store.state.isTaskRunning && store.state.task?.task_id === task.task_id;
  try {
    const answer = await api.cancel(task.task_id);
    if (isStillIt()) store.set({ task: answer, taskNote: "" });
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    // Where it has ended meanwhile, or is gone, whoever asks after it says so.
    const isOver = error.code === "task_ended" || error.code === "task_unknown";
    if (isStillIt() && !isOver) store.set({ taskNote: `It could not be cancelled. ${describeError(error).heading}` });
  }
}
