// What the report does beyond standing there: columns sort, sample translations are searched, sorted and filtered.
// Without it the page shows everything in its own order.
"use strict";

const collator = new Intl.Collator(undefined, { numeric: true });

// A cell is its first number; a cell without one is its text.
function valueOf(cell) {
  const text = cell.firstChild?.textContent.trim() ?? "";
  const number = text.replaceAll(",", "").replace("−", "-").match(/^[-+]?(\d+\.?\d*(e[-+]?\d+)?|∞)%?/);
  return number ? Number(number[0].replace("%", "").replace("∞", "Infinity")) : text;
}

function compare(a, b, way) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is empty comes last, either way round
  return way * (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b)));
}

function sortable(table) {
  const [body] = table.tBodies;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const way = head.ariaSort === "descending" ? 1 : -1; // the best is first at the first click
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = way < 0 ? "descending" : "ascending";
      const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
      rows.sort(([a], [b]) => compare(a, b, way));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function browser(place) {
  const form = place.querySelector("form");
  const cards = [...place.querySelectorAll("article")];
  const text = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const few = Number(place.dataset.few);
  let all = false;

  function show() {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const policy = form.elements.policy.value;
    const [key, way] = form.elements.order.value.split(" ");
    const found = cards.filter((card) => words.every((word) => text.get(card).includes(word)));
    found.sort((a, b) => way * (a.dataset[key] - b.dataset[key]));
    const shown = all ? found : found.slice(0, few);
    cards.forEach((card) => (card.hidden = true));
    shown.forEach((card) => (card.hidden = false));
    form.after(...found);
    for (const output of place.querySelectorAll(".output")) {
      output.hidden = policy !== "" && output.dataset.policy !== policy;
    }
    const more = form.elements.more;
    more.hidden = all || found.length <= few;
    more.textContent = `Show all ${found.length}`;
    form.querySelector("output").value = `${shown.length} of ${cards.length} shown`;
  }

  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.more.addEventListener("click", () => { all = true; show(); });
  show();
}

document.querySelectorAll("main table").forEach(sortable);
document.querySelectorAll(".samples").forEach(browser);
