/** The request of the displayed result, as a curl command. */

import { cropUrl } from "./api.js";
import { overlayFields } from "./controller.js";
import { byId } from "./dom.js";
import { displayedFields } from "./faces.js";
import { areAllLabelled, hasChanged } from "./state.js";

/** @typedef {import("./state.js").State} State @typedef {import("./state.js").Field} Field */

/** Text that a shell reads as one word. */
const PLAIN = /^[A-Za-z0-9_@%+=:,./-]+$/;
const KEY_HEADER = '-H "X-API-Key: $API_KEY"';
const COPIED_MS = 2500;

/**
 * @param {import("./state.js").Store} store
 * @param {boolean} isKeyNeeded
 */
export function initCurl(store, isKeyNeeded) {
  const format = /** @type {HTMLSelectElement} */ (byId("curl-format"));
  const render = (/** @type {State} */ state) => {
    byId("curl-card").hidden = !state.result;
    if (!state.result) return;
    byId("curl").textContent = formatCommand(state, format.value === "svg", isKeyNeeded);
    byId("curl-note").textContent = formatNote(state, isKeyNeeded);
  };
  format.addEventListener("change", () => render(store.state));
  byId("curl-copy").addEventListener("click", () => copyCommand(byId("curl")));
  store.subscribe((state, before) => {
    if (hasChanged(state, before, "result", "face", "view", "labelled")) render(state);
  });
}

/**
 * Return the command. It works without changes in a directory with the files.
 * @param {State} state
 * @param {boolean} isSvg
 * @param {boolean} isKeyNeeded
 */
function formatCommand(state, isSvg, isKeyNeeded) {
  const { result, view } = state;
  if (!result) return "";
  const start = ["curl -fsS", ...(isKeyNeeded ? [KEY_HEADER] : [])];
  const svgFields = [
    ...overlayFields(view, areAllLabelled(state)),
    ...(view.image ? [{ name: "background", value: "image" }] : []),
  ];
  const fields = [...displayedFields(state), ...(isSvg ? svgFields : [])].map(formatField);
  const output = isSvg ? ["-H 'Accept: image/svg+xml' -o face.svg"] : ["-o face.json"];
  const samples = result.fields.filter(({ origin }) => origin === "sample").map(({ value }) => sampleUrl(/** @type {File} */ (value).name));
  const download = samples.length ? `curl -fsS ${samples.map((url) => `-O ${quote(url)}`).join(" \\\n  ")}\n\n` : "";
  if (!result.taskId) return download + joinLines(...start, ...fields, ...output, quote(cropUrl()));
  const submit = joinLines(...start, ...fields, quote(cropUrl("/submit")));
  const status = joinLines(...start, ...output, `"${cropUrl("/status/")}$task?wait=60"`);
  return `${download}task=$(${submit} \\\n  | sed 's/.*"task_id":"\\([0-9a-f]*\\)".*/\\1/')\n\n${status}`;
}

/** @param {...string} parts */
function joinLines(...parts) {
  return parts.join(" \\\n  ");
}

/** @param {Field} field */
function formatField({ name, value }) {
  if (typeof value === "string") return `-F ${quote(`${name}=${value}`)}`;
  // In a file name, curl interprets commas and semicolons unless the name is quoted, removes spaces at the ends, and
  // reads standard input for a dash.
  const needsQuotes = /[",;\\]|^\s|\s$/.test(value.name);
  const file = needsQuotes ? `"${value.name.replace(/["\\]/g, "\\$&")}"` : value.name.replace(/^-$/, "./-");
  return `-F ${quote(`${name}=@${file}`)}`;
}

/**
 * Return the URL of a sample file, independent of the version of the page.
 * @param {string} name
 */
function sampleUrl(name) {
  return new URL(`page/sample/${name}`, document.baseURI).href;
}

/**
 * Quote text for a shell.
 * @param {string} text
 */
function quote(text) {
  return PLAIN.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * @param {State} state
 * @param {boolean} isKeyNeeded
 */
function formatNote({ result }, isKeyNeeded) {
  const files = result?.fields.filter(({ value, origin }) => value instanceof File && origin !== "sample") || [];
  const names = files.map(({ value }) => /** @type {File} */ (value).name).join(", ");
  const isPasted = files.some(({ origin }) => origin === "pasted");
  return [
    isKeyNeeded ? "Set API_KEY to your API key." : "",
    isPasted ? `Save the pasted files as ${names}, and run the command in their directory.` : "",
    names && !isPasted ? `Run the command in the directory of ${names}.` : "",
  ].filter(Boolean).join(" ");
}

/** @param {HTMLElement} source */
async function copyCommand(source) {
  const button = byId("curl-copy");
  const label = /** @type {ChildNode} */ (button.lastChild);
  label.textContent = (await writeClipboard(source)) ? " Copied" : " Selected: press Ctrl+C";
  setTimeout(() => (label.textContent = " Copy"), COPIED_MS);
}

/** @param {HTMLElement} source */
async function writeClipboard(source) {
  try {
    await navigator.clipboard.writeText(source.textContent || ""); // only available with HTTPS or on localhost
    return true;
  } catch {
    getSelection()?.selectAllChildren(source);
    return document.execCommand("copy");
  }
}
