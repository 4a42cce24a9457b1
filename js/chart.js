// The circle: a radial dendrogram that can be zoomed, hovered, clicked, and walked with the arrow keys.

import { cluster, hierarchy } from "d3-hierarchy";
import { pointer, select as d3select } from "d3-selection";
import { arc, linkRadial } from "d3-shape";
import "d3-transition";
import { zoom, zoomIdentity } from "d3-zoom";

import { button, make } from "./dom.js";

const HALF = 500; // of the drawing's side, in its own units
const SMALL = 9, LARGE = 13; // sizes of labels, in pixels of the screen
const LONGEST = 26; // characters of a label
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const short = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1).trimEnd()}…` : text);
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// scipy's linkage as a tree with angles (clockwise from the top, a gap of one leaf) and distances from the middle.
function laidOut({ linkage, radii, leading, leaves }, rim) {
  const n = leaves.feature.length;
  const nodes = leaves.feature.map((_, leaf) => ({ leaf, radius: 1, emotion: leaves.emotion[leaf] }));
  linkage.forEach(([a, b], i) => nodes.push({ children: [nodes[a], nodes[b]], radius: radii[i], emotion: leading[i] }));
  const root = cluster().size([(2 * Math.PI * n) / (n + 1), 1]).separation(() => 1)(hierarchy(nodes.at(-1)));
  root.each((node) => {
    node.x += Math.PI / (n + 1);
    node.y = rim * node.data.radius;
  });
  return root;
}

// Leaves whose labels do not touch: the strongest first, none within `step` places of another.
function spaced(order, n, step) {
  if (step <= 1) return new Set(order);
  const kept = new Set(), taken = new Uint8Array(n);
  for (const i of order) {
    if (taken[i]) continue;
    kept.add(i);
    for (let d = 1 - step; d < step; d++) taken[(i + d + n) % n] = 1;
  }
  return kept;
}

export function chart(parent, model, about, select) {
  const { tree, leaves, emotions, emotion, place } = about;
  const n = leaves.feature.length, letters = Math.max(...leaves.words.map((text) => short(text).length));
  const RIM = clamp(HALF - 40 - 0.8 * clamp(1600 / n, SMALL, LARGE) * (letters + 5), 240, 400); // leaves room for the longest label
  const root = laidOut(tree, RIM), ends = root.leaves().sort((a, b) => a.data.leaf - b.data.leaf);
  const widest = Math.max(...leaves.words.map((text, i) => short(text).length + 5 + emotion(i).initial.length)); // letters of a label
  const spacing = (2 * Math.PI * RIM) / (n + 1), most = Math.max(...leaves.activation), big = clamp(0.9 * spacing, 3.6, 14);
  const prefix = `emointerp-${Math.random().toString(36).slice(2)}-`; // ids that no other view on the page has

  const box = make(parent, "div", n > 300 ? "chart many" : "chart");
  box.tabIndex = 0;
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", `${n} features around a circle; arrow keys move, Enter selects, Escape clears`);
  box.dataset.lmSuppressShortcuts = "true"; // the keys are ours, not the notebook's
  const svg = d3select(box).append("svg").attr("role", "presentation").attr("viewBox", [-HALF, -HALF, 2 * HALF, 2 * HALF].join(" "));
  const inside = svg.append("g").attr("role", "presentation");
  const alike = tree.by === "decoder" ? "write alike" : "fire together";
  make(parent, "div", "caption", `Neighbours ${alike}: the farther out they join, the more. Dots grow with activation.`);
  const tip = make(box, "div", "tip"), status = make(box, "div", "status");
  tip.hidden = true;
  status.setAttribute("aria-live", "polite");

  // drawn once

  const links = inside.append("g").attr("class", "links").attr("role", "presentation").selectAll("path").data(root.links()).join("path")
    .attr("d", linkRadial().angle((d) => d.x).radius((d) => d.y))
    .attr("stroke", ({ target }) => emotions[target.data.emotion].color)
    .style("--width", ({ target }) => clamp(0.9 + 0.4 * Math.log2(target.leaves().length), 0.9, 3.4) * clamp(1.5 - n / 800, 0.7, 1.4));
  const spots = inside.append("g").attr("role", "presentation").selectAll("g").data(ends).join("g")
    .attr("class", ({ data }) => (emotion(data.leaf).none ? "leaf none" : "leaf"))
    .attr("transform", ({ x }) => `rotate(${(x * 180) / Math.PI - 90})`)
    .attr("role", "option").attr("id", ({ data }) => prefix + data.leaf)
    .attr("data-feature", ({ data }) => leaves.feature[data.leaf])
    .attr("aria-label", ({ data }) => `feature ${leaves.feature[data.leaf]}, ${leaves.words[data.leaf]}, ${about.told(data.leaf)}`);
  spots.append("path").attr("class", "target")
    .attr("d", arc()({ innerRadius: 0.9 * RIM, outerRadius: HALF, startAngle: Math.PI / 2 - Math.PI / (n + 1), endAngle: Math.PI / 2 + Math.PI / (n + 1) }));
  spots.append("circle").attr("class", "ring").attr("cx", RIM);
  spots.append("circle").attr("class", "spot").attr("cx", RIM)
    .attr("r", ({ data }) => big * Math.sqrt(Math.max(leaves.activation[data.leaf] / most, 0.05)))
    .attr("style", ({ data }) => `--hue:${emotion(data.leaf).color}`);
  const labels = spots.append("text").attr("class", "label").attr("dy", "0.34em").attr("aria-hidden", "true")
    .attr("transform", ({ x }) => `translate(${RIM + big + 4})${x > Math.PI ? " rotate(180)" : ""}`)
    .attr("text-anchor", ({ x }) => (x > Math.PI ? "end" : "start"));
  labels.each(function ({ data, x }) {
    const i = data.leaf, { initial, color } = emotion(i), number = String(leaves.feature[i]);
    const words = [["initial", initial], ["words", short(leaves.words[i]) || number], ["number", leaves.words[i] ? number : ""]];
    const parts = words.filter(([, text]) => text);
    (x > Math.PI ? parts.reverse() : parts).forEach(([kind, text], k) => {
      d3select(this).append("tspan").attr("class", kind).attr("style", kind === "initial" ? `--hue:${color}` : null)
        .text(k ? `\u00a0${text}` : text);
    });
  });

  // changed with every zoom and every change of what is looked for

  let lit = leaves.feature.map(() => true), transform = zoomIdentity, cursor = -1, shown = "", revealed = -1;

  function chosen() {
    return place.get(model.get("selected")) ?? -1;
  }

  // As many labels as can be read at this zoom; the others fade.
  function label() {
    const scale = (transform.k * (box.clientWidth || 600)) / (2 * HALF), room = spacing * scale;
    const step = Math.ceil(SMALL / room), fits = (HALF - RIM - big - 8) / (0.5 * widest);
    const size = Math.min(clamp(0.8 * room, SMALL, LARGE) / scale, fits); // the longest label ends inside the drawing
    const first = [chosen(), cursor].filter((i) => i >= 0);
    const wanted = leaves.feature.map((_, i) => i).filter((i) => lit[i]);
    wanted.sort((a, b) => leaves.activation[b] - leaves.activation[a]);
    const kept = spaced([...first, ...wanted], n, step);
    inside.style("--label", `${size}px`).style("--line", 1 / Math.sqrt(transform.k));
    const now = [...kept].sort().join();
    if (now !== shown) labels.classed("faded", ({ data }) => !kept.has(data.leaf));
    shown = now;
  }

  function trace() {
    const on = new Set([cursor, chosen()].filter((i) => i >= 0).flatMap((i) => ends[i].ancestors()));
    links.classed("on", ({ target }) => on.has(target));
    spots.classed("cursor", ({ data }) => data.leaf === cursor);
    label();
  }

  function update() {
    lit = about.lit();
    root.eachAfter((node) => (node.lit = node.children ? node.children.some((child) => child.lit) : lit[node.data.leaf]));
    links.classed("dim", ({ target }) => !target.lit);
    spots.classed("dim", ({ data }) => !lit[data.leaf]).classed("found", ({ data }) => model.get("search").trim() && lit[data.leaf])
      .classed("selected", ({ data }) => data.leaf === chosen()).attr("aria-selected", ({ data }) => data.leaf === chosen());
    spots.select(".ring").attr("r", ({ data }) => big * (data.leaf === chosen() ? 1.55 : 1.25));
    trace();
    if (chosen() >= 0 && chosen() !== revealed) reveal(chosen());
    revealed = chosen();
  }

  // zoom and pan

  const zooming = zoom().scaleExtent([0.9, Math.max(6, n / 12)]).clickDistance(4).translateExtent([[-HALF, -HALF], [HALF, HALF]])
    .filter((event) => {
      const here = box.contains(document.activeElement) || box.closest(".emointerp-page") || event.ctrlKey || event.metaKey;
      return !event.button && (event.type !== "wheel" || here); // else the wheel scrolls the notebook
    })
    .on("zoom", (event) => {
      transform = event.transform;
      inside.attr("transform", transform);
      if (event.sourceEvent) hide();
      label();
    });
  svg.call(zooming).on("dblclick.zoom", null);
  const moved = () => (calm() ? svg : svg.transition().duration(350));

  const buttons = make(box, "div", "zoom");
  button(buttons, "", "+", "zoom in", () => moved().call(zooming.scaleBy, 1.6));
  button(buttons, "", "−", "zoom out", () => moved().call(zooming.scaleBy, 1 / 1.6));
  button(buttons, "", "⟲", "show all", () => moved().call(zooming.transform, zoomIdentity));

  const middle = (i) => [RIM * Math.sin(ends[i].x), -RIM * Math.cos(ends[i].x)];

  function reveal(i) {
    const [x, y] = transform.apply(middle(i)), edge = 0.92 * HALF;
    if (Math.max(Math.abs(x), Math.abs(y)) > edge) moved().call(zooming.translateTo, ...middle(i));
  }

  // hover, click, keys

  function show(i, at) {
    if (i !== cursor) {
      cursor = i;
      tip.replaceChildren();
      make(tip, "b", "", leaves.words[i] || `feature ${leaves.feature[i]}`);
      if (leaves.words[i]) make(tip, "span", "number", `feature ${leaves.feature[i]}`);
      make(tip, "span", "told", about.told(i));
      tip.style.setProperty("--hue", emotion(i).color);
      box.setAttribute("aria-activedescendant", prefix + i);
      trace();
    }
    const [x, y] = at, { clientWidth: width, clientHeight: height } = box;
    tip.hidden = false;
    tip.style.left = `${clamp(x + (x > width / 2 ? -14 - tip.offsetWidth : 14), 0, width - tip.offsetWidth)}px`;
    tip.style.top = `${clamp(y + 14, 0, height - tip.offsetHeight)}px`;
  }

  function hide() {
    tip.hidden = true;
    if (cursor < 0) return;
    cursor = -1;
    box.removeAttribute("aria-activedescendant");
    trace();
  }

  function walk(way) {
    const from = cursor >= 0 ? cursor : chosen() >= 0 ? chosen() : way > 0 ? n - 1 : 0;
    for (let d = 1; d <= n; d++) {
      const i = (from + way * d + n * d) % n;
      if (lit[i]) return go(i);
    }
  }

  function go(i) {
    reveal(i);
    const scale = box.clientWidth / (2 * HALF);
    show(i, transform.apply(middle(i)).map((c) => (c + HALF) * scale));
    status.textContent = tip.textContent;
  }

  function press(event) {
    if (event.target !== box) return;
    const { key } = event, way = STEPS[key];
    if (way) walk(way);
    else if (key === "Home" || key === "End") go(key === "Home" ? lit.indexOf(true) : lit.lastIndexOf(true));
    else if ((key === "Enter" || key === " ") && cursor >= 0) select(leaves.feature[cursor]);
    else if (key === "Escape") escape();
    else if (key === "+" || key === "-") moved().call(zooming.scaleBy, key === "+" ? 1.6 : 1 / 1.6);
    else if (key === "0") moved().call(zooming.transform, zoomIdentity);
    else return;
    event.preventDefault();
  }

  function escape() {
    hide();
    if (model.get("selected") >= 0) select(model.get("selected"));
  }

  const leafOf = (event) => event.target.closest?.(".leaf")?.__data__?.data.leaf ?? -1;
  svg.on("pointermove", (event) => (leafOf(event) >= 0 && !event.buttons ? show(leafOf(event), pointer(event, box)) : hide()));
  svg.on("pointerleave", hide);
  svg.on("click", (event) => leafOf(event) >= 0 && select(leaves.feature[leafOf(event)]));
  box.addEventListener("keydown", press);
  box.addEventListener("blur", hide);
  svg.on("pointerdown", () => box.focus({ preventScroll: true }));
  const sizes = new ResizeObserver(label);
  sizes.observe(box);

  return { update, leave: () => sizes.disconnect() };
}
