"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const WIDTH = 416, PAD = 10, HIGH = 24;
const main = document.getElementById("main");

const short = (x) => (known(x) ? String(Number(x.toPrecision(3))).replace("-", "−") : "–");
const minus = (text) => text.replace(/(^|[\s[(])-(?=\d)/g, "$1−");

/** One axis for each metric: what is compared stands on the same. */
const axes = new Map();
for (const { experiments } of DATA.sections) {
  for (const { axis, rows, margin } of experiments) {
    const reach = axes.get(axis) ?? [0, 0];
    const seen = rows.flatMap((row) => [row.low, row.high, ...(row.dots ?? [])]);
    for (const x of [...seen, margin, margin && -margin].filter(known)) {
      reach[0] = Math.min(reach[0], x);
      reach[1] = Math.max(reach[1], x);
    }
    axes.set(axis, reach);
  }
}

function scale(axis) {
  const [low, high] = axes.get(axis);
  const room = high - low || 1;
  return (x) => PAD + ((x - low) / room) * (WIDTH - 2 * PAD);
}

function interval(parent, row, at, margin) {
  const svg = canvas(parent, WIDTH, HIGH, `${row.label}: ${row.said}`);
  const middle = HIGH / 2;
  if (known(margin)) {
    draw(svg, "rect", { class: "margin", x: at(-margin), width: at(margin) - at(-margin), y: 0, height: HIGH });
  }
  draw(svg, "line", { class: "zero", x1: at(0), x2: at(0), y1: 0, y2: HIGH });
  (row.dots ?? []).forEach((x, i) => {
    draw(svg, "circle", { class: "dot", cx: at(x), cy: middle + ((i * 7) % 13) - 6, r: 2 });
  });
  draw(svg, "line", { class: "whisker", x1: at(row.low), x2: at(row.high), y1: middle, y2: middle });
  const x = at(row.estimate);
  draw(svg, "path", { class: "diamond", d: `M${x - 5},${middle}l5,-5l5,5l-5,5z` });
  svg.addEventListener("mousemove", (event) => tell(`${row.label}\n${minus(row.said)}`, event.clientX, event.clientY));
  svg.addEventListener("mouseleave", () => { tip.hidden = true; });
}

function ruler(parent, axis, name) {
  const at = scale(axis), [low, high] = axes.get(axis);
  const svg = canvas(parent, WIDTH, 34, `axis: change of ${name}`);
  draw(svg, "line", { class: "rule", x1: PAD, x2: WIDTH - PAD, y1: 1, y2: 1 });
  const { step, at: marks } = ticks(low, high);
  for (const x of marks) {
    draw(svg, "line", { class: "rule", x1: at(x), x2: at(x), y1: 1, y2: 5 });
    const anchor = at(x) < 20 ? "start" : at(x) > WIDTH - 20 ? "end" : "middle";
    draw(svg, "text", { class: "soft", x: at(x), y: 17, "text-anchor": anchor }, show(x, decimals(step)));
  }
  draw(svg, "text", { class: "soft", x: WIDTH / 2, y: 31, "text-anchor": "middle" }, `change of ${name}`);
}

function forest(experiment) {
  const at = scale(experiment.axis), body = make("tbody");
  for (const row of experiment.rows) {
    const plot = make("td", { class: "plot" });
    interval(plot, row, at, experiment.margin);
    const kind = [row.beside && "beside", row.changed && "changed"].filter(Boolean).join(" ");
    const numbers = [make("div", {}, minus(row.said))];
    if (row.p !== null) numbers.push(make("div", { class: "p" }, `p ${row.p}`));
    body.append(make("tr", { class: kind }, make("td", { class: "label" }, row.label), plot,
      make("td", { class: "n" }, ...numbers), make("td", { class: "verdict" }, row.verdict)));
  }
  const end = make("td", { class: "plot" });
  ruler(end, experiment.axis, experiment.facts[1]);
  body.append(make("tr", {}, make("td"), end, make("td"), make("td")));
  return make("div", { class: "scroll" }, make("table", { class: "forest" }, body));
}

function prompts(rows) {
  const head = make("tr", {}, ...["prompt", "without", "with"].map((name) => make("th", {}, name)));
  const body = rows.map(([text, ...values]) => make("tr", {}, make("td", {}, text),
    ...values.map((x) => make("td", { class: "n" }, short(x)))));
  return make("details", {}, make("summary", {}, `The ${rows.length} prompts`),
    make("table", { class: "prompts" }, make("thead", {}, head), make("tbody", {}, ...body)));
}

function block(experiment) {
  const { name, said, heading, note, facts, left_out: more } = experiment;
  const article = make("article", {}, make("h3", {}, name),
    make("p", { class: "facts" }, [heading, ...facts].filter(Boolean).join(" · ")));
  if (note) article.append(make("p", { class: "did" }, note));
  for (const text of said) article.append(make("p", { class: "did" }, `${text[0].toUpperCase()}${minus(text.slice(1))}.`));
  article.append(forest(experiment));
  if (more) article.append(make("p", { class: "hint" }, `${more} more are not shown.`));
  if (experiment.prompts) article.append(prompts(experiment.prompts));
  return article;
}

function section(title, ...children) {
  main.append(make("section", {}, make("h2", {}, title), ...children));
}

document.getElementById("facts").replaceWith(Object.assign(table(DATA.facts), { id: "facts" }));
for (const { title, experiments } of DATA.sections) section(title, ...experiments.map(block));
section("Not shown", make("ul", { class: "open" },
  ...[...DATA.limits, ...DATA.caveats].map((text) => make("li", {}, text))));
section("On record", make("div", { class: "record" }, table(DATA.record)));
