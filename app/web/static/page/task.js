/** The same request as a task: sent, watched by long polls, cancelled. */

import * as api from "./api.js";
import { byId } from "./dom.js";
import { readColours } from "./drawing.js";
import { describeFault } from "./problems.js";
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
  start.addEventListener("click", () => runTask(work));
  stop.addEventListener("click", () => cancelTask(work));
  work.store.show((state, before) => {
    if (!hasChanged(state, before, "photo", "task", "isTaskRunning", "taskNote")) return;
    const { task, isTaskRunning } = state;
    start.disabled = !state.photo || isTaskRunning;
    const hadFocus = document.activeElement === stop;
    stop.hidden = !isTaskRunning || !task;
    if (hadFocus && stop.hidden) start.focus();
    byId("after").hidden = !state.photo;
    byId("task").hidden = !task;
    if (task) showTask(task, state.taskNote);
  });
}

/**
 * @param {Task} task
 * @param {string} note
 */
function showTask(task, note) {
  const progress = /** @type {HTMLProgressElement} */ (byId("task-progress"));
  progress.value = task.progress;
  progress.dataset.status = task.status;
  const percent = task.status === "STARTED" ? `: ${Math.round(100 * task.progress)} %` : "";
  const text = note || `${WORDS[task.status] || task.status}${percent}`;
  const line = byId("task-status");
  if (line.textContent !== text) line.textContent = text; // said aloud each time it is set
  byId("task-id").textContent = task.task_id;
}

/** @param {Work} work */
async function runTask(work) {
  const { store } = work;
  const fields = fieldsOf(store.state);
  work.again = () => runTask(work);
  if (!work.isAllowed(fields)) return;
  store.set({ task: null, taskNote: "", isTaskRunning: true, trouble: null, isKeyAsked: false, isBusy: false });
  try {
    let task = await api.submit(fields);
    while (!ENDED.has(task.status)) {
      store.set({ task });
      task = await askAfter(task.task_id);
    }
    finish(work, task, fields);
  } catch (error) {
    work.fail(error, true);
  } finally {
    store.set({ isTaskRunning: false });
  }
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
 * @param {Work} work
 * @param {Task} task
 * @param {Field[]} fields
 */
function finish(work, task, fields) {
  const { store } = work;
  store.set({ task });
  if (task.status === "FAILURE" && task.error) store.set({ trouble: describeFault(task.error) });
  const answer = task.result;
  if (task.status !== "SUCCESS" || !answer) return;
  if (!isSame(fields, fieldsOf(store.state))) {
    store.set({ taskNote: "Done, for what was chosen before: the picture shows something else by now" });
    return;
  }
  work.running.abort();
  work.finish({ answer, text: JSON.stringify(answer), colours: readColours(answer), fields, taskId: task.task_id });
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
  try {
    const answer = await api.cancel(task.task_id);
    if (store.state.task?.task_id === task.task_id) store.set({ task: answer });
  } catch (error) {
    // It has ended meanwhile, or cannot be reached: whoever asks after it says so.
    if (!(error instanceof api.ApiError)) throw error;
  }
}
