"use strict";
// Every text goes in as text content; nothing is ever parsed as markup.

const SVG = document.getElementById("svg").namespaceURI;
const DARK = matchMedia("(prefers-color-scheme: dark)");
const LIGHT_SCALE = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7",
  "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"];
const DARK_SCALE = ["#b5e0ff", "#6cb8f0", "#3787c8", "#235d91", "#1d3c59", "#22272d",
  "#57342c", "#904332", "#c65b41", "#ef8a6b", "#ffcbb2"];
const tip = document.getElementById("tip");
let printing = false;

const range = (n) => Array.from({ length: n }, (_, i) => i);
const known = (x) => x !== null && Number.isFinite(x);
const show = (x, digits = 3) => (known(x) ? x.toFixed(digits).replace("-", "−") : "–");
const between = (low, high) => (known(low) && known(high) ? `[${show(low)}, ${show(high)}]` : "–");

const visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "→");

/** Words beside a point of the window. */
function tell(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? y - height - 10 : y + 18}px`;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(parent, tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

function canvas(parent, width, height, label) {
  const svg = draw(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.style.cssText = `width:100%;max-width:${width}px;height:auto`;
  return svg;
}

/** A diverging colour for t in [-1, 1]: the middle is the page's own ground. */
function colour(t) {
  const scale = DARK.matches && !printing ? DARK_SCALE : LIGHT_SCALE;
  const at = (Math.max(-1, Math.min(1, t)) + 1) * 5;
  const low = Math.min(9, Math.floor(at));
  const parts = [1, 3, 5].map((i) => {
    const [a, b] = [scale[low], scale[low + 1]].map((hex) => parseInt(hex.slice(i, i + 2), 16));
    return Math.round(a + (b - a) * (at - low));
  });
  return `rgb(${parts.join(",")})`;
}

/** Colours [row][column] as an image; several pixels a cell, lest a printer smooth them. */
function picture(colours) {
  const rows = colours.length, columns = colours[0].length;
  const size = rows * columns > 20000 ? 1 : 6;
  const surface = make("canvas", { width: columns * size, height: rows * size });
  const pen = surface.getContext("2d");
  colours.forEach((row, y) => row.forEach((fill, x) => {
    pen.fillStyle = fill;
    pen.fillRect(x * size, y * size, size, size);
  }));
  return surface.toDataURL("image/png");
}

function ticks(low, high, most = 5) {
  const span = high - low || 1;
  const unit = 10 ** Math.floor(Math.log10(span / most));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => span / s <= most) ?? 10 * unit;
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.max(0, Math.floor(high / step + 1e-9) - first + 1);
  return { step, at: range(count).map((i) => (first + i) * step) };
}

const decimals = (step) => Math.max(0, -Math.floor(Math.log10(step) + 1e-9));

/** Math.max takes only so many arguments: the maxima of slices. */
function chunks(values) {
  return range(Math.ceil(values.length / 10000)).map((i) => Math.max(...values.slice(i * 10000, (i + 1) * 10000)));
}

function table(rows) {
  const body = make("tbody");
  for (const [name, value] of rows) {
    const cell = value.includes("\n") ? make("pre", {}, value) : value;
    body.append(make("tr", {}, make("td", {}, name), make("td", {}, cell)));
  }
  return make("table", {}, body);
}
