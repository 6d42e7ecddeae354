"use strict";
// Tables that sort and filter, results that unfold on demand, and the scale switch. No framework, nothing fetched.

const ROWS_AT_ONCE = 200;
const NUMBER = /^[<>≈~]?\s*([+−-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[+−-]?\d+)?)(?=$|[\s%×±(,;])/i;
const collator = new Intl.Collator("en", { numeric: true });

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// "93.5 ± 0.4" sorts as 93.5; text after all numbers; a dash or an empty cell last in both directions
function sortKey(text) {
  const trimmed = text.trim();
  if (/^([–—-]?|nan)$/i.test(trimmed)) return null;
  if (/^[+−-]?inf$/i.test(trimmed)) return /^[−-]/.test(trimmed) ? -Infinity : Infinity;
  const match = NUMBER.exec(trimmed);
  return match ? Number(match[1].replaceAll(",", "").replaceAll("−", "-")) : trimmed;
}

function compareKeys(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? (a < b ? -1 : a > b ? 1 : 0) : collator.compare(a, b);
}

// A table over `rows`, each {cells: texts, tr: element or null until shown}. `filters` are functions row -> boolean.
function interactive(table, rows, filters, status, more) {
  const headers = [...table.tHead.rows[0].cells];
  const original = rows.slice();
  let limit = ROWS_AT_ONCE;

  function show() {
    const kept = rows.filter((row) => filters.every((accepts) => accepts(row)));
    table.tBodies[0].replaceChildren(...kept.slice(0, limit).map((row) => (row.tr ??= makeRow(row, headers))));
    const shown = Math.min(limit, kept.length);
    const total = `${kept.length} ${kept.length === 1 ? "row" : "rows"}`;
    status.textContent = (shown < kept.length ? `${shown} of ${total} shown` : total) +
      (kept.length < rows.length ? `, ${rows.length - kept.length} filtered out` : "");
    more.hidden = shown === kept.length;
  }

  function sort(column) {
    const header = headers[column];
    const next = { ascending: "descending", descending: "none" }[header.ariaSort] ?? "ascending";
    headers.forEach((other) => other.setAttribute("aria-sort", other === header ? next : "none"));
    rows = original.slice();
    if (next !== "none") {
      const sign = next === "ascending" ? 1 : -1;
      const keys = new Map(rows.map((row) => [row, sortKey(row.cells[column])]));
      rows.sort((rowA, rowB) => {
        const a = keys.get(rowA), b = keys.get(rowB);
        return a === null || b === null ? (a === null) - (b === null) : sign * compareKeys(a, b);
      });
    }
    show();
  }

  headers.forEach((header, column) => {
    const button = element("button", { type: "button" }, ...header.childNodes);
    button.addEventListener("click", () => sort(column));
    header.scope = "col";
    header.setAttribute("aria-sort", "none");
    header.replaceChildren(button);
  });
  more.addEventListener("click", () => { limit += 5 * ROWS_AT_ONCE; show(); });
  show();
  return () => { limit = ROWS_AT_ONCE; show(); };
}

function makeRow(row, headers) {
  const cells = row.cells.map((text, column) =>
    element("td", { textContent: text, className: headers[column].className }));
  return element("tr", {}, ...cells);
}

const statusLine = () => element("span", { className: "status", role: "status" });
const moreButton = () => element("button", { type: "button", className: "more", textContent: "Show more" });
const contains = (text, input) => text.toLowerCase().includes(input.value.trim().toLowerCase());

// A table that is already on the page: a text box over all columns, and a choice for the column named in data-select
function enhance(table) {
  const rows = [...table.tBodies[0].rows].map((tr) => ({ cells: [...tr.cells].map((cell) => cell.textContent), tr }));
  const box = element("input", { type: "search" });
  const controls = [box];
  const filters = [(row) => contains(row.cells.join("\n"), box)];
  const tools = element("div", { className: "tools" }, element("label", {}, "Filter", box));
  if (table.dataset.select) {
    const column = Number(table.dataset.select);
    const choice = element("select", {}, new Option("all", ""));
    for (const text of new Set(rows.map((row) => row.cells[column]))) choice.add(new Option(text, text));
    filters.push((row) => !choice.value || row.cells[column] === choice.value);
    controls.push(choice);
    tools.append(element("label", {}, table.tHead.rows[0].cells[column].textContent, choice));
  }
  const status = statusLine(), more = moreButton();
  tools.append(status);
  table.parentElement.before(tools);
  table.parentElement.after(more);
  const refresh = interactive(table, rows, filters, status, more);
  controls.forEach((control) => control.addEventListener(control === box ? "input" : "change", refresh));
}

// JSON columns (lists, or codes into levels) as {names, rows}
function unpack(id) {
  const packed = JSON.parse(document.getElementById(`data-${id}`).textContent);
  const columns = Object.values(packed).map((c) => (Array.isArray(c) ? c.map(String) : c.codes.map((i) => c.levels[i])));
  const length = columns.length ? columns[0].length : 0;
  return {
    names: Object.keys(packed),
    rows: Array.from({ length }, (_, i) => ({ cells: columns.map((column) => column[i]), tr: null })),
  };
}

// Ours and the published numbers side by side under one set of filters; built when first opened
function explore(details) {
  const { ours, published } = details.dataset;
  const sources = [["Ours", unpack(ours)], ["Published", unpack(published)]].filter(([, data]) => data.rows.length);
  const tools = element("div", { className: "tools" });
  const columns = element("div", { className: sources.length > 1 ? "columns two" : "columns" });
  const inputs = ["method", "setting", "metric", "any column"].map((name) => {
    const input = element("input", { type: "search", name });
    const label = element("label", {}, name, input);
    if (name !== "any column") { // offer the values that occur
      const values = sources.flatMap(([, { names, rows }]) => rows.map((row) => row.cells[names.indexOf(name)]));
      const options = [...new Set(values)].sort(collator.compare).map((value) => new Option(value, value));
      label.append(element("datalist", { id: `${ours}-${name}` }, ...options));
      input.setAttribute("list", `${ours}-${name}`);
    }
    tools.append(label);
    return input;
  });
  for (const [title, { names, rows }] of sources) {
    const head = element("tr", {}, ...names.map((name) =>
      element("th", { textContent: name, className: name === "value" || name === "seed" ? "number" : "" })));
    const table = element("table", {}, element("thead", {}, head), element("tbody"));
    const scroll = element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `${title}: ${ours}` }, table);
    const status = statusLine(), more = moreButton();
    const caption = title === "Ours" ? `Ours: ${ours.replace("-", ", ")} scale` : "Published, with source";
    columns.append(element("div", {}, element("h5", { textContent: caption }), element("div", { className: "tools" }, status), scroll, more));
    const filters = inputs.map((input) => {
      const column = names.indexOf(input.name);
      return (row) => contains(column < 0 ? row.cells.join("\n") : row.cells[column], input);
    });
    const refresh = interactive(table, rows, filters, status, more);
    inputs.forEach((input) => input.addEventListener("input", refresh));
  }
  details.append(tools, columns);
}

function showScale(panel) {
  const paper = panel.closest(".paper");
  paper.querySelectorAll(".panel").forEach((other) => (other.hidden = other !== panel));
  paper.querySelectorAll(".switch a").forEach((link) => {
    if (link.hash === `#${panel.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
}

function followHash() {
  const panel = document.getElementById(location.hash.slice(1));
  if (!panel?.matches(".panel")) return;
  showScale(panel);
  panel.scrollIntoView();
}

document.querySelectorAll("table").forEach(enhance);
document.querySelectorAll(".explorer").forEach((details) =>
  details.addEventListener("toggle", () => explore(details), { once: true }));
document.querySelectorAll(".paper").forEach((paper) => {
  const panels = paper.querySelectorAll(".panel");
  if (panels.length) showScale(panels[panels.length - 1]); // the largest scale that has been run
});
addEventListener("hashchange", followHash);
followHash();
