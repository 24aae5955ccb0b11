"use strict";
// Headings of sortable tables become buttons: first a press that sorts up (numbers: down), then the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const order = new Map(Array.from(body.rows, (row, index) => [row, index]));
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const way = head.getAttribute("aria-sort") === first ? second : first;
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way);
      const sign = way === "ascending" ? 1 : -1;
      const compare = (one, two) => {
        const [a, b] = [value(one, column), value(two, column)];
        // What is no number stands last, whichever way the numbers run.
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        const by = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return sign * by || order.get(one) - order.get(two);
      };
      body.append(...Array.from(body.rows).sort(compare));
    });
  });
}
