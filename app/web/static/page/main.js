/** Puts the parts of the page together. */

import { key } from "./api.js";
import { showCurl } from "./curl.js";
import { byId, formatBytes } from "./dom.js";
import { watchFocus } from "./focus.js";
import { listenForFiles } from "./inputs.js";
import { showMessages } from "./messages.js";
import { showOptions } from "./options.js";
import { showRegions } from "./regions.js";
import { listenForSaving } from "./saving.js";
import { showStage } from "./stage.js";
import { Store, initialState } from "./state.js";
import { showTasks } from "./task.js";
import { Work } from "./work.js";

const { hasTasks, isKeyNeeded, maxBodyBytes } = document.documentElement.dataset;
const config = { isKeyNeeded: isKeyNeeded === "true", maxBodyBytes: Number(maxBodyBytes) };
const store = new Store(initialState(Boolean(key.get())));
const work = new Work(store, config);

byId("limit").textContent = formatBytes(config.maxBodyBytes);
const catchFocus = watchFocus(store);
showStage(store, (face) => work.setOptions({ face }));
showRegions(store);
showOptions(work);
showTasks(work, hasTasks === "true");
showCurl(store, config.isKeyNeeded);
showMessages(work);
listenForFiles(work);
listenForSaving(store);
store.show(catchFocus);
for (const id of ["choose", "sample", "photo-choose", "landmarks-choose", "map-choose"]) {
  /** @type {HTMLButtonElement} */ (byId(id)).disabled = false;
}
byId("stalled").hidden = true;
document.documentElement.dataset.ready = "true";
