// What the halves of the explorer share.

export function make(parent, tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.textContent = text;
  parent.append(node);
  return node;
}

export function button(parent, className, text, hint, press) {
  const node = make(parent, "button", className, text);
  node.type = "button";
  if (hint) {
    node.title = hint;
    node.setAttribute("aria-label", hint);
  }
  node.addEventListener("click", press);
  return node;
}

export const set = (model, name, value) => {
  model.set(name, value);
  model.save_changes();
};
