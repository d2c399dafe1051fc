/** Where files come in: chosen, dropped or pasted. */

import { byId, formatBytes } from "./dom.js";
import { sortFiles } from "./files.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./work.js").Work} Work @typedef {import("./state.js").State} State */

/** @param {Work} work */
export function listenForFiles(work) {
  byId("choose").addEventListener("click", () => byId("photo-file").click());
  byId("sample").addEventListener("click", () => work.takeSample());
  for (const slot of ["photo", "landmarks", "map"]) {
    const input = /** @type {HTMLInputElement} */ (byId(`${slot}-file`));
    byId(`${slot}-choose`).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      const [file] = Array.from(input.files || []);
      input.value = ""; // so that the same file can be chosen again
      if (file) work.take({ [slot]: file }, "file");
    });
  }
  byId("landmarks-clear").addEventListener("click", () => leaveOut(work, "landmarks"));
  byId("map-clear").addEventListener("click", () => leaveOut(work, "map"));
  listenForDrops(work);
  document.addEventListener("paste", async (event) => {
    const files = Array.from(event.clipboardData?.files || []);
    if (!files.length) return; // text goes where it always goes
    event.preventDefault();
    const { files: sorted, leftOut } = await sortFiles(files);
    work.take(sorted, "pasted", leftOut);
  });
  work.store.show((state, before) => hasChanged(state, before, "photo", "landmarks", "map", "options") && showNames(state));
}

/**
 * @param {Work} work
 * @param {"landmarks" | "map"} name
 */
function leaveOut(work, name) {
  work.leaveOut(name);
  byId(`${name}-choose`).focus(); // the button that had the focus is gone
}

/** @param {Work} work */
function listenForDrops(work) {
  let depth = 0; // elements within the page that the files are over
  const hasFiles = (/** @type {DragEvent} */ event) => Boolean(event.dataTransfer?.types.includes("Files"));
  const show = () => document.body.classList.toggle("dragging", depth > 0);
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    show();
  });
  document.addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    depth = Math.max(depth - 1, 0);
    show();
  });
  document.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    show();
    const target = event.target instanceof Element ? event.target.closest("[data-slot]") : null;
    const slot = target instanceof HTMLElement ? target.dataset.slot : "";
    const { files, leftOut } = await sortFiles(Array.from(event.dataTransfer?.files || []), slot);
    work.take(files, "file", leftOut);
  });
}

/** @param {State} state */
function showNames({ photo, landmarks, map, options }) {
  byId("photo-name").textContent = photo ? describe(photo.file) : "none yet";
  byId("photo-choose").textContent = photo ? "Change" : "Choose";
  byId("landmarks-name").textContent = landmarks ? describe(landmarks.file) : "found in the photo";
  byId("landmarks-choose").hidden = Boolean(landmarks);
  byId("landmarks-clear").hidden = !landmarks;
  byId("map-name").textContent = map ? describe(map.file) : "none";
  byId("map-choose").hidden = Boolean(map);
  byId("map-clear").hidden = !map;
  byId("units-row").hidden = !landmarks;
  /** @type {HTMLSelectElement} */ (byId("units")).value = options.units;
}

/** @param {File} file */
function describe(file) {
  return `${file.name}, ${formatBytes(file.size)}`;
}
