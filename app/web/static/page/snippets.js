/** The request of the displayed result as code: a curl command, and programs in Python and JavaScript. */

import { cropUrl } from "./api.js";
import { overlayFields } from "./controller.js";
import { byId } from "./dom.js";
import { displayedFields } from "./faces.js";
import { areAllLabelled, hasChanged } from "./state.js";

/** @typedef {import("./state.js").State} State @typedef {import("./state.js").Field} Field */
/** @typedef {{fields: Field[], isSvg: boolean, isKeyNeeded: boolean, isTask: boolean}} Call */

/** Text that a shell reads as one word. */
const PLAIN = /^[A-Za-z0-9_@%+=:,./-]+$/;
const SVG_TYPE = "image/svg+xml";
const COPIED_MS = 2500;
/** Steps between tabs by key. */
const STEPS = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity });

const FORMATTERS = /** @type {Record<string, (call: Call) => string>} */ ({
  "tab-curl": formatCurl,
  "tab-python": formatPython,
  "tab-javascript": formatJavaScript,
});
const REQUIREMENTS = /** @type {Record<string, string>} */ ({
  "tab-python": "Needs the package httpx.",
  "tab-javascript": "Needs Node.js 18 or later. Save it as a file that ends with .mjs.",
});

/**
 * @param {import("./state.js").Store} store
 * @param {boolean} isKeyNeeded
 */
export function initSnippets(store, isKeyNeeded) {
  const format = /** @type {HTMLSelectElement} */ (byId("snippet-format"));
  const tabs = /** @type {HTMLElement[]} */ (Array.from(byId("snippet-tabs").children));
  const render = (/** @type {State} */ state) => {
    byId("snippet-card").hidden = !state.result;
    if (!state.result) return;
    const { id } = tabs.find((tab) => tab.getAttribute("aria-selected") === "true") || tabs[0];
    byId("snippet").textContent = FORMATTERS[id](toCall(state, format.value === "svg", isKeyNeeded));
    byId("snippet-note").textContent = formatNote(state, isKeyNeeded, id);
  };
  const select = (/** @type {HTMLElement} */ selected) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === selected));
      tab.tabIndex = tab === selected ? 0 : -1;
    }
    byId("snippet-panel").setAttribute("aria-labelledby", selected.id);
    render(store.state);
  };
  for (const tab of tabs) tab.addEventListener("click", () => select(tab));
  byId("snippet-tabs").addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const at = tabs.indexOf(/** @type {HTMLElement} */ (event.target));
    const next = tabs[Math.min(Math.max(at + step, 0), tabs.length - 1)];
    select(next);
    next.focus();
  });
  format.addEventListener("change", () => render(store.state));
  byId("snippet-copy").addEventListener("click", () => copyCode(byId("snippet")));
  store.subscribe((state, before) => {
    if (hasChanged(state, before, "result", "face", "view", "labelled")) render(state);
  });
}

/**
 * @param {State} state with a result
 * @param {boolean} isSvg
 * @param {boolean} isKeyNeeded
 * @returns {Call}
 */
function toCall(state, isSvg, isKeyNeeded) {
  const { result, view } = state;
  const background = view.image ? [{ name: "background", value: "image" }] : [];
  const style = isSvg ? [...overlayFields(view, areAllLabelled(state)), ...background] : [];
  return { fields: [...displayedFields(state), ...style], isSvg, isKeyNeeded, isTask: Boolean(result?.taskId) };
}

/**
 * Return a command. It works without changes in a directory with the files, as do the programs.
 * @param {Call} call
 */
function formatCurl({ fields, isSvg, isKeyNeeded, isTask }) {
  const start = ["curl -fsS", ...(isKeyNeeded ? ['-H "X-API-Key: $API_KEY"'] : [])];
  const parts = fields.map(formatCurlField);
  const output = isSvg ? [`-H 'Accept: ${SVG_TYPE}'`, "-o face.svg"] : ["-o face.json"];
  const samples = fields.filter(({ origin }) => origin === "sample").map(({ value }) => sampleUrl(/** @type {File} */ (value).name));
  const download = samples.map((url) => `curl -fsS -O ${quote(url)}\n`).join("");
  if (!isTask) return download + joinLines(...start, ...parts, ...output, quote(cropUrl()));
  const submit = joinLines(...start, ...parts, quote(cropUrl("/submit")));
  const status = joinLines(...start, ...output, `"${cropUrl("/status/")}$task?wait=60"`);
  return `${download}task=$(${submit} \\\n  | sed 's/.*"task_id":"\\([0-9a-f]*\\)".*/\\1/')\n${status}`;
}

/** @param {...string} parts */
function joinLines(...parts) {
  return parts.join(" \\\n  ");
}

/** @param {Field} field */
function formatCurlField({ name, value }) {
  if (typeof value === "string") return `-F ${quote(`${name}=${value}`)}`;
  // In a file name, curl interprets commas and semicolons unless the name is quoted, removes spaces at the ends, and
  // reads standard input for a dash.
  const needsQuotes = /[",;\\]|^\s|\s$/.test(value.name);
  const file = needsQuotes ? `"${value.name.replace(/["\\]/g, "\\$&")}"` : value.name.replace(/^-$/, "./-");
  return `-F ${quote(`${name}=@${file}`)}`;
}

/**
 * Quote text for a shell.
 * @param {string} text
 */
function quote(text) {
  return PLAIN.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * Return a program in Python. JSON strings are Python strings, too.
 * @param {Call} call
 */
function formatPython({ fields, isSvg, isKeyNeeded, isTask }) {
  const files = [];
  const data = [];
  for (const { name, value, origin } of fields) {
    if (typeof value === "string") data.push(`    ${literal(name)}: ${literal(value)},`);
    else if (origin !== "sample") files.push(`    ${literal(name)}: open(${literal(value.name)}, "rb"),`);
    else files.push(`    ${literal(name)}: httpx.get(${literal(sampleUrl(value.name))}).raise_for_status().content,`);
  }
  const headers = isKeyNeeded ? ['"X-API-Key": os.environ["API_KEY"]'] : [];
  const accept = isSvg ? [`"Accept": "${SVG_TYPE}"`] : [];
  const all = (/** @type {string[]} */ list) => (list.length ? `headers={${list.join(", ")}}, ` : "");
  const send = isTask
    ? [
        `task = httpx.post(f"{url}/submit", files=files, data=data, ${all(headers)}timeout=60).raise_for_status().json()`,
        'status_url = f"{url}/status/{task[\'task_id\']}"',
        'while task["status"] in ("PENDING", "STARTED"):',
        `    task = httpx.get(status_url, params={"wait": 20}, ${all(headers)}timeout=60).raise_for_status().json()`,
        `response = httpx.get(status_url, ${all([...headers, ...accept])}timeout=60).raise_for_status()`,
      ]
    : [`response = httpx.post(url, files=files, data=data, ${all([...headers, ...accept])}timeout=60).raise_for_status()`];
  return [
    ...(isKeyNeeded ? ["import os", ""] : []),
    "import httpx",
    "",
    `url = ${literal(cropUrl())}`,
    "files = {",
    ...files,
    "}",
    "data = {",
    ...data,
    "}",
    ...send,
    `with open("${isSvg ? "face.svg" : "face.json"}", "wb") as file:`,
    "    file.write(response.content)",
  ].join("\n");
}

/**
 * Return a program in JavaScript, for Node.js.
 * @param {Call} call
 */
function formatJavaScript({ fields, isSvg, isKeyNeeded, isTask }) {
  const form = fields.map(({ name, value, origin }) => {
    if (typeof value === "string") return `form.set(${literal(name)}, ${literal(value)});`;
    const file = literal(value.name);
    const blob = origin === "sample" ? `await (await send(${literal(sampleUrl(value.name))})).blob()` : `new Blob([await readFile(${file})])`;
    return `form.set(${literal(name)}, ${blob}, ${file});`;
  });
  const readsFiles = fields.some(({ value, origin }) => value instanceof File && origin !== "sample");
  const key = isKeyNeeded ? ['"X-API-Key": process.env.API_KEY'] : [];
  const accept = isSvg ? [`Accept: "${SVG_TYPE}"`] : [];
  const headers = (/** @type {string[]} */ list) => (list.length ? [`headers: { ${list.join(", ")} }`] : []);
  const options = (/** @type {string[]} */ ...list) => (list.length ? `, { ${list.join(", ")} }` : "");
  const send = isTask
    ? [
        `let task = await (await send(\`\${url}/submit\`${options('method: "POST"', ...headers(key), "body: form")})).json();`,
        "const statusUrl = `${url}/status/${task.task_id}`;",
        'while (["PENDING", "STARTED"].includes(task.status)) {',
        `  task = await (await send(\`\${statusUrl}?wait=20\`${options(...headers(key))})).json();`,
        "}",
        `const response = await send(statusUrl${options(...headers([...key, ...accept]))});`,
      ]
    : [`const response = await send(url${options('method: "POST"', ...headers([...key, ...accept]), "body: form")});`];
  return [
    `import { ${readsFiles ? "readFile, " : ""}writeFile } from "node:fs/promises";`,
    "",
    "async function send(url, options) {",
    "  const response = await fetch(url, options);",
    "  if (!response.ok) throw new Error(await response.text());",
    "  return response;",
    "}",
    "",
    `const url = ${literal(cropUrl())};`,
    "const form = new FormData();",
    ...form,
    ...send,
    `await writeFile("${isSvg ? "face.svg" : "face.json"}", Buffer.from(await response.arrayBuffer()));`,
  ].join("\n");
}

/** @param {string} text */
function literal(text) {
  return JSON.stringify(text);
}

/**
 * Return the URL of a sample file, independent of the version of the page.
 * @param {string} name
 */
function sampleUrl(name) {
  return new URL(`page/sample/${name}`, document.baseURI).href;
}

/**
 * @param {State} state
 * @param {boolean} isKeyNeeded
 * @param {string} tab id of the selected tab
 */
function formatNote({ result }, isKeyNeeded, tab) {
  const files = result?.fields.filter(({ value, origin }) => value instanceof File && origin !== "sample") || [];
  const names = files.map(({ value }) => /** @type {File} */ (value).name).join(", ");
  const isPasted = files.some(({ origin }) => origin === "pasted");
  return [
    REQUIREMENTS[tab] || "",
    isKeyNeeded ? "Set API_KEY to your API key." : "",
    isPasted ? `Save the pasted files as ${names}, and run it in their directory.` : "",
    names && !isPasted ? `Run it in the directory of ${names}.` : "",
  ].filter(Boolean).join(" ");
}

/** @param {HTMLElement} source */
async function copyCode(source) {
  const button = byId("snippet-copy");
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
