// The view of TokenStrip: a button for each chip that Python made of the tokens.

const MARKS = /([␣⏎⇥]+)/; // splitting at them puts them at the odd places

// The button above or below `from` whose middle is nearest, sideways, in the next line of buttons.
function inNextLine(buttons, from, way) {
  const start = from.getBoundingClientRect();
  const middle = (rect) => (rect.left + rect.right) / 2;
  const beyond = buttons.map((button) => [button, button.getBoundingClientRect()]);
  const lines = beyond.filter(([, rect]) => way * (rect.top - start.top) > start.height / 2);
  const distance = ([, rect]) => 4 * Math.abs(rect.top - start.top) * innerWidth + Math.abs(middle(rect) - middle(start));
  lines.sort((a, b) => distance(a) - distance(b));
  return lines[0]?.[0] ?? from;
}

function render({ model, el }) {
  const strip = make(el, "div", "emointerp-strip");
  strip.setAttribute("role", "toolbar");
  strip.dataset.lmSuppressShortcuts = "true"; // the arrow keys are ours, not the notebook's
  let buttons = [];

  const chip = (k) => model.get("_chips")[k];
  const holds = (k, i) => chip(k).first <= i && i <= chip(k).last;

  function colours() {
    for (const [k, button] of buttons.entries()) {
      const { first, last, hint } = chip(k);
      const single = first === last, value = model.get("values")[first] ?? null;
      const [colour, ink] = (single && tint(model, first)) || ["", ""];
      button.style.backgroundColor = colour;
      button.style.color = ink;
      button.title = single && value !== null ? `${hint}: ${value.toFixed(2)}` : hint;
    }
  }

  // One button takes part in the page's tab order: the selected one, or the first.
  function selection() {
    const chosen = buttons.findIndex((_, k) => holds(k, model.get("selected")));
    for (const [k, button] of buttons.entries()) {
      button.setAttribute("aria-pressed", k === chosen);
      button.tabIndex = k === Math.max(chosen, 0) ? 0 : -1;
    }
  }

  function draw() {
    strip.replaceChildren();
    buttons = model.get("_chips").map(({ text, tag, first, last }) => {
      const around = tag ? make(strip, "span", "tagged") : strip; // a span's name stays in the line of its first token
      if (tag) make(around, "small", "tag", tag);
      const button = make(around, "button", first === last ? "chip" : "chip folded");
      button.type = "button";
      text.split(MARKS).forEach((part, i) => part && make(button, "span", i % 2 ? "mark" : "", part));
      return button;
    });
    name();
    colours();
    selection();
  }

  const name = () => strip.setAttribute("aria-label", model.get("title") || "tokens");

  function press(event) {
    const from = event.target.closest("button"), k = buttons.indexOf(from), end = buttons.length - 1;
    if (k < 0) return;
    const targets = {
      ArrowLeft: () => buttons[Math.max(k - 1, 0)],
      ArrowRight: () => buttons[Math.min(k + 1, end)],
      ArrowUp: () => inNextLine(buttons, from, -1),
      ArrowDown: () => inNextLine(buttons, from, 1),
      Home: () => buttons[0],
      End: () => buttons[end],
    };
    if (event.key === "Escape") select(model, -1);
    else if (event.key in targets) {
      const button = targets[event.key]();
      button.focus();
      select(model, chip(buttons.indexOf(button)).first);
    } else return;
    event.preventDefault();
  }

  strip.addEventListener("keydown", press);
  strip.addEventListener("click", ({ target }) => {
    const k = buttons.indexOf(target.closest("button"));
    if (k >= 0) select(model, holds(k, model.get("selected")) ? -1 : chip(k).first);
  });

  onChange(model, ["_chips"], draw);
  onChange(model, ["values"], colours);
  onChange(model, ["title"], name);
  onChange(model, ["selected"], selection);
  draw();
}

export default { render };
