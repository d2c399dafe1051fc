/** The service's API, by addresses relative to the page. */

/** @typedef {import("./state.js").Field} Field @typedef {import("./state.js").Answer} Answer @typedef {import("./state.js").Task} Task */

const CROP = "api/v1/frontal/crop";
const KEY_NAME = "facial-service.key";
const RETRY_MS = 400;

/** An answer that is no success, or none at all (`status` 0). */
export class ApiError extends Error {
  /** @param {{status: number, code: string, title?: string, detail?: string, requestId?: string, retryAfter?: number}} problem */
  constructor(problem) {
    super(problem.detail || problem.title || problem.code);
    this.status = problem.status;
    this.code = problem.code;
    this.title = problem.title || "";
    this.detail = problem.detail || "";
    this.requestId = problem.requestId || "";
    this.retryAfter = problem.retryAfter || 0;
  }
}

/** The API key: in this tab's session storage, where there is one, and never in an address. */
export const key = {
  get() {
    try {
      return sessionStorage.getItem(KEY_NAME) || "";
    } catch {
      return this.fallback;
    }
  },
  /** @param {string} value empty forgets it */
  set(value) {
    this.fallback = value;
    try {
      if (value) sessionStorage.setItem(KEY_NAME, value);
      else sessionStorage.removeItem(KEY_NAME);
    } catch {
      // Storage is blocked: it is kept in memory.
    }
  },
  fallback: "",
};

/**
 * The address of a path of the API, in full.
 * @param {string} [rest] after `/crop`
 */
export function cropUrl(rest = "") {
  return new URL(CROP + rest, document.baseURI).href;
}

/**
 * @param {Field[]} fields
 * @param {AbortSignal} signal
 * @returns {Promise<{answer: Answer, text: string}>}
 */
export async function crop(fields, signal) {
  const response = await send(cropUrl(), { method: "POST", body: toForm(fields), signal });
  const text = await readText(response);
  return { answer: parse(text, response), text };
}

/** Make a key under which a task that is sent again, from here or by a proxy, is still one task. */
export function makeIdempotencyKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {Field[]} fields
 * @param {string} idempotencyKey
 * @returns {Promise<Task>}
 */
export async function submit(fields, idempotencyKey) {
  const headers = { "Idempotency-Key": idempotencyKey };
  return readTask(await send(cropUrl("/submit"), { method: "POST", body: toForm(fields), headers }));
}

/**
 * Ask after a task; answered when it has ended or the time is over.
 * @param {string} taskId
 * @param {number} waitS
 */
export async function status(taskId, waitS) {
  return readTask(await send(cropUrl(`/status/${taskId}?wait=${waitS}`), {}));
}

/** @param {string} taskId */
export async function cancel(taskId) {
  return readTask(await send(cropUrl(`/status/${taskId}`), { method: "DELETE" }));
}

/**
 * Fetch a file of the page's own.
 * @param {string} name
 */
export async function asset(name) {
  const url = new URL(`${document.documentElement.dataset.assets}/${name}`, document.baseURI).href;
  const response = await send(url, {});
  return new File([await response.blob()], name, { type: response.headers.get("Content-Type") || "" });
}

/** @param {Field[]} fields */
function toForm(fields) {
  const form = new FormData();
  for (const { name, value } of fields) {
    if (value instanceof File) form.append(name, value, value.name);
    else form.append(name, value);
  }
  return form;
}

/**
 * @param {string} url
 * @param {RequestInit} options
 */
async function send(url, options) {
  const given = key.get();
  const headers = { Accept: "application/json", ...options.headers, ...(given ? { "X-API-Key": given } : {}) };
  const request = () => fetch(url, { ...options, headers, credentials: "same-origin", redirect: "error" });
  let response;
  try {
    response = await request().catch((error) => onceMore(request, asFailure(error)));
  } catch (error) {
    throw asFailure(error);
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

/**
 * Ask again after a moment where the connection broke: a network that changes takes requests with it, and no request
 * of this page does harm when it comes twice.
 * @param {() => Promise<Response>} request
 * @param {Error} failure
 */
async function onceMore(request, failure) {
  if (!(failure instanceof ApiError)) throw failure;
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  return request();
}

/** @param {unknown} error */
function asFailure(error) {
  if (error instanceof ApiError) return error;
  if (error instanceof DOMException && error.name === "AbortError") return error;
  return new ApiError({ status: 0, code: "network" });
}

/** @param {Response} response */
async function readText(response) {
  try {
    return await response.text();
  } catch (error) {
    throw asFailure(error);
  }
}

/**
 * @param {Response} response
 * @returns {Promise<Task>}
 */
async function readTask(response) {
  const task = parse(await readText(response), response);
  // Asked after, what has no status would be asked after without a pause, for ever.
  if (typeof task?.task_id !== "string" || typeof task.status !== "string") {
    throw new ApiError({ status: response.status, code: "unreadable" });
  }
  return task;
}

/**
 * @param {string} text
 * @param {Response} response
 */
function parse(text, response) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError({ status: response.status, code: "unreadable" });
  }
}

/**
 * Read a problem document. A proxy in front may answer in its own way: then there is only the status.
 * @param {Response} response
 */
async function readProblem(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After") || "", 10);
  const found = { status: response.status, code: `http_${response.status}`, retryAfter: seconds > 0 ? seconds : 0 };
  if (!(response.headers.get("Content-Type") || "").startsWith("application/problem+json")) return new ApiError(found);
  try {
    const { code, title, detail, request_id: requestId } = await response.json();
    return new ApiError({ ...found, code, title, detail, requestId });
  } catch {
    return new ApiError(found);
  }
}
