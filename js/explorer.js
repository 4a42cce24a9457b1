// The view of emointerp.widgets.Explorer: the circle of features, and beside it what is known of them.
// Text from outside (words, captions, names of emotions) reaches the page through textContent and attributes only, never as HTML.

import { chart } from "./chart.js";
import { make } from "./dom.js";
import { details, legend, search } from "./panel.js";
import { PageModel } from "./page.js";

// What both halves look up in the tree again and again.
function read(model) {
  const tree = model.get("tree"), { leaves, emotions } = tree;
  const names = emotions.map(({ name }) => name);
  const place = new Map(leaves.feature.map((feature, i) => [feature, i]));
  const emotion = (i) => emotions[leaves.emotion[i]];
  const number = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(2));

  function told(i) {
    const difference = leaves.difference[i], { name, none } = emotion(i), activation = number(leaves.activation[i]);
    if (difference === null) return `mean activation ${activation}`;
    if (none) return `goes with no one emotion; mean activation ${activation}`;
    const p = leaves.p[i] < 0.001 ? "p below 0.001" : `p = ${number(leaves.p[i])}`;
    return `${name}: mean activation ${activation}, ${number(difference)} above the mean over emotions (${p})`;
  }

  function lit() {
    const words = model.get("search").toLowerCase().split(/\s+/).filter(Boolean), shown = new Set(model.get("emotions"));
    return leaves.feature.map((feature, i) => {
      const text = leaves.words[i].toLowerCase();
      const found = words.every((word) => text.includes(word) || String(feature).startsWith(word));
      return found && (!shown.size || shown.has(names[leaves.emotion[i]]));
    });
  }

  return { tree, leaves, emotions, emotion, place, number, told, lit, title: (i) => leaves.words[i] || `feature ${leaves.feature[i]}` };
}

function render({ model, el }) {
  const root = make(el, "div", "emointerp-explorer");
  const left = make(root, "div", "left"), right = make(root, "div", "right");
  let parts = [], leave = () => {};

  function select(feature) {
    model.set("selected", feature === model.get("selected") ? -1 : feature);
    model.save_changes();
  }

  function draw() {
    leave();
    left.replaceChildren();
    right.replaceChildren();
    const about = read(model);
    make(right, "h2", "title", model.get("title"));
    const circle = chart(left, model, about, select);
    leave = circle.leave;
    parts = [circle, search(right, model, about, select), legend(right, model, about), details(right, model, about, select)];
    for (const part of parts) part.update();
  }

  const update = () => parts.forEach((part) => part.update());
  const react = { "change:tree": draw, "change:title": draw };
  for (const name of ["selected", "search", "emotions", "pictures", "busy", "problem"]) react[`change:${name}`] = update;
  for (const [event, call] of Object.entries(react)) model.on(event, call);
  draw();
  return () => {
    leave();
    for (const [event, call] of Object.entries(react)) model.off(event, call);
  };
}

// A page of its own: the data that Python would hold, and no kernel behind it.
export function page(el, data) {
  el.classList.add("emointerp-page");
  return render({ model: new PageModel(data), el });
}

export default { render };
