"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
document.getElementById("facts").textContent = data.facts;

/** Tokens as a run of spans; `told` is what a token says when pointed at. */
function line(tokens, told, chosen = () => {}) {
  const spans = tokens.map((token, i) => {
    const span = make("span", { tabindex: "0" }, visible(token));
    span.addEventListener("mousemove", (event) => { chosen(i); tell(told(i), event.clientX, event.clientY); });
    span.addEventListener("mouseleave", () => { tip.hidden = true; });
    span.addEventListener("focus", () => chosen(i));
    return span;
  });
  return [make("p", { class: "tokens" }, ...spans), spans];
}

function shade(spans, values, top) {
  spans.forEach((span, i) => {
    const t = known(values[i]) && top > 0 ? values[i] / top : 0;
    span.style.background = known(values[i]) ? colour(0.6 * t) : "none";
  });
}

/** A button for each name, one of them pressed. */
function choice(names, label, pressed) {
  const group = make("div", { class: "unit", role: "group", "aria-label": label });
  const buttons = names.map((name, i) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => press(i));
    return button;
  });
  const press = (i) => {
    buttons.forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
    pressed(i);
  };
  group.append(...buttons);
  return [group, press];
}

function colouredTokens() {
  const lines = data.prompts.map((prompt) => {
    const told = (i) => [`${i}: ${JSON.stringify(prompt.tokens[i])}`,
      ...data.names.map((name, k) => `${name} ${show(prompt.values[k][i])}`)].join("\n");
    return line(prompt.tokens, told);
  });
  const paint = (k) => {
    const all = data.prompts.map((prompt) => Math.max(0, ...prompt.values[k].filter(known).map(Math.abs)));
    lines.forEach(([, spans], p) => shade(spans, data.prompts[p].values[k], Math.max(...all)));
  };
  const [group, press] = choice(data.names, "Value", paint);
  if (data.names.length > 1) main.append(make("div", { class: "controls" }, group));
  lines.forEach(([element], p) => {
    if (lines.length > 1) main.append(make("h3", {}, data.prompts[p].label));
    main.append(element);
  });
  press(0);
}

function attention() {
  const { tokens, layers, heads, weights } = data;
  const n = tokens.length;
  const at = (l, h, q, s) => weights[l][h][q * n + s];
  const image = (l, h) => picture(range(n).map((q) => range(n).map((s) => colour(at(l, h, q, s)))));
  let head = [0, 0], query = n - 1;

  const grid = make("div", { class: "heads" });
  grid.style.gridTemplateColumns = `auto repeat(${heads.length}, auto)`;
  grid.append(make("b"), ...heads.map((h) => make("b", {}, String(h))));
  const buttons = layers.map((layer, l) => {
    grid.append(make("b", {}, String(layer)));
    return heads.map((h, k) => {
      const name = `layer ${layer}, head ${h}`;
      const button = make("button", { type: "button", "aria-label": name, title: name },
        make("img", { src: image(l, k), alt: "" }));
      button.addEventListener("click", () => choose(l, k));
      grid.append(button);
      return button;
    });
  });

  const title = make("h3"), whole = make("img", { alt: "attention pattern: queries down, sources across" });
  const said = make("p", { class: "said" });
  const told = (i) => `${i}: ${JSON.stringify(tokens[i])}`;
  const [text, spans] = line(tokens, told, (i) => ask(i));
  const ask = (q) => {
    query = q;
    const row = range(n).map((s) => at(...head, q, s));
    shade(spans, row, 1);
    spans.forEach((span, i) => span.classList.toggle("here", i === q));
    const best = range(n).sort((a, b) => row[b] - row[a]).slice(0, 3).filter((s) => row[s] > 0);
    said.textContent = `From ${told(q)} to ${best.map((s) => `${told(s)} ${show(row[s])}`).join(", ")}`;
  };
  const choose = (l, h) => {
    head = [l, h];
    buttons.forEach((row, i) => row.forEach((b, k) => b.setAttribute("aria-pressed", String(i === l && k === h))));
    title.textContent = `Layer ${layers[l]}, head ${heads[h]}`;
    whole.src = image(l, h);
    ask(query);
  };
  whole.addEventListener("mousemove", (event) => {
    const box = whole.getBoundingClientRect();
    const place = (x, size) => Math.max(0, Math.min(n - 1, Math.floor((x / size) * n)));
    const q = place(event.clientY - box.top, box.height), s = place(event.clientX - box.left, box.width);
    ask(q);
    tell(`${told(q)} → ${told(s)}\n${show(at(...head, q, s))}`, event.clientX, event.clientY);
  });
  whole.addEventListener("mouseleave", () => { tip.hidden = true; });
  const pattern = make("div", { class: "pattern" }, title, text, said, whole);
  main.append(make("div", { class: "attention" }, grid, pattern));
  choose(0, 0);
}

({ tokens: colouredTokens, attention })[data.kind]();
