/** The request as a task: submitted, polled until it ends, or cancelled. */

import * as api from "./api.js";
import { requestFields } from "./controller.js";
import { byId } from "./dom.js";
import { describeError, describeTaskError } from "./notices.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./controller.js").Controller} Controller @typedef {import("./state.js").Task} Task @typedef {import("./state.js").Field} Field */

/** Timeout of a long poll. The API responds when the task ends; shorter polls show its progress. */
const WAIT_S = 2;
const BACKOFF_MS = 1500;
const MAX_FAILURES = 5;
const STATUS_TEXTS = /** @type {Record<string, string>} */ ({
  PENDING: "Waiting for a worker",
  STARTED: "Running",
  SUCCESS: "Completed: its result is displayed",
  SUPERSEDED: "Completed: its result is not displayed, because the request has changed",
  FAILURE: "Failed",
  CANCELLED: "Cancelled",
});
const FINAL = new Set(["SUCCESS", "FAILURE", "CANCELLED"]);

/**
 * @param {Controller} controller
 * @param {boolean} hasTasks
 */
export function initTasks(controller, hasTasks) {
  byId("task-off").hidden = hasTasks;
  byId("task-on").hidden = !hasTasks;
  const start = /** @type {HTMLButtonElement} */ (byId("task-start"));
  const cancel = /** @type {HTMLButtonElement} */ (byId("task-cancel"));
  start.addEventListener("click", () => start.getAttribute("aria-disabled") === "true" || startTask(controller));
  cancel.addEventListener("click", () => cancelTask(controller));
  controller.store.subscribe((state, before) => {
    if (!hasChanged(state, before, "image", "result", "task", "isTaskRunning", "taskNote")) return;
    const { task, isTaskRunning } = state;
    // Not `disabled`, because a disabled button loses the focus.
    start.setAttribute("aria-disabled", String(!state.image || isTaskRunning));
    const hadFocus = document.activeElement === cancel;
    cancel.hidden = !isTaskRunning || !task;
    if (hadFocus && cancel.hidden) start.focus();
    byId("more").hidden = !state.image;
    byId("task").hidden = !task;
    if (task) renderTask(task, state);
  });
}

/**
 * @param {Task} task
 * @param {import("./state.js").State} state
 */
function renderTask(task, { result, taskNote, isTaskRunning }) {
  const progress = /** @type {HTMLProgressElement} */ (byId("task-progress"));
  progress.value = task.progress;
  progress.hidden = !isTaskRunning && task.status !== "SUCCESS"; // no bar for a task that will not complete
  const percent = task.status === "STARTED" ? `: ${Math.round(100 * task.progress)} %` : "";
  const status = task.status === "SUCCESS" && result?.taskId !== task.task_id ? "SUPERSEDED" : task.status;
  const text = taskNote || `${STATUS_TEXTS[status] || status}${percent}`;
  const line = byId("task-status");
  if (line.textContent !== text) line.textContent = text; // screen readers announce each assignment
  byId("task-id").textContent = task.task_id;
}

/** @param {Controller} controller */
function startTask(controller) {
  return submitTask(controller, requestFields(controller.store.state), api.createIdempotencyKey());
}

/**
 * Submit a task and poll it. If the response is lost, a retry with the same idempotency key returns the same task.
 * @param {Controller} controller
 * @param {Field[]} fields
 * @param {string} idempotencyKey
 */
async function submitTask(controller, fields, idempotencyKey) {
  const { store } = controller;
  const retry = () => submitTask(controller, fields, idempotencyKey);
  if (store.state.isTaskRunning || !controller.canSend(fields, retry)) return;
  store.set({ task: null, taskNote: "", isTaskRunning: true, errorNotice: null, isKeyRequested: false });
  try {
    store.set({ task: await api.submitTask(fields, idempotencyKey) });
  } catch (error) {
    controller.reportError(error, retry, { keepsResult: true });
    store.set({ isTaskRunning: false });
    return;
  }
  await pollTask(controller, fields);
}

/**
 * Poll the task until it ends. After an error, a retry polls the same task and does not submit another one.
 * @param {Controller} controller
 * @param {Field[]} fields
 */
async function pollTask(controller, fields) {
  const { store } = controller;
  let task = /** @type {Task} */ (store.state.task);
  try {
    while (!FINAL.has(task.status)) {
      task = await getTaskWithRetries(task.task_id);
      if (!FINAL.has(task.status)) store.set({ task, taskNote: "" });
    }
    finishTask(controller, task, fields);
  } catch (error) {
    const isUnknown = error instanceof api.ApiError && error.code === "task_unknown";
    const taskNote = isUnknown ? "Not found" : "Status unavailable: the task may still be running";
    store.set({ taskNote });
    controller.reportError(error, () => resumePolling(controller, fields), { keepsResult: true });
  } finally {
    store.set({ isTaskRunning: false });
  }
}

/**
 * @param {Controller} controller
 * @param {Field[]} fields
 */
function resumePolling(controller, fields) {
  controller.store.set({ taskNote: "", isTaskRunning: true, errorNotice: null, isKeyRequested: false });
  return pollTask(controller, fields);
}

/**
 * Get the status of a task; retry after network errors and server errors, which may be temporary.
 * @param {string} taskId
 */
async function getTaskWithRetries(taskId) {
  for (let failures = 1; ; failures += 1) {
    try {
      return await api.getTask(taskId, WAIT_S);
    } catch (error) {
      const isTemporary = error instanceof api.ApiError && (error.status === 0 || error.status >= 500);
      if (!isTemporary || failures === MAX_FAILURES) throw error;
      await new Promise((resolve) => setTimeout(resolve, BACKOFF_MS * failures));
    }
  }
}

/**
 * Show the outcome of a task. Its result is displayed only if the request has not changed since.
 * @param {Controller} controller
 * @param {Task} task
 * @param {Field[]} fields
 */
function finishTask(controller, task, fields) {
  const { store } = controller;
  const responses = task.result;
  if (task.status === "SUCCESS" && responses && areEqual(fields, requestFields(store.state))) {
    controller.current.abort();
    const text = JSON.stringify(responses);
    controller.showResult({ responses, text, fields, taskId: task.task_id });
  }
  const error = task.status === "FAILURE" && task.error ? { errorNotice: describeTaskError(task.error) } : {};
  store.set({ task, taskNote: "", ...error });
}

/**
 * @param {Field[]} first
 * @param {Field[]} second
 */
function areEqual(first, second) {
  return first.length === second.length && first.every(({ name, value }, index) => name === second[index].name && value === second[index].value);
}

/** @param {Controller} controller */
async function cancelTask({ store }) {
  const { task } = store.state;
  if (!task) return;
  const isCurrent = () => store.state.isTaskRunning && store.state.task?.task_id === task.task_id;
  try {
    const cancelled = await api.cancelTask(task.task_id);
    if (isCurrent()) store.set({ task: cancelled, taskNote: "" });
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    // If the task has ended or expired, polling reports it.
    const hasEnded = error.code === "task_ended" || error.code === "task_unknown";
    if (isCurrent() && !hasEnded) store.set({ taskNote: `Cancellation failed. ${describeError(error).heading}` });
  }
}
