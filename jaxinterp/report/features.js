const DATA = JSON.parse(document.getElementById("data").textContent);
const ROW = 48; // pixels, as in features.css
const get = (id) => document.getElementById(id);
const [list, rows, page, search] = ["list", "rows", "page", "search"].map(get);
const COUNT = DATA.number.length;
const PLACE = new Map(DATA.number.map((number, i) => [number, i]));

const short = (x) => (known(x) ? String(Number(x.toPrecision(3))).replace("-", "−") : "–");
const percent = (x) => (x > 0 ? `${short(100 * x)}%` : "never");
const whole = (n) => n.toLocaleString("en");
const text = (token) => visible(DATA.texts[token]);
const chip = (token) => make("code", { class: "chip" }, text(token));
const factor = (x) => ({ 0: "ablated", 2: "doubled" })[x] ?? `times ${short(x)}`;

/** A feature's page, unpacked. */
async function unpack(i) {
  const bytes = Uint8Array.from(atob(DATA.features[i]), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

// The list: what is chosen, in which order

const SORTS = [
  { name: "density", of: DATA.density, show: percent },
  { name: "largest activation", of: DATA.max, show: short },
  { name: "number", of: DATA.number, show: (_, i) => percent(DATA.density[i]), up: true },
  ...DATA.factors.map((x, k) => ({ name: `effect when ${factor(x)}`, of: DATA.effects[k], show: short })),
];
let sort = SORTS[0], up = false, order = [], current = -1;

const rarest = DATA.density.reduce((low, x) => (x > 0 ? Math.min(low, x) : low), 0.1);
const FLOOR = Math.floor(Math.log10(rarest)); // below it, what is never active
for (const [id, value] of [["least", FLOOR], ["most", 0]]) {
  Object.assign(get(id), { min: FLOOR, max: 0, value });
  get(id).addEventListener("input", choose);
}

/** Whether a feature's tokens, or its number, fit what is searched for. */
function searched() {
  const asked = search.value.toLowerCase();
  if (!asked.trim()) return () => true;
  const number = /^\s*#?\d+\s*$/.test(asked) ? Number(asked.replace("#", "")) : null;
  const hit = DATA.texts.map((token) => visible(token).toLowerCase().includes(asked));
  const lists = [DATA.peaks, DATA.raised, DATA.lowered];
  return (i) => DATA.number[i] === number || lists.some((tokens) => tokens[i].some((token) => hit[token]));
}

function choose() {
  const least = Number(get("least").value), most = Number(get("most").value), fits = searched();
  const from = least <= FLOOR ? -1 : 10 ** least, to = most >= 0 ? 2 : 10 ** most;
  get("reach").textContent = `Density ${from < 0 ? "any" : percent(from)} to ${percent(Math.min(to, 1))}`;
  get("least").setAttribute("aria-valuetext", from < 0 ? "any" : percent(from));
  get("most").setAttribute("aria-valuetext", percent(Math.min(to, 1)));
  order = range(COUNT).filter((i) => DATA.density[i] >= from && DATA.density[i] <= to && fits(i));
  const sign = up ? 1 : -1, { of } = sort;
  order.sort((a, b) => (known(of[b]) - known(of[a])) || sign * (of[a] - of[b]) || a - b);
  get("shown").textContent = order.length ? `${whole(order.length)} of ${whole(COUNT)} features` : "No feature fits.";
  rows.style.height = `${order.length * ROW}px`;
  list.scrollTop = 0;
  showRows(true);
  turns();
}

// Only the rows in sight exist; each moves to where it is needed

const pool = [];
function showRows(anew = false) {
  const wanted = Math.min(order.length, Math.ceil(list.clientHeight / ROW) + 10);
  while (pool.length < wanted) {
    const [number, figure, words] = [make("b"), make("i"), make("span")];
    const root = make("div", { class: "row", role: "option" }, number, figure, words);
    pool.push({ root, number, figure, words, at: -1 });
    rows.append(root);
    anew = true;
  }
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  for (let at = first; at < first + pool.length; at += 1) {
    const row = pool[at % pool.length];
    if (anew || row.at !== at) fill(row, at);
  }
}

function fill(row, at) {
  const i = order[at];
  row.at = at;
  row.root.style.display = i === undefined ? "none" : "";
  if (i === undefined) return;
  row.root.style.top = `${at * ROW}px`;
  const said = { id: `row-${DATA.number[i]}`, "aria-selected": i === current, "aria-setsize": order.length, "aria-posinset": at + 1 };
  for (const [name, value] of Object.entries(said)) row.root.setAttribute(name, value);
  row.number.textContent = DATA.number[i];
  row.figure.textContent = sort.show(sort.of[i], i);
  row.words.replaceChildren(...DATA.peaks[i].map(chip));
}

/** Bring the open feature's row into sight. */
function reveal() {
  const at = order.indexOf(current);
  if (at < 0) return list.removeAttribute("aria-activedescendant");
  const top = at * ROW, room = list.clientHeight - ROW;
  if (top < list.scrollTop || top > list.scrollTop + room) list.scrollTop = Math.max(0, top - room / 2);
  showRows(true);
  return list.setAttribute("aria-activedescendant", `row-${DATA.number[current]}`);
}

function go(i, replace = false) {
  if (i === undefined) return;
  const hash = `#${DATA.number[i]}`;
  if (replace) location.replace(hash);
  else location.hash = hash;
}

/** Open the feature so many places further on in the list. */
function step(places) {
  const at = order.indexOf(current);
  go(order[at < 0 ? 0 : Math.max(0, Math.min(order.length - 1, at + places))], true);
}

// A feature's page

function heading(i) {
  get("name").textContent = `Feature ${DATA.number[i]}`;
  document.title = `Feature ${DATA.number[i]} · ${DATA.title}`;
  const all = DATA.counted ? ` of ${whole(DATA.counted)} tokens` : " of tokens";
  const facts = make("p", { class: "facts" }, "active on ", make("b", {}, percent(DATA.density[i])), all);
  if (known(DATA.max[i])) facts.append(" · largest activation ", make("b", {}, short(DATA.max[i])));
  return facts;
}

function turns() {
  const at = order.indexOf(current);
  get("turn").textContent = at < 0 ? "not in the list" : `${whole(at + 1)} of ${whole(order.length)}`;
}

function histogram(one, box) {
  const width = 330, height = 176, left = 34, bottom = 20, n = Math.max(one.count.length, 1);
  const most = Math.max(1, ...one.count), tall = height - bottom - 8;
  const svg = canvas(box, width, height, `histogram of ${whole(one.count.reduce((a, b) => a + b, 0))} active tokens by activation, counts on a logarithmic scale`);
  const x = (value) => left + (value / (one.width * n)) * (width - left - 6);
  const y = (count) => height - bottom - (Math.log10(1 + count) / Math.log10(1 + most)) * tall;
  for (let tick = 1; tick <= most; tick *= 10) {
    draw(svg, "path", { class: "rule", d: `M${left} ${y(tick)}H${width - 6}` });
    draw(svg, "text", { class: "soft", x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, tick < 1000 ? tick : `1e${Math.round(Math.log10(tick))}`);
  }
  one.count.forEach((count, i) => {
    if (!count) return;
    const [from, to] = [x(i * one.width), x((i + 1) * one.width)];
    const bar = draw(svg, "rect", { class: "column", x: from, y: y(count), width: Math.max(1, to - from - 1), height: height - bottom - y(count) });
    draw(bar, "title", {}, `${short(i * one.width)} to ${short((i + 1) * one.width)}: ${whole(count)} tokens`);
  });
  const parts = one.limits.slice(1, -1).map(([low]) => low).filter(known);
  parts.forEach((low) => draw(svg, "path", { class: "limit", d: `M${x(low)} 4V${height - bottom}` }));
  const { step: apart, at } = ticks(0, one.width * n, 6);
  at.forEach((v) => draw(svg, "text", { class: "soft", x: x(v), y: height - 5, "text-anchor": "middle" }, show(v, decimals(apart))));
}

function bars(tokens, changes, limit, name) {
  const box = make("div", { class: "bars", role: "group", "aria-label": name });
  tokens.forEach((token, k) => {
    const bar = make("div", { "aria-hidden": "true" }), t = changes[k] / limit;
    bar.style.cssText = `width:${100 * Math.abs(t)}%;background:${colour(0.62 * Math.sign(t))}`;
    box.append(chip(token), bar, make("i", {}, short(changes[k])));
  });
  return box;
}

function effects(one, box) {
  const all = [0, ...one.effect.flat()].filter(known), [from, to] = [Math.min(...all), Math.max(...all)];
  const x = (v) => 8 + ((v - from) / (to - from || 1)) * 314, height = one.effect.length * 46 + 4;
  const said = one.effect.map(([mean], k) => `${factor(DATA.factors[k])} ${short(mean)}`).join(", ");
  const svg = canvas(box, 330, height, `change of ${DATA.metric} per active token: ${said}`);
  draw(svg, "path", { class: "rule", d: `M${x(0)} 0V${height}` });
  one.effect.forEach(([mean, low, high], k) => {
    const y = 36 + k * 46, bounds = known(low) ? `  [${short(low)}, ${short(high)}]` : "";
    draw(svg, "text", { x: 8, y: y - 18 }, factor(DATA.factors[k]));
    draw(svg, "text", { class: "soft", x: 322, y: y - 18, "text-anchor": "end" }, `${short(mean)}${bounds}`);
    if (known(low)) draw(svg, "path", { class: "whisker", d: `M${x(low)} ${y}H${x(high)}` });
    if (known(mean)) draw(svg, "path", { class: "diamond", d: `M${x(mean)} ${y - 6}l5 6l-5 6l-5 -6z` });
  });
}

function near(one) {
  const items = one.other.map((number, k) => {
    const i = PLACE.get(number), here = i !== undefined;
    const name = here ? make("a", { href: `#${number}` }, String(number)) : make("span", {}, String(number));
    const words = here ? DATA.peaks[i].slice(0, 2).map(chip) : [];
    return make("li", {}, name, " ", make("i", {}, short(one.cosine[k])), " ", ...words);
  });
  return make("ul", { class: "near" }, ...items);
}

/** An example: its tokens, each as red as the feature is active on it. */
function line([prompt, position, peak, tokens, values], top, where) {
  const active = tokens.map((token, k) => [token, values[k]]).filter(([, v]) => v > 0);
  const spoken = active.map(([token, v]) => `${JSON.stringify(DATA.texts[token])} ${short(v)}`).join("\n");
  const spans = tokens.map((token, k) => {
    const span = make("span", { "data-token": k }, text(token));
    if (k === peak) span.className = "peak";
    if (values[k] > 0) span.style.background = colour(0.6 * Math.min(1, values[k] / top));
    return span;
  });
  const run = make("p", { class: "tokens" }, ...spans);
  const label = `${short(values[peak])}: ${tokens.map(text).join("")}`;
  const box = make("div", { class: "line", tabindex: 0, role: "group", "aria-label": label }, make("i", {}, short(values[peak])), run);
  const told = (k) => `${JSON.stringify(DATA.texts[tokens[k]])} ${short(values[k])}\nprompt ${whole(prompt)}, token ${position + k - peak}`;
  run.addEventListener("mousemove", (event) => {
    const k = event.target.dataset.token;
    if (k === undefined) tip.hidden = true;
    else tell(told(Number(k)), event.clientX, event.clientY);
  });
  run.addEventListener("mouseleave", () => { tip.hidden = true; });
  box.addEventListener("focus", () => {
    if (!box.matches(":focus-visible")) return;
    const { left, bottom } = run.getBoundingClientRect();
    tell(`${where}, prompt ${whole(prompt)}\n${spoken}`, left, bottom - 14);
  });
  box.addEventListener("blur", () => { tip.hidden = true; });
  return box;
}

function group(examples, k, one, i) {
  const [low, high] = one.limits[k], span = known(low) ? `${short(low)} to ${short(high)}` : "";
  const name = k ? `${DATA.groups[k]} of active tokens` : "Top examples";
  const title = make("h3", {}, name, make("small", {}, span));
  const box = make("section", { class: "group", "aria-label": name }, title);
  box.append(...examples.map((example) => line(example, DATA.max[i], name)));
  if (!examples.length) box.append(make("p", { class: "hint" }, "There are none."));
  return box;
}

function card(name, ...inside) {
  return make("div", {}, make("h3", {}, name), ...inside);
}

async function open() {
  const asked = location.hash.length > 1 ? PLACE.get(Number(location.hash.slice(1))) : undefined;
  const i = asked ?? order[0] ?? 0;
  current = i;
  const one = await unpack(i);
  if (current !== i) return; // another was asked for meanwhile
  const spread = make("figure"), cards = make("div", { class: "cards" });
  if (one.count.length) {
    histogram(one, spread);
    const dashed = one.limits.length > 2 ? [make("p", { class: "hint" }, "Dashed: between the intervals below.")] : [];
    cards.append(card("Active tokens by activation", spread, ...dashed));
  }
  if (one.change) {
    const limit = Math.max(...one.change.flat().map(Math.abs)) || 1;
    cards.append(card("Tokens raised", bars(DATA.raised[i], one.change[0], limit, "logits raised most")),
      card("Tokens lowered", bars(DATA.lowered[i], one.change[1], limit, "logits lowered most")));
  }
  if (one.effect) {
    const drawn = make("figure"), hint = `per active token; 95% over prompts; ${whole(one.active)} active tokens`;
    cards.append(card(`Change of ${DATA.metric}`, drawn, make("p", { class: "hint" }, hint)));
    effects(one, drawn);
  }
  if (one.other) cards.append(card("Nearest decoder rows, by cosine", near(one)));
  const groups = one.examples[0].length ? one.examples.map((examples, k) => group(examples, k, one, i))
    : [make("p", { class: "notes" }, "The feature is active on no token of the corpus.")];
  tip.hidden = true;
  page.replaceChildren(heading(i), cards, ...groups);
  reveal();
  turns();
  if (page.parentNode.getBoundingClientRect().top < 0) page.parentNode.scrollIntoView();
}

// Controls and keys

SORTS.forEach(({ name }, k) => get("sort").append(make("option", { value: k }, name)));
function direct(rising) {
  up = rising;
  get("way").textContent = up ? "↑" : "↓";
  get("way").setAttribute("aria-label", up ? "Least first" : "Greatest first");
  get("way").title = up ? "least first" : "greatest first";
  choose();
}
get("sort").addEventListener("change", () => { sort = SORTS[get("sort").value]; direct(Boolean(sort.up)); });
get("way").addEventListener("click", () => direct(!up));
search.addEventListener("input", choose);
search.addEventListener("keydown", (event) => {
  if (event.key === "Enter") go(order[0]);
  if (event.key === "Escape") { search.value = ""; choose(); search.blur(); }
});
get("previous").addEventListener("click", () => step(-1));
get("next").addEventListener("click", () => step(1));
list.addEventListener("scroll", () => showRows(), { passive: true });
list.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row) go(PLACE.get(Number(row.id.slice(4))));
});
list.addEventListener("keydown", (event) => {
  const leap = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const places = { ArrowDown: 1, ArrowUp: -1, PageDown: leap, PageUp: -leap, Home: -COUNT, End: COUNT }[event.key];
  if (places === undefined) return;
  event.preventDefault();
  step(places);
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const way = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (way) step(way);
  else if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); }
});
new ResizeObserver(() => showRows()).observe(list);
addEventListener("hashchange", open);
DARK.addEventListener("change", open);

get("facts").textContent = DATA.facts.join(" · ");
if (DATA.record.length) {
  get("extra").append(table(DATA.record));
  get("extra").hidden = false;
}
direct(false);
open();
