// What the patch grid and the token strip share. Python joins this file with that of the widget.
// Text from outside (labels, tokens) reaches the page through textContent and attributes only, never as HTML.

function make(parent, tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  parent.append(node);
  return node;
}

// [colour, ink that can be read on it], or null where there is no value.
function tint(model, i) {
  const value = model.get("values")[i] ?? null;
  const ramp = model.get("_ramp");
  return value === null ? null : ramp[Math.round(value * (ramp.length - 1))];
}

function select(model, i) {
  model.set("selected", i);
  model.save_changes();
}

function onChange(model, names, react) {
  for (const name of names) model.on(`change:${name}`, react);
}
