// A click on a column's heading sorts its table; a second one turns the order round. What is not known stays last.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const keyed = [...body.rows].map((row) => [key(row.cells[column]), row]);
      keyed.sort(([a], [b]) => compare(a, b, ascending ? 1 : -1));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

// What a column means is told at each of its numbers.
for (const table of document.querySelectorAll("table")) {
  const meanings = [...(table.tHead?.rows[0].cells ?? [])].map((heading) => heading.title);
  for (const row of table.tBodies[0].rows) {
    meanings.forEach((meaning, column) => { if (meaning && row.cells[column]) row.cells[column].title = meaning; });
  }
}

function key(cell) {
  const text = "key" in cell.dataset ? cell.dataset.key : cell.textContent.trim();
  return text === "" || text === "–" ? null : isNaN(text) ? text : Number(text);
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}
