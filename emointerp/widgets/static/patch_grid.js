// The view of PatchGrid: a picture, a box over it for each token that has a place, a tooltip, and a colour bar.

// For each arrow key: the axis along which it moves (0 across, 1 down), and which way.
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1] };

// The tokens that have a place, the largest first, so that smaller ones come to lie on top and get the click.
function placed(boxes) {
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  const tokens = [...boxes.keys()].filter((i) => boxes[i]);
  return tokens.sort((a, b) => area(boxes[b]) - area(boxes[a]));
}

// The nearest box that lies beyond box `from` that way; boxes at the same height (or in the same column) come first.
function neighbour(boxes, from, [axis, way]) {
  const start = boxes[from];
  const centre = (box, k) => (box[k] + box[k + 2]) / 2;
  const slack = 0.1 * (start[axis + 2] - start[axis]);
  let best = from, least = Infinity;
  for (const [i, box] of boxes.entries()) {
    if (!box) continue;
    const gap = way > 0 ? box[axis] - start[axis + 2] : start[axis] - box[axis + 2];
    const along = Math.abs(centre(box, axis) - centre(start, axis));
    const aside = Math.abs(centre(box, 1 - axis) - centre(start, 1 - axis));
    if (gap > -slack && along + 3 * aside < least) [best, least] = [i, along + 3 * aside];
  }
  return best;
}

function place(node, [left, top, right, bottom], [width, height]) {
  const percent = { left: left / width, top: top / height, width: (right - left) / width, height: (bottom - top) / height };
  for (const [side, share] of Object.entries(percent)) node.style[side] = `${100 * share}%`;
}

function render({ model, el }) {
  const root = make(el, "figure", "emointerp-grid");
  const title = make(root, "figcaption", "title");
  const frame = make(root, "div", "frame");
  const legend = make(root, "div", "legend");
  const picture = make(frame, "img", "picture");
  const list = make(frame, "div", "boxes");
  const outline = make(frame, "div", "outline");
  const tip = make(frame, "div", "tip");
  const low = make(legend, "span", "end");
  const bar = make(make(legend, "span", "bar"), "span", "ramp");
  const high = make(legend, "span", "end");
  const prefix = `emointerp-${Math.random().toString(36).slice(2)}-`; // ids that no other view on the page has
  let nodes = new Map();

  picture.draggable = false;
  picture.alt = "";
  list.tabIndex = 0;
  list.setAttribute("role", "listbox");
  list.dataset.lmSuppressShortcuts = "true"; // the arrow keys are ours, not the notebook's

  const label = (i) => model.get("labels")[i] ?? `token ${i}`;

  function words() {
    title.textContent = model.get("title");
    list.setAttribute("aria-label", model.get("title") || "visual tokens");
    low.textContent = model.get("low");
    high.textContent = model.get("high");
    for (const [i, node] of nodes) node.setAttribute("aria-label", label(i));
  }

  function colours() {
    const opacity = Math.round(255 * model.get("opacity")).toString(16).padStart(2, "0");
    legend.style.display = model.get("values").length ? "" : "none";
    bar.style.opacity = model.get("opacity");
    bar.style.background = `linear-gradient(to right, ${model.get("_ramp").map(([colour]) => colour).join(", ")})`;
    for (const [i, node] of nodes) {
      const [colour] = tint(model, i) ?? [];
      node.style.backgroundColor = colour ? colour + opacity : "transparent";
    }
  }

  function selection() {
    const selected = model.get("selected");
    for (const [i, node] of nodes) node.setAttribute("aria-selected", i === selected);
    outline.hidden = !nodes.has(selected);
    if (outline.hidden) list.removeAttribute("aria-activedescendant");
    else {
      place(outline, model.get("boxes")[selected], model.get("size"));
      list.setAttribute("aria-activedescendant", nodes.get(selected).id);
    }
  }

  function draw() {
    const boxes = model.get("boxes"), size = model.get("size"), source = model.get("picture");
    root.style.width = `${model.get("width")}px`;
    frame.style.aspectRatio = `${size[0]} / ${size[1]}`;
    picture.hidden = !source;
    if (source) picture.src = source;
    list.replaceChildren();
    nodes = new Map(placed(boxes).map((i) => {
      const node = make(list, "div", "box");
      node.id = prefix + i;
      node.dataset.token = i;
      node.setAttribute("role", "option");
      place(node, boxes[i], size);
      return [i, node];
    }));
    showTip(null);
    words();
    colours();
    selection();
  }

  // The tooltip lies beside its box, on the side that has more room.
  function showTip(i) {
    tip.hidden = i === null;
    if (tip.hidden) return;
    const [width, height] = model.get("size"), [left, top, right, bottom] = model.get("boxes")[i];
    const leftHalf = left + right < width, upperHalf = top + bottom < height;
    tip.textContent = label(i);
    tip.style.left = leftHalf ? `${(100 * left) / width}%` : "";
    tip.style.right = leftHalf ? "" : `${100 - (100 * right) / width}%`;
    tip.style.top = upperHalf ? `calc(${(100 * bottom) / height}% + 5px)` : "";
    tip.style.bottom = upperHalf ? "" : `calc(${100 - (100 * top) / height}% + 5px)`;
  }

  function press(event) {
    const selected = model.get("selected"), boxes = model.get("boxes"), first = boxes.findIndex((box) => box);
    let next;
    if (first < 0) return;
    else if (event.key === "Escape") next = -1;
    else if (event.key === "Enter" || event.key === " ") next = nodes.has(selected) ? -1 : first;
    else if (event.key === "Home") next = first;
    else if (event.key === "End") next = boxes.findLastIndex((box) => box);
    else if (event.key in ARROWS) next = nodes.has(selected) ? neighbour(boxes, selected, ARROWS[event.key]) : first;
    else return;
    event.preventDefault();
    select(model, next);
    showTip(next < 0 ? null : next);
  }

  list.addEventListener("keydown", press);
  list.addEventListener("click", ({ target }) => {
    if (!target.dataset.token) return;
    const i = Number(target.dataset.token);
    select(model, i === model.get("selected") ? -1 : i);
  });
  list.addEventListener("pointerover", ({ target }) => showTip(target.dataset.token ? Number(target.dataset.token) : null));
  list.addEventListener("pointerleave", () => showTip(null));
  list.addEventListener("blur", () => showTip(null));

  onChange(model, ["boxes", "size", "picture", "width"], draw);
  onChange(model, ["values", "opacity"], colours);
  onChange(model, ["title", "low", "high", "labels"], words);
  onChange(model, ["selected"], selection);
  draw();
}

export default { render };
