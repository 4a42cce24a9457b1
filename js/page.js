// Stands in for the kernel's model on a page of its own: pictures of every feature came with the page.

export class PageModel {
  constructor({ traits, pictures, store }) {
    this.values = { selected: -1, search: "", emotions: [], busy: false, problem: "", pictures: [], ...traits };
    this.all = pictures;
    this.store = store;
    this.reactions = new Map();
    this.look();
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    this.values[name] = value;
    if (name === "selected") this.look();
    for (const react of this.reactions.get(`change:${name}`) ?? []) react();
  }

  // Each picture lies in the page once, however many features show it.
  look() {
    const shown = this.all[this.values.selected] ?? [];
    this.values.pictures = shown.map((shot) => ({ ...shot, picture: this.store[shot.picture] }));
  }

  on(event, react) {
    this.reactions.set(event, [...(this.reactions.get(event) ?? []), react]);
  }

  off(event, react) {
    this.reactions.set(event, (this.reactions.get(event) ?? []).filter((other) => other !== react));
  }

  save_changes() {}
}
