// Beside the circle: the search, the emotions with their counts, and the selected feature with its pictures.

import { button, make, set } from "./dom.js";

export function search(parent, model, about, select) {
  const row = make(parent, "div", "search"), field = make(row, "input"), count = make(row, "span", "count");
  field.type = "search";
  field.placeholder = "words, or a feature's number";
  field.setAttribute("aria-label", "search features by words or number");
  count.setAttribute("aria-live", "polite");
  field.addEventListener("input", () => set(model, "search", field.value));
  field.addEventListener("keydown", (event) => {
    event.stopPropagation(); // keys in the field are no shortcuts of the notebook
    const lit = about.lit(), from = about.place.get(model.get("selected")) ?? -1;
    const next = lit.findIndex((on, i) => on && i > from), found = next >= 0 ? next : lit.indexOf(true);
    if (event.key === "Enter" && found >= 0 && found !== from) select(about.leaves.feature[found]);
  });

  function update() {
    if (field.value !== model.get("search")) field.value = model.get("search");
    const lit = about.lit().filter(Boolean).length;
    count.textContent = lit === about.leaves.feature.length ? `${lit} features` : `${lit} of ${about.leaves.feature.length}`;
  }

  return { update };
}

export function legend(parent, model, about) {
  const list = make(parent, "div", "legend");
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "emotions to show; none pressed: all");
  const chips = about.emotions.map(({ name, said, initial, color, none }, e) => {
    const count = about.leaves.emotion.filter((other) => other === e).length;
    const chip = button(list, "chip", "", `${said}: ${count} features`, () => toggle(name));
    chip.style.setProperty("--hue", color);
    make(chip, "span", none ? "dot none" : "dot");
    if (initial) make(chip, "b", "initial", initial);
    make(chip, "span", "", said);
    make(chip, "span", "count", String(count));
    chip.hidden = !count;
    return [name, chip];
  });

  function toggle(name) {
    const shown = model.get("emotions");
    set(model, "emotions", shown.includes(name) ? shown.filter((other) => other !== name) : [...shown, name]);
  }

  function update() {
    const shown = model.get("emotions");
    for (const [name, chip] of chips) {
      chip.setAttribute("aria-pressed", shown.includes(name));
      chip.classList.toggle("off", shown.length > 0 && !shown.includes(name));
    }
  }

  return { update };
}

export function details(parent, model, about, select) {
  const card = make(parent, "section", "details");
  card.setAttribute("aria-live", "polite");
  let heat = true, showing = null;

  function update() {
    const now = ["selected", "pictures", "busy", "problem"].map((name) => model.get(name));
    if (showing && now.every((value, k) => value === showing[k])) return; // a search leaves the card as it is
    showing = now;
    card.replaceChildren();
    const i = about.place.get(model.get("selected"));
    if (i === undefined) overview();
    else feature(i);
  }

  function feature(i) {
    const head = make(card, "div", "head");
    const name = make(head, "h3", "", about.title(i));
    name.style.setProperty("--hue", about.emotion(i).color);
    button(head, "close", "×", "clear the selection", () => select(model.get("selected")));
    const words = about.leaves.words[i] ? `feature ${about.leaves.feature[i]}; ` : "";
    make(card, "p", "told", words + about.told(i));
    bars(i);
    pictures();
  }

  // The feature's mean activation by emotion.
  function bars(i) {
    const means = about.leaves.means[i], most = Math.max(...means, 1e-12);
    if (!means.length) return;
    const list = make(card, "div", "bars");
    means.forEach((mean, e) => {
      const { said, color } = about.emotions[e];
      make(list, "span", e === about.leaves.emotion[i] ? "own" : "", said);
      const bar = make(make(list, "span", "track"), "span", "bar");
      bar.style.width = `${(100 * mean) / most}%`;
      bar.style.background = color;
      make(list, "span", "value", mean ? about.number(mean) : "0");
    });
  }

  function pictures() {
    if (model.get("problem")) return make(card, "p", "problem", model.get("problem")).setAttribute("role", "alert");
    if (model.get("busy")) return make(card, "p", "hint", "looking for its pictures …");
    const shots = model.get("pictures");
    if (shots.some((shot) => shot.heat)) toggle();
    const list = make(card, "div", heat ? "shots" : "shots bare");
    for (const shot of shots) picture(list, shot);
  }

  function toggle() {
    const label = make(card, "label", "toggle"), box = make(label, "input");
    box.type = "checkbox";
    box.checked = heat;
    make(label, "span", "", "heat maps (they step aside under the mouse)");
    box.addEventListener("change", () => {
      heat = box.checked;
      card.querySelector(".shots").classList.toggle("bare", !heat);
    });
  }

  function picture(list, shot) {
    const figure = make(list, "figure"), frame = make(figure, "div", "frame"), image = make(frame, "img");
    image.src = shot.picture;
    image.alt = shot.caption;
    if (shot.heat) paint(make(frame, "canvas"), shot.heat, model.get("_ramp"));
    if (shot.caption) make(figure, "figcaption", "", shot.caption);
  }

  // Where to begin: for each emotion, the feature that exceeds the mean most.
  function overview() {
    const { leaves, emotions } = about;
    make(card, "p", "hint", "Click a feature to see its pictures. Drag to move, scroll to zoom (in a notebook after a click, or with Ctrl); arrow keys walk around the circle.");
    const tops = emotions.map((_, e) => {
      const own = leaves.feature.map((_, i) => i).filter((i) => leaves.emotion[i] === e && leaves.difference[i] !== null);
      return own.sort((a, b) => leaves.difference[b] - leaves.difference[a])[0];
    });
    const list = make(card, "div", "tops");
    tops.forEach((i, e) => {
      if (i === undefined || emotions[e].none) return;
      const node = button(list, "top", "", `feature ${leaves.feature[i]}, ${about.told(i)}`, () => select(leaves.feature[i]));
      node.style.setProperty("--hue", emotions[e].color);
      make(node, "b", "", emotions[e].said);
      make(node, "span", "", about.title(i));
    });
  }

  return { update };
}

// A grid of bytes as colours of the ramp, the more opaque the larger; the browser smooths it to the picture's size.
function paint(canvas, { rows, columns, bytes }, ramp) {
  const values = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  Object.assign(canvas, { width: columns, height: rows });
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  const colours = ramp.map(([colour]) => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16)));
  values.forEach((value, i) => {
    const share = value / 255;
    image.data.set([...colours[Math.round(share * (ramp.length - 1))], Math.round(225 * share ** 1.5)], 4 * i);
  });
  context.putImageData(image, 0, 0);
}
