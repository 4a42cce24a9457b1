// Of a panel that was written as a page: shows the view for the places of its fields in the grid.

const data = JSON.parse(document.getElementById("data").textContent);
const fields = [...document.querySelectorAll("[data-size]")];

function show() {
  let at = 0;
  for (const field of fields) {
    at = at * Number(field.dataset.size) + Number(field.value);
    if (field.type !== "range") continue;
    const label = JSON.parse(field.dataset.labels)[field.value];
    field.setAttribute("aria-valuetext", label);
    field.nextElementSibling.textContent = label;
  }
  const view = data.views[data.order[at]];
  document.getElementById("view").innerHTML =
    view.replace(/(src|href)="@(\d+)@"/g, (_, name, i) => `${name}="${data.pictures[i]}"`);
}

for (const field of fields) field.addEventListener("input", show);
show();
