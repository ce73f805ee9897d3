"use strict";

// Small functions without knowledge of the run.

function find(id) {
  return document.getElementById(id);
}

/** Create an element. Attributes that are properties of the element, such as `onclick`, are set as properties. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "style") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Create an SVG element. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function isOrAre(count) {
  return count === 1 ? "is" : "are";
}

function percent(part, whole) {
  return `${Math.round((100 * part) / whole)} %`;
}

function formatScore(score) {
  return score.toFixed(3);
}

/** Quote a word of a shell command if it contains special characters. */
function quoteForShell(word) {
  if (/^[\w./:@%+,=-]+$/.test(word)) return word;
  return `'${word.replaceAll("'", "'\\''")}'`;
}

function shellCommand(words) {
  return words.map(quoteForShell).join(" ");
}

/** Offer a file for download. */
function download(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Copy the text of a field, and say so. */
async function copyField(field, status) {
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    field.select(); // older browsers, and pages that are opened as a file
    document.execCommand("copy");
  }
  status.textContent = "Copied. Run it in a terminal, in the working directory of the first run.";
}

/** Return the rows of a CSV file. Fields may be quoted and may then contain commas, quotes and line breaks. */
function parseCsv(text) {
  const rows = [];
  const field = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|$)/gy; // value, then separator
  const content = text.replace(/^\uFEFF/, ""); // spreadsheets write a byte order mark
  let row = [];
  while (field.lastIndex < content.length || row.length) {
    const match = field.exec(content);
    if (match === null) throw new Error(`Row ${rows.length + 1} is not valid CSV. Check its quotes.`);
    const [, quoted, plain, separator] = match;
    row.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (separator === ",") continue;
    rows.push(row);
    row = [];
  }
  return rows;
}

/** Return rows as the text of a CSV file. */
function formatCsv(rows) {
  const quote = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return rows.map((row) => `${row.map(quote).join(",")}\n`).join("");
}
