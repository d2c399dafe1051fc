// Copy the icons and fonts that Grafana's components load at run time to the paths that they use.
import { cpSync } from "node:fs";

const FONT = "node_modules/@fontsource/inter/files/inter-latin";
cpSync("page.html", "built/index.html");
cpSync("node_modules/@grafana/ui/dist/public/img", "built/public/build/img", { recursive: true });
cpSync(`${FONT}-400-normal.woff2`, "built/public/fonts/inter/Inter-Regular.woff2");
cpSync(`${FONT}-500-normal.woff2`, "built/public/fonts/inter/Inter-Medium.woff2");
