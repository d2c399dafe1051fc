/** Client of the API. URLs are relative to the page. */

/** @typedef {import("./state.js").Field} Field @typedef {import("./state.js").CropResponse} CropResponse @typedef {import("./state.js").Task} Task */

const CROP_PATH = "api/v1/frontal/crop";
const KEY_NAME = "facial-service.key";
const RETRY_MS = 400;

/** An error response, or a failed request (`status` 0). */
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

/** The API key, in the session storage of the tab; never in a URL. */
export const apiKey = {
  get() {
    try {
      return sessionStorage.getItem(KEY_NAME) || "";
    } catch {
      return this.fallback;
    }
  },
  /** @param {string} value empty to delete the key */
  set(value) {
    this.fallback = value;
    try {
      if (value) sessionStorage.setItem(KEY_NAME, value);
      else sessionStorage.removeItem(KEY_NAME);
    } catch {
      // Storage is blocked: keep the key in memory.
    }
  },
  fallback: "",
};

/**
 * Return the absolute URL of an endpoint.
 * @param {string} [path] path after `/crop`
 */
export function cropUrl(path = "") {
  return new URL(CROP_PATH + path, document.baseURI).href;
}

/**
 * @param {Field[]} fields
 * @param {AbortSignal} signal
 * @returns {Promise<{responses: CropResponse[], text: string}>}
 */
export async function crop(fields, signal) {
  const response = await send(cropUrl(), { method: "POST", body: toForm(fields), signal });
  const text = await readText(response);
  return { responses: toList(parseJson(text, response)), text };
}

/**
 * Return the SVG overlay of a crop request.
 * @param {Field[]} fields
 * @param {AbortSignal} [signal]
 */
export async function cropSvg(fields, signal) {
  const headers = { Accept: "image/svg+xml" };
  return readText(await send(cropUrl(), { method: "POST", body: toForm(fields), headers, signal }));
}

/** Create an idempotency key, so that the page or a proxy can repeat a request without creating a second task. */
export function createIdempotencyKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {Field[]} fields
 * @param {string} idempotencyKey
 * @returns {Promise<Task>}
 */
export async function submitTask(fields, idempotencyKey) {
  const headers = { "Idempotency-Key": idempotencyKey };
  return readTask(await send(cropUrl("/submit"), { method: "POST", body: toForm(fields), headers }));
}

/**
 * Return the status of a task, when it has ended or after a timeout.
 * @param {string} taskId
 * @param {number} waitS
 */
export async function getTask(taskId, waitS) {
  return readTask(await send(cropUrl(`/status/${taskId}?wait=${waitS}`), {}));
}

/** @param {string} taskId */
export async function cancelTask(taskId) {
  return readTask(await send(cropUrl(`/status/${taskId}`), { method: "DELETE" }));
}

/**
 * Fetch an asset of the page.
 * @param {string} name
 */
export async function fetchAsset(name) {
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
  const value = apiKey.get();
  const headers = { Accept: "application/json", ...options.headers, ...(value ? { "X-API-Key": value } : {}) };
  const request = () => fetch(url, { ...options, headers, credentials: "same-origin", redirect: "error" });
  let response;
  try {
    response = await request().catch((error) => retryOnce(request, toError(error)));
  } catch (error) {
    throw toError(error);
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

/**
 * Repeat a request after a network error. A change of network aborts requests, and all requests of the page are
 * repeatable.
 * @param {() => Promise<Response>} request
 * @param {Error} error
 */
async function retryOnce(request, error) {
  if (!(error instanceof ApiError)) throw error;
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  return request();
}

/** @param {unknown} error */
function toError(error) {
  if (error instanceof ApiError) return error;
  if (error instanceof DOMException && error.name === "AbortError") return error;
  return new ApiError({ status: 0, code: "network" });
}

/** @param {Response} response */
async function readText(response) {
  try {
    return await response.text();
  } catch (error) {
    throw toError(error);
  }
}

/**
 * @param {Response} response
 * @returns {Promise<Task>}
 */
async function readTask(response) {
  const task = parseJson(await readText(response), response);
  // Without a status, the page would poll the task forever and without a pause.
  if (typeof task?.task_id !== "string" || typeof task.status !== "string") {
    throw new ApiError({ status: response.status, code: "unreadable" });
  }
  return { ...task, result: task.result ? toList(task.result) : null };
}

/**
 * Return the responses for all faces. Without `face=all`, the API returns the one of a single face.
 * @param {CropResponse | CropResponse[]} document
 */
function toList(document) {
  return Array.isArray(document) ? document : [document];
}

/**
 * @param {string} text
 * @param {Response} response
 */
function parseJson(text, response) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError({ status: response.status, code: "unreadable" });
  }
}

/**
 * Read a problem document. If a proxy sent the response, only the status is known.
 * @param {Response} response
 */
async function readProblem(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After") || "", 10);
  const problem = { status: response.status, code: `http_${response.status}`, retryAfter: seconds > 0 ? seconds : 0 };
  if (!(response.headers.get("Content-Type") || "").startsWith("application/problem+json")) return new ApiError(problem);
  try {
    const { code, title, detail, request_id: requestId } = await response.json();
    return new ApiError({ ...problem, code, title, detail, requestId });
  } catch {
    return new ApiError(problem);
  }
}
