// A dashboard drawn by Grafana's own components from its JSON and from results of Prometheus.
//
// `draw({dashboard, from, to, results, annotations, expanded})` draws one, and `inspect()` describes what was drawn.
// Panels use the components of @grafana/ui; its release has none for heatmaps, so that one is drawn with uPlot here.
import "uplot/dist/uPlot.min.css";

import {
  FieldType,
  LoadingState,
  applyFieldOverrides,
  createDataFrame,
  createTheme,
  dateTime,
  fieldMatchers,
  formattedValueToString,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  getValueFormat,
  FieldConfigOptionsRegistry,
  standardTransformers,
  ThemeContext,
} from "@grafana/data";
import {
  BigValue,
  GlobalStyles,
  Icon,
  PanelChrome,
  PanelContextProvider,
  TimeSeries,
  UPlotChart,
  UPlotConfigBuilder,
  VizRepeater,
} from "@grafana/ui";
import { TableNG } from "@grafana/ui/unstable";
import { interpolateOranges } from "d3-scale-chromatic";
import { createRoot } from "react-dom/client";
import { of, Subscription } from "rxjs";

const COLUMNS = 24;
const CELL_HEIGHT = 30;
const GAP = 8;
const MARGIN = 16;
const FRAMES = 1200; // to wait for at most
const theme = createTheme({ colors: { mode: "dark" } });
const replaceVariables = (text) => text;

// Properties of fields that panels and overrides set, as Grafana's panel plugins declare them.
const PROPERTIES = ["unit", "min", "max", "decimals", "displayName", "noValue", "thresholds", "mappings", "color", "links"];
const CUSTOM = {
  drawStyle: "line",
  lineInterpolation: "linear",
  lineWidth: 1,
  lineStyle: { fill: "solid" },
  fillOpacity: 0,
  gradientMode: "none",
  showPoints: "auto",
  pointSize: 5,
  spanNulls: false,
  stacking: { mode: "none", group: "A" },
  axisPlacement: "auto",
  axisSoftMin: undefined,
  axisGridShow: undefined,
  scaleDistribution: { type: "linear" },
  thresholdsStyle: { mode: "off" },
  hideFrom: { legend: false, tooltip: false, viz: false },
  align: "auto",
  axisSoftMax: undefined,
  filterable: undefined,
  width: undefined,
  cellOptions: { type: "auto" },
};
const registry = new FieldConfigOptionsRegistry(() => [
  ...PROPERTIES.map((path) => property(path, path, false)),
  ...Object.keys(CUSTOM).map((path) => property(`custom.${path}`, path, true)),
]);

function property(id, path, isCustom) {
  return { id, path, isCustom, name: id, process: (value) => value, shouldApply: () => true, editor: () => null };
}

function labelText(format, metric) {
  return format ? format.replace(/{{\s*(\w+)\s*}}/g, (_, label) => metric[label] ?? "") : JSON.stringify(metric);
}

// The data frames of a panel: one for each series, as Grafana's data source returns them.
function toFrames(panel, results) {
  const frames = panel.targets.flatMap((target) =>
    (results[target.refId] ?? []).map((series) => toFrame(target, series)),
  );
  return panel.type === "table" ? [toTable(frames)] : frames;
}

function toFrame(target, { metric, values }) {
  const name = labelText(target.legendFormat, metric);
  return createDataFrame({
    refId: target.refId,
    name,
    meta: { type: "timeseries-multi" },
    fields: [
      { name: "Time", type: FieldType.time, values: values.map(([time]) => time * 1000), config: {} },
      {
        name: "Value",
        type: FieldType.number,
        labels: metric,
        values: values.map(([, value]) => toNumber(value)),
        config: { displayNameFromDS: name },
      },
    ],
  });
}

function toNumber(text) {
  const value = Number(text.replace("Inf", "Infinity"));
  return Number.isFinite(value) ? value : null;
}

function toTable(frames) {
  const labels = [...new Set(frames.flatMap((frame) => Object.keys(frame.fields[1].labels)))];
  return createDataFrame({
    refId: "A",
    fields: [
      { name: "Time", type: FieldType.time, values: frames.map((frame) => frame.fields[0].values[0]), config: {} },
      ...labels.map((label) => ({
        name: label,
        type: FieldType.string,
        values: frames.map((frame) => frame.fields[1].labels[label] ?? ""),
        config: {},
      })),
      { name: "Value", type: FieldType.number, values: frames.map((frame) => frame.fields[1].values[0]), config: {} },
    ],
  });
}

function transform(panel, frames) {
  let found = frames;
  for (const { id, options } of panel.transformations ?? []) {
    const transformer = Object.values(standardTransformers).find((each) => each.id === id);
    const context = { interpolate: replaceVariables };
    of(found).pipe(transformer.operator({ ...transformer.defaultOptions, ...options }, context)).subscribe((next) => {
      found = next;
    });
  }
  return found;
}

// Add a null wherever Prometheus has no value, so that a line has a gap as in Grafana.
function showGaps(frames, step) {
  const starts = new Set(frames.flatMap((frame) => frame.fields[0].values));
  const times = [...starts].sort((a, b) => a - b);
  const all = times.flatMap((time, at) => (at && time - times[at - 1] > 1.5 * step ? [times[at - 1] + step, time] : [time]));
  return frames.map((frame) => {
    const values = new Map(frame.fields[0].values.map((time, at) => [time, frame.fields[1].values[at]]));
    const [first, last] = [frame.fields[0].values[0], frame.fields[0].values.at(-1)];
    const own = all.filter((time) => time >= first && time <= last);
    const [time, value] = frame.fields;
    return {
      ...frame,
      length: own.length,
      fields: [{ ...time, values: own }, { ...value, values: own.map((each) => values.get(each) ?? null) }],
    };
  });
}

function override(panel, frames) {
  const defaults = { ...panel.fieldConfig.defaults, custom: { ...CUSTOM, ...panel.fieldConfig.defaults.custom } };
  const steps = defaults.thresholds?.steps.map((step) => ({ ...step, value: step.value ?? -Infinity }));
  const overrides = panel.fieldConfig.overrides.map((rule) => ({
    ...rule,
    properties: rule.properties.map((each) =>
      each.id === "thresholds"
        ? { ...each, value: { ...each.value, steps: each.value.steps.map((step) => ({ ...step, value: step.value ?? -Infinity })) } }
        : each,
    ),
  }));
  return applyFieldOverrides({
    data: frames,
    fieldConfig: { defaults: steps ? { ...defaults, thresholds: { ...defaults.thresholds, steps } } : defaults, overrides },
    fieldConfigRegistry: registry,
    replaceVariables,
    theme,
    timeZone: "utc",
  });
}

function Stat({ panel, frames, width, height }) {
  const { options, fieldConfig } = panel;
  const getValues = () =>
    getFieldDisplayValues({
      fieldConfig,
      reduceOptions: options.reduceOptions,
      replaceVariables,
      theme,
      data: frames,
      sparkline: options.graphMode !== "none",
      timeZone: "utc",
    });
  return (
    <VizRepeater
      getValues={getValues}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      source={frames}
      width={width}
      height={height}
      itemSpacing={3}
      renderCounter={1}
      autoGrid={true}
      orientation={options.orientation}
      renderValue={({ value, width, height, alignmentFactors, count }) => (
        <BigValue
          value={value.display}
          count={count}
          sparkline={value.sparkline}
          colorMode={options.colorMode}
          graphMode={options.graphMode}
          justifyMode={options.justifyMode}
          textMode={options.textMode}
          wideLayout={options.wideLayout}
          alignmentFactors={alignmentFactors}
          theme={theme}
          width={width}
          height={height}
        />
      )}
    />
  );
}

function Graph({ panel, frames, width, height, range, annotations }) {
  return (
    <TimeSeries
      frames={frames}
      structureRev={1}
      timeRange={range}
      timeZone="utc"
      width={width}
      height={height}
      legend={panel.options.legend}
      options={panel.options}
    >
      {(config) => markAnnotations(config, annotations)}
    </TimeSeries>
  );
}

function markAnnotations(config, annotations) {
  config.addHook("draw", (plot) => {
    const { ctx } = plot;
    ctx.save();
    ctx.setLineDash([5, 5]);
    ctx.lineWidth = devicePixelRatio;
    for (const { time, color } of annotations) {
      const x = Math.round(plot.valToPos(time, "x", true));
      ctx.strokeStyle = ctx.fillStyle = theme.visualization.getColorByName(color);
      ctx.beginPath();
      ctx.moveTo(x, plot.bbox.top);
      ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  });
  return null;
}

// Turn cumulative buckets into cells: the upper bounds in ascending order, and the count of each cell by time.
function toCells(frames) {
  const bound = (frame) => Number(frame.fields[1].labels.le.replace("Inf", "Infinity"));
  const sorted = [...frames].sort((a, b) => bound(a) - bound(b));
  const times = [...new Set(sorted.flatMap((frame) => frame.fields[0].values))].sort((a, b) => a - b);
  const counts = sorted.map((frame) => new Map(frame.fields[0].values.map((time, at) => [time, frame.fields[1].values[at]])));
  const cells = counts.map((own, row) =>
    times.map((time) => Math.max(0, (own.get(time) ?? 0) - (row ? (counts[row - 1].get(time) ?? 0) : 0))),
  );
  return { bounds: sorted.map(bound), times, cells };
}

function Heatmap({ panel, frames, width, height, range }) {
  const { bounds, times, cells } = toCells(frames);
  const { color, yAxis, cellGap, filterValues } = panel.options;
  const most = Math.max(...cells.flat());
  const format = getValueFormat(yAxis.unit);
  const nameBound = (at) =>
    bounds[at] === Infinity ? "+Inf" : formattedValueToString(format(bounds[at], yAxis.decimals ?? undefined));
  const config = new UPlotConfigBuilder("utc");
  config.addScale({
    scaleKey: "x",
    isTime: true,
    orientation: 0,
    direction: 1,
    range: () => [range.from.valueOf(), range.to.valueOf()],
  });
  config.addScale({ scaleKey: "y", isTime: false, orientation: 1, direction: 1, range: () => [0, bounds.length] });
  config.addAxis({ scaleKey: "x", isTime: true, placement: "bottom", theme, timeZone: "utc", grid: { show: false } });
  // Label as many bounds as fit, each at the upper edge of its row.
  const every = Math.ceil((bounds.length * 18) / (height - 40));
  config.addAxis({
    scaleKey: "y",
    placement: "left",
    theme,
    grid: { show: false },
    splits: () => bounds.map((_, at) => at + 1).filter((at) => (bounds.length - at) % every === 0),
    values: (_, splits) => splits.map((at) => nameBound(at - 1)),
  });
  config.addSeries({
    scaleKey: "y",
    pathBuilder: () => null,
    pointsBuilder: () => null,
    theme,
    show: true,
    lineColor: "transparent",
  });
  const width_ms = Math.min(...times.slice(1).map((time, at) => time - times[at]));
  config.addHook("draw", (plot) => {
    const { ctx } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(plot.bbox.left, plot.bbox.top, plot.bbox.width, plot.bbox.height);
    ctx.clip();
    for (const [row, counts] of cells.entries()) {
      for (const [at, count] of counts.entries()) {
        if (count > (filterValues?.le ?? 0)) {
          const share = Math.pow(count / most, color.exponent);
          const step = Math.round(share * (color.steps - 1)) / (color.steps - 1);
          ctx.fillStyle = interpolateOranges(color.reverse ? step : 1 - step); // in the dark theme, few is dark
          const left = plot.valToPos(times[at] - width_ms, "x", true);
          const right = plot.valToPos(times[at], "x", true);
          const top = plot.valToPos(row + 1, "y", true);
          const bottom = plot.valToPos(row, "y", true);
          const gap = right - left > 3 ? cellGap : 0;
          ctx.fillRect(left, top, right - left - gap, bottom - top - cellGap);
        }
      }
    }
    ctx.restore();
  });
  return <UPlotChart config={config} data={[times, times.map(() => null)]} width={width} height={height} />;
}

function Table({ frames, width, height }) {
  return <TableNG data={frames[0]} width={width} height={height} structureRev={1} enableSharedCrosshair={false} />;
}

const KINDS = { stat: Stat, timeseries: Graph, heatmap: Heatmap, table: Table };

function count(panel, frames) {
  const numbers = frames.flatMap((frame) =>
    frame.fields.filter((field) => field.type !== FieldType.time).flatMap((field) => field.values),
  );
  return numbers.filter((value) => value !== null && value !== "").length;
}

function Panel({ panel, input, range, width, height }) {
  const Kind = KINDS[panel.type];
  const found = toFrames(panel, input.results[panel.id]);
  const values = count(panel, found);
  const gapped = panel.type === "timeseries" && values ? showGaps(found, input.step) : found;
  const frames = override(panel, transform(panel, gapped));
  const fieldCount = frames.reduce((sum, frame) => sum + frame.fields.length - 1, 0);
  for (const [frameIndex, frame] of frames.entries()) {
    for (const [fieldIndex, field] of frame.fields.entries()) {
      field.state = { ...field.state, multipleFrames: frames.length > 1, origin: { frameIndex, fieldIndex } };
      getFieldDisplayName(field, frame, frames);
    }
  }
  const link = panel.links?.length > 0 && <PanelLink key="link" />;
  return (
    <section data-panel={panel.id} data-type={panel.type} data-title={panel.title} data-values={values} data-fields={fieldCount}>
      <PanelChrome title={panel.title} description={panel.description} titleItems={link} width={width} height={height}
        loadingState={LoadingState.Done} padding={panel.type === "table" ? "none" : undefined}>
        {(innerWidth, innerHeight) =>
          values ? (
            <Kind panel={panel} frames={frames} width={innerWidth} height={innerHeight} range={range}
              annotations={input.marks} />
          ) : (
            <div className="no-data">{panel.fieldConfig.defaults.noValue ?? "No data"}</div>
          )
        }
      </PanelChrome>
    </section>
  );
}

function PanelLink() {
  return (
    <span className="panel-link">
      <Icon name="external-link-alt" size="sm" />
    </span>
  );
}

// Positions of the panels and section titles, with collapsed sections opened if `isExpanded`.
function arrange(dashboard, isExpanded) {
  const arranged = [];
  let shift = 0;
  for (const entry of dashboard.panels) {
    const y = entry.gridPos.y + shift;
    arranged.push({ entry, y });
    if (isExpanded && entry.panels?.length) {
      for (const panel of entry.panels) {
        arranged.push({ entry: panel, y: panel.gridPos.y + shift });
      }
      shift += Math.max(...entry.panels.map(({ gridPos }) => gridPos.y + gridPos.h)) - entry.gridPos.y - 1;
    }
  }
  return arranged;
}

function SectionTitle({ row, isOpen }) {
  const hint = isOpen ? "" : `(${row.panels.length} panels)`;
  return (
    <h2 className="section-title">
      <Icon name={isOpen ? "angle-down" : "angle-right"} /> {row.title} <small>{hint}</small>
    </h2>
  );
}

function Head({ dashboard, from, to }) {
  const names = dashboard.templating.list.map((variable) => (
    <span className="variable" key={variable.name}>
      <label>{variable.label}</label>
      <b>{[variable.current.text].flat().join(" + ")}</b>
    </span>
  ));
  const minutes = Math.round((to - from) / 60_000);
  return (
    <header>
      <h1>{dashboard.title}</h1>
      <div>
        {names}
        <span className="time">
          <Icon name="clock-nine" /> Last {minutes > 1 ? `${minutes} minutes` : "minute"} <em>UTC</em>
        </span>
      </div>
    </header>
  );
}

function Dashboard({ input }) {
  const { dashboard, from, to, expanded } = input;
  const range = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };
  const cell = (innerWidth - 2 * MARGIN + GAP) / COLUMNS;
  const entries = arrange(dashboard, expanded);
  const bottom = Math.max(...entries.map(({ entry, y }) => y + entry.gridPos.h)) * (CELL_HEIGHT + GAP) - GAP;
  return (
    <div className="dashboard">
      <Head dashboard={dashboard} from={from} to={to} />
      <main style={{ height: bottom }}>
        {entries.map(({ entry, y }) => {
          const { x, w, h } = entry.gridPos;
          const [width, height] = [w * cell - GAP, h * (CELL_HEIGHT + GAP) - GAP];
          return (
            <div key={entry.id} className="place" style={{ left: x * cell, top: y * (CELL_HEIGHT + GAP), width, height }}>
              {entry.type === "row" ? (
                <SectionTitle row={entry} isOpen={!entry.collapsed || expanded} />
              ) : (
                <Panel panel={entry} input={input} range={range} width={width} height={height} />
              )}
            </div>
          );
        })}
      </main>
    </div>
  );
}

const STYLE = `
* { box-sizing: border-box }
body { background: ${theme.colors.background.canvas} }
.dashboard { padding: ${MARGIN}px; width: 100vw; overflow: hidden }
main { position: relative }
.place { position: absolute }
header { margin-bottom: ${MARGIN}px }
header h1 { font-size: 18px; margin-bottom: 12px }
header div { display: flex; gap: 12px; align-items: center; flex-wrap: wrap }
.variable { display: inline-flex; font-size: 12px; line-height: 30px; border: 1px solid ${theme.colors.border.medium}; border-radius: 2px }
.variable label { padding: 0 8px; background: ${theme.colors.background.secondary}; margin: 0 }
.variable b { padding: 0 10px; background: ${theme.components.input.background}; font-weight: 400 }
.time { margin-left: auto; font-size: 13px }
.time em { color: ${theme.colors.warning.text}; font-style: normal; font-size: 12px; margin-left: 4px }
.section-title { font-size: 15px; line-height: 30px; margin: 0 }
.section-title small { color: ${theme.colors.text.secondary}; margin-left: 8px; font-size: 12px }
.panel-link { color: ${theme.colors.text.secondary}; padding: 0 6px; line-height: 32px }
.no-data { height: 100%; display: flex; align-items: center; justify-content: center; color: ${theme.colors.text.secondary} }
* { animation: none !important; transition: none !important }
`;

document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));

async function loadFont(font) {
  const [weight] = font.split(" ");
  const file = weight === "400" ? "Inter-Regular" : "Inter-Medium";
  const face = new FontFace("Inter", `url(public/fonts/inter/${file}.woff2)`, { weight });
  document.fonts.add(await face.load());
}

// Texts that were drawn on each canvas since it was cleared, as boxes in pixels of the canvas.
const texts = new Map();
const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.clearRect = function (...box) {
  texts.delete(this.canvas);
  return clearRect.apply(this, box);
};
CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
  const size = this.measureText(text);
  const { e, f } = this.getTransform();
  const box = {
    text,
    left: x + e - size.actualBoundingBoxLeft,
    right: x + e + size.actualBoundingBoxRight,
    top: y + f - size.actualBoundingBoxAscent,
    bottom: y + f + size.actualBoundingBoxDescent,
  };
  texts.set(this.canvas, [...(texts.get(this.canvas) ?? []), box]);
  return fillText.call(this, text, x, y, ...rest);
};

function overlap(a, b) {
  return a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
}

function pairs(boxes) {
  return boxes.flatMap((first, at) => boxes.slice(at + 1).map((second) => [first, second]));
}

// Texts of a panel that do not fit: cut by an element's edge, or by the canvas, or over one another on it.
function clippedTexts(panel) {
  const found = [];
  const outer = panel.getBoundingClientRect();
  const walker = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const area = document.createRange();
    let isScrolled = false; // a long legend, whose other entries a user can scroll to
    area.selectNodeContents(node);
    const text = area.getBoundingClientRect();
    // Texts of a pixel are for screen readers only.
    if (text.width < 2 || node.parentElement.clientWidth === 1 || getComputedStyle(node.parentElement).visibility === "hidden") {
      continue;
    }
    for (let element = node.parentElement; element && panel.contains(element); element = element.parentElement) {
      const box = element.getBoundingClientRect();
      const { overflowX, overflowY } = getComputedStyle(element);
      if (overflowY === "auto" || overflowY === "scroll") {
        isScrolled = element.scrollHeight > element.clientHeight + 1;
      }
      const cutX = overflowX !== "visible" && (text.left < box.left - 1 || text.right > box.right + 1);
      const cutY = overflowY !== "visible" && (text.top < box.top - 3 || text.bottom > box.bottom + 3);
      if (cutX || (cutY && !isScrolled)) {
        found.push(node.data);
        break;
      }
    }
    const isBeside = text.left < outer.left || text.right > outer.right;
    if (isBeside || (!isScrolled && (text.top < outer.top || text.bottom > outer.bottom))) {
      found.push(node.data);
    }
  }
  for (const canvas of panel.querySelectorAll("canvas")) {
    const drawn = texts.get(canvas) ?? [];
    // Grafana cuts the label of a time that is exactly at the edge.
    const isInside = ({ text, left, right, top, bottom }) =>
      /^\d\d:\d\d/.test(text) ||
      (left >= -1 && top >= -1 && right <= canvas.width + 1 && bottom <= canvas.height + 1);
    found.push(...drawn.filter((box) => !isInside(box)).map(({ text }) => `${text} (canvas)`));
    found.push(...pairs(drawn).filter(([a, b]) => overlap(a, b)).map(([a, b]) => `${a.text} over ${b.text}`));
  }
  return [...new Set(found)];
}

// Whether any pixel of the panel's plots has a colour; the texts and lines of the axes are grey.
function hasColour(panel) {
  return [...panel.querySelectorAll(".u-wrap canvas")].some((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < data.length; at += 4) {
      const [red, green, blue, alpha] = data.slice(at, at + 4);
      if (alpha > 60 && Math.max(red, green, blue) - Math.min(red, green, blue) > 30) {
        return true;
      }
    }
    return false;
  });
}

window.draw = async (input) => {
  // The widths of texts are measured while panels are laid out.
  await Promise.all(["400 12px Inter", "500 12px Inter"].map((font) => loadFont(font)));
  document.body.replaceChildren();
  const root = document.body.appendChild(document.createElement("div"));
  const marks = input.annotations.flatMap(({ iconColor, series }) =>
    series.map(({ values }) => ({ time: values[0][0] * 1000, color: iconColor })),
  );
  const eventBus = { getStream: () => of(), publish() {}, subscribe: () => new Subscription(), newScopedBus: () => eventBus };
  const context = { eventsScope: "dashboard", eventBus, sync: () => 0, app: "dashboard" };
  createRoot(root).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={context}>
        <Dashboard input={{ ...input, marks }} />
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
  for (let frames = 0; frames < FRAMES && !isDrawn(); frames++) {
    await new Promise(requestAnimationFrame);
  }
  await document.fonts.ready;
  await new Promise(requestAnimationFrame);
};

// Whether all panels have their content and their icons, which load later.
function isDrawn() {
  const all = [...document.querySelectorAll("[data-panel]")];
  return (
    all.length > 0 &&
    all.every((panel) => {
      const isPlot = panel.dataset.type === "timeseries" || panel.dataset.type === "heatmap";
      const hasPlot = [...panel.querySelectorAll(".u-wrap canvas")].some((canvas) => canvas.width > 0);
      return panel.querySelector("h2") && panel.querySelector("svg path") && (hasPlot || !isPlot || panel.querySelector(".no-data"));
    })
  );
}

window.inspect = () => ({
  panels: [...document.querySelectorAll("[data-panel]")].map((panel) => {
    const { left, top, right, bottom } = panel.getBoundingClientRect();
    return {
      title: panel.dataset.title,
      type: panel.dataset.type,
      values: Number(panel.dataset.values),
      text: panel.innerText,
      hasColour: hasColour(panel),
      clipped: clippedTexts(panel),
      box: { left, top, right, bottom },
    };
  }),
});
