// The line that says what a panel is doing. It is on the page before its words change, so that screen readers tell of them.

function render({ model, el }) {
  const line = document.createElement("div");
  line.className = "emointerp-status";
  line.setAttribute("role", "status");
  line.setAttribute("aria-live", "polite");
  const update = () => { line.textContent = model.get("value"); };
  model.on("change:value", update);
  update();
  el.append(line);
}

export default { render };
