const DATA = JSON.parse(document.getElementById("data").textContent);
const RIGHT = 112; // the colour bar and its words

/** One result: its numbers and what is chosen; then the functions that draw it. */
class Section {
  constructor(data, number) {
    this.data = data;
    this.strides = data.axes.map((_, i) => data.axes.slice(i + 1).reduce((n, a) => n * a.labels.length, 1));
    this.axis = Object.fromEntries(data.axes.map((axis, i) => [axis.name, { ...axis, stride: this.strides[i] }]));
    this.cells = data.axes.reduce((n, a) => n * a.labels.length, 1);
    this.unit = data.defined ? "share" : "metric";
    this.prompt = -1;
    this.pin = data.top[0] ?? 0;
    this.hover = null;
    const page = document.getElementById("section").content.cloneNode(true);
    this.root = page.firstElementChild;
    this.root.id = `site-${number}`;
    this.find = (what) => this.root.querySelector(what);
    document.getElementById("main").append(page);
    this.head();
    this.controls();
    this.record();
    this.redraw();
  }

  index(cell, name) {
    const { stride, labels } = this.axis[name];
    return Math.floor(cell / stride) % labels.length;
  }

  /** The cell with one index changed. */
  moved(cell, name, index) {
    return cell + (index - this.index(cell, name)) * this.axis[name].stride;
  }

  name(cell, exact = false) {
    return this.data.axes.map(({ name, labels, tokens, exact: raw }) => {
      const i = this.index(cell, name);
      const token = tokens ? ` ${exact ? JSON.stringify(raw[i]) : tokens[i]}` : "";
      return `${name} ${labels[i]}${token}`;
    }).join(" · ");
  }

  stats() { return this.unit === "share" ? this.data.share_stats : this.data.metric_stats; }

  value(cell) {
    const { clean, corrupted, values, prompts } = this.data;
    if (this.prompt < 0) return this.stats().mean[cell];
    const v = values[cell * prompts.length + this.prompt];
    if (this.unit === "metric" || v === null) return v;
    const [a, b] = [corrupted.values[this.prompt], clean.values[this.prompt]];
    return known(a) && known(b) && a !== b ? (v - a) / (b - a) : null;
  }

  /** Where the colours part: the unpatched run. */
  centre() {
    if (this.unit === "share") return this.data.noising ? 1 : 0;
    const base = this.data.noising ? this.data.clean : this.data.corrupted;
    return (this.prompt < 0 ? base.mean : base.values[this.prompt]) ?? 0;
  }

  head() {
    const { data } = this;
    const over = make("small", {}, `by ${data.axes.map((a) => a.name).join(", ")}`);
    this.find("h2").append(data.name, over);
    const facts = this.find(".facts");
    for (const key of ["clean", "corrupted"]) {
      const { mean, std } = data[key];
      facts.append(`${key} `, make("b", {}, show(mean)), known(std) ? ` ± ${show(std, 2)}` : "", "   ·   ");
    }
    const own = data.facts.filter((fact) => !COMMON.includes(fact) && fact !== data.name);
    facts.append("gap ", make("b", {}, show(data.gap)), ...own.map((fact) => `   ·   ${fact}`));
    this.find(".notes").textContent = data.notes.map((n) => n[0].toUpperCase() + n.slice(1)).join(" ");
  }

  controls() {
    const { data } = this;
    for (const button of this.root.querySelectorAll(".unit button")) {
      if (button.dataset.unit === "metric") button.textContent = data.metric;
      else button.disabled = !data.defined;
      button.onclick = () => { this.unit = button.dataset.unit; this.redraw(); };
    }
    const select = this.find("select");
    select.append(make("option", { value: -1 }, `mean of ${data.prompts.length}`));
    data.prompts.forEach((prompt, i) => {
      const text = prompt.clean ?? "";
      const short = text.length > 60 ? `${text.slice(0, 59)}…` : text;
      select.append(make("option", { value: i }, short ? `${prompt.label}: ${short}` : prompt.label));
    });
    select.onchange = () => { this.prompt = Number(select.value); this.redraw(); };
    select.disabled = data.values === null;
    this.sliders = data.rest.map((name) => {
      const input = make("input", { type: "range", min: 0, max: this.axis[name].labels.length - 1, "aria-label": name });
      const output = make("output");
      input.oninput = () => { this.pin = this.moved(this.pin, name, Number(input.value)); this.redraw(); };
      this.find(".sliders").append(make("label", {}, name, input, output));
      return () => {
        const i = this.index(this.pin, name), { labels, tokens } = this.axis[name];
        input.value = i;
        output.textContent = tokens ? `${labels[i]} ${tokens[i]}` : labels[i];
      };
    });
  }

  record() { this.find(".record").append(table(this.data.record)); }

  redraw() {
    const values = range(this.cells).map((cell) => this.value(cell));
    const centre = this.centre();
    const limit = Math.max(...chunks(values.map((v) => (known(v) ? Math.abs(v - centre) : 0)))) || 1;
    this.tint = (v) => (known(v) ? colour((v - centre) / limit)
      : getComputedStyle(document.body).getPropertyValue("--none"));
    for (const button of this.root.querySelectorAll(".unit button")) {
      button.setAttribute("aria-pressed", button.dataset.unit === this.unit);
    }
    this.sliders.forEach((update) => update());
    this.texts();
    this.map(values, centre, limit);
    this.top();
    this.detail();
  }

  /** The prompt's two texts, with the words that differ marked. */
  texts() {
    const box = this.find(".texts"), prompt = this.data.prompts[this.prompt];
    box.replaceChildren();
    if (!prompt) return;
    const words = ["clean", "corrupted"].map((key) => (prompt[key] ?? "").split(/(\s+)/));
    const aligned = words[0].length === words[1].length;
    ["clean", "corrupted"].forEach((key, side) => {
      if (prompt[key] === undefined) return;
      const differs = (w, i) => aligned && w !== words[1 - side][i];
      const code = make("code", {}, ...words[side].map((w, i) => (differs(w, i) ? make("mark", {}, w) : w)));
      const baseline = show(this.data[key].values[this.prompt], 2);
      box.append(make("span", {}, key), make("span", {}, code, `  (${this.data.metric} ${baseline})`));
    });
  }

  /** The heat map: one image of cells under a grid of gutters, words around it. */
  map(values, centre, limit) {
    const across = this.axis[this.data.across], up = this.axis[this.data.up] ?? null;
    const columns = across.labels.length, rows = up ? up.labels.length : 1;
    const w = Math.max(2, Math.min(60, 640 / columns)), h = up ? Math.max(7, Math.min(22, 480 / rows)) : 64;
    const labels = across.tokens ?? across.labels, turned = labels.some((t) => t.length > 3);
    const ups = up ? up.tokens ?? up.labels : [];
    const longest = Math.max(0, ...ups.map((t) => t.length));
    const left = up ? Math.max(46, 24 + longest * 6.5) : 24, top = 8;
    const bottom = turned ? 34 + Math.max(...labels.map((t) => t.length)) * 4.6 : 40;
    const width = columns * w, height = rows * h, fromTop = !up || up.name === "position";
    const row = (i) => (fromTop ? i : rows - 1 - i);

    const figure = this.find(".map");
    figure.replaceChildren();
    const svg = canvas(figure, left + width + RIGHT, top + height + bottom,
      `${this.data.name}: heat map of ${this.unit} by ${this.data.axes.map((a) => a.name).join(", ")}`);
    svg.setAttribute("tabindex", 0);
    const at = (x, y) => {
      const cell = this.moved(this.pin, across.name, x);
      return up ? this.moved(cell, up.name, row(y)) : cell;
    };
    const colours = range(rows).map((y) => range(columns).map((x) => this.tint(values[at(x, y)])));
    draw(svg, "image", { href: picture(colours), x: left, y: top, width, height, preserveAspectRatio: "none" });
    if (w > 6 && h > 5) {
      const lines = range(columns + 1).map((x) => `M${left + x * w} ${top}v${height}`)
        .concat(range(rows + 1).map((y) => `M${left} ${top + y * h}h${width}`));
      draw(svg, "path", { class: "gutter", d: lines.join(""), "stroke-width": 1 });
    }
    const wide = turned ? 13 : 8 + 7 * Math.max(...labels.map((t) => t.length));
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => s * w >= wide) ?? 5000, skip = Math.ceil(13 / h);
    for (let i = 0; i < columns; i += step) {
      const x = left + (i + 0.5) * w, y = top + height + 14;
      const place = turned ? { x: x + 3, y: y - 2, "text-anchor": "end", transform: `rotate(-45 ${x + 3} ${y - 2})` }
        : { x, y, "text-anchor": "middle" };
      draw(svg, "text", place, labels[i]);
    }
    for (let i = 0; up && i < rows; i += skip > 1 ? Math.max(5, skip) : 1) {
      draw(svg, "text", { x: left - 7, y: top + (row(i) + 0.5) * h + 4, "text-anchor": "end" }, ups[i]);
    }
    draw(svg, "text", { class: "soft", x: left + width / 2, y: top + height + bottom - 6, "text-anchor": "middle" }, across.name);
    if (up) {
      const y = top + height / 2;
      draw(svg, "text", { class: "soft", x: 11, y, "text-anchor": "middle", transform: `rotate(-90 11 ${y})` }, up.name);
    }
    this.bar(svg, left + width + 18, top, Math.max(height, 44), centre, limit);

    const frame = (kind) => draw(svg, "rect", { class: kind, width: w, height: h, rx: 2, visibility: "hidden" });
    const frames = { cursor: frame("cursor"), pinned: frame("pinned") };
    this.mark = (kind, cell) => {
      const box = frames[kind];
      box.setAttribute("visibility", cell === null ? "hidden" : "visible");
      if (cell === null) return;
      box.setAttribute("x", left + this.index(cell, across.name) * w);
      box.setAttribute("y", top + (up ? row(this.index(cell, up.name)) : 0) * h);
    };
    const under = (event) => {
      const box = svg.getBoundingClientRect(), zoom = (left + width + RIGHT) / box.width;
      const x = Math.floor(((event.clientX - box.left) * zoom - left) / w);
      const y = Math.floor(((event.clientY - box.top) * zoom - top) / h);
      return x < 0 || y < 0 || x >= columns || y >= rows ? null : at(x, y);
    };
    svg.onmousemove = (event) => this.point(under(event), event);
    svg.onmouseleave = () => this.point(null);
    svg.onclick = (event) => { const cell = under(event); if (cell !== null) this.choose(cell); };
    const sign = fromTop ? -1 : 1;
    const keys = { ArrowRight: [across, 1], ArrowLeft: [across, -1], ArrowUp: [up, sign], ArrowDown: [up, -sign] };
    svg.onkeydown = (event) => {
      const [axis, by] = keys[event.key] ?? [];
      if (!axis) return;
      event.preventDefault();
      const to = this.index(this.pin, axis.name) + by;
      if (to >= 0 && to < axis.labels.length) this.choose(this.moved(this.pin, axis.name, to));
    };
  }

  /** The colour bar, marked at the baselines. */
  bar(svg, x, y, height, centre, limit) {
    const colours = range(101).map((i) => [colour(1 - i / 50)]);
    draw(svg, "image", { href: picture(colours), x, y, width: 10, height, preserveAspectRatio: "none" });
    const place = (v) => y + height * (0.5 - (v - centre) / limit / 2);
    const { step, at } = ticks(centre - limit, centre + limit, Math.max(2, Math.min(7, height / 40)));
    const pick = (key) => (this.prompt < 0 ? this.data[key].mean : this.data[key].values[this.prompt]);
    const named = this.unit === "share" ? [[0, "corrupted"], [1, "clean"]]
      : [[pick("corrupted"), "corrupted"], [pick("clean"), "clean"]];
    const shown = named.filter(([v]) => known(v) && Math.abs(v - centre) <= limit * 1.02);
    for (const v of at) {
      const near = ([b]) => Math.abs(place(b) - place(v)) < 12;
      if (!shown.some(near)) draw(svg, "text", { class: "soft", x: x + 15, y: place(v) + 4 }, show(v, decimals(step)));
    }
    // On a wide scale the two baselines fall together, and are named once.
    const [low, high] = shown;
    if (high && Math.abs(place(high[0]) - place(low[0])) < 12) shown.splice(0, 2, [low[0], "baselines"]);
    for (const [v, word] of shown) {
      const text = this.unit === "share" && word !== "baselines" ? `${v} ${word}` : word;
      draw(svg, "text", { x: x + 15, y: place(v) + 4 }, text);
    }
  }

  point(cell, event = null) {
    tip.hidden = cell === null;
    if (cell !== this.hover) {
      this.hover = cell;
      this.detail();
    }
    if (cell === null) return;
    const { low, high } = this.stats(), mean = this.prompt < 0;
    const bounds = mean && known(low[cell]) ? `\n95% ${between(low[cell], high[cell])}` : "";
    const unit = this.unit === "share" ? "share of effect" : this.data.metric;
    tell(`${this.name(cell, true)}\n${unit} ${show(this.value(cell))}${bounds}`, event.clientX, event.clientY);
  }

  choose(cell) {
    const sameSlice = this.data.rest.every((name) => this.index(cell, name) === this.index(this.pin, name));
    this.pin = cell;
    if (sameSlice) this.detail();
    else this.redraw();
  }

  /** The card beside the map: one cell in full. */
  detail() {
    const cell = this.hover ?? this.pin, { low, high, std } = this.stats(), { data } = this;
    this.mark("cursor", this.hover);
    this.mark("pinned", this.pin);
    for (const row of this.root.querySelectorAll(".top tbody tr")) {
      row.classList.toggle("here", Number(row.dataset.cell) === this.pin);
    }
    this.find("aside h3").textContent = this.name(cell);
    this.find(".value b").textContent = show(this.value(cell));
    const unit = this.unit === "share" ? "of the effect" : data.metric, one = data.prompts[this.prompt];
    this.find(".value span").textContent = one ? `${unit}, prompt ${one.label} alone` : unit;
    const sure = known(low[cell]) ? `${one ? "all prompts: " : ""}95% ${between(low[cell], high[cell])}` : "no interval";
    this.find(".sure").textContent = known(std[cell]) ? `${sure}, sd ${show(std[cell])}` : sure;
    this.strip(cell, low[cell], high[cell]);
    const dots = this.unit === "share"
      ? "Each dot is a prompt: its distance from its own corrupted run, in units of the mean gap."
      : "Each dot is a prompt.";
    const own = data.clean.values[this.prompt] - data.corrupted.values[this.prompt];
    const small = this.unit === "share" && Math.abs(own) < Math.abs(data.gap) / 10
      ? " This prompt's own gap is small: its shares are unsteady." : "";
    this.find(".hint").textContent = data.values ? dots + small : "This sweep is too large for its prompts to travel along: means only.";
  }

  /** Every prompt at one cell, between the two baselines. */
  strip(cell, low, high) {
    const { clean, corrupted, values, prompts, gap } = this.data, count = prompts.length;
    const each = (list) => range(count).map((p) => {
      const v = list[p];
      if (this.unit === "metric" || !known(v)) return v;
      return known(corrupted.values[p]) ? (v - corrupted.values[p]) / gap : null;
    });
    const patched = values ? each(values.slice(cell * count, (cell + 1) * count)) : [];
    const rows = [["corrupted", each(corrupted.values)], ["patched", patched], ["clean", each(clean.values)]];
    const [from, to] = this.extent(each, rows);
    const width = 300, pad = 10, scale = (v) => pad + ((v - from) / (to - from || 1)) * (width - 2 * pad);
    const box = this.find(".strip");
    box.replaceChildren();
    const svg = canvas(box, width, 190, "every prompt at this cell, beside the baselines");
    const { step, at } = ticks(from, to, 5);
    for (const v of at) {
      draw(svg, "path", { class: "rule", d: `M${scale(v)} 6V168` });
      draw(svg, "text", { class: "soft", x: scale(v), y: 184, "text-anchor": "middle" }, show(v, decimals(step)));
    }
    rows.forEach(([name, list], i) => {
      const y = 34 + i * 54;
      draw(svg, "text", { class: "soft", x: 2, y: y - 18 }, name);
      list.forEach((v, p) => {
        if (!known(v)) return;
        const jitter = (((p * 0.618034) % 1) - 0.5) * 20;
        const kind = p === this.prompt ? "dot chosen" : name === "patched" ? "dot" : "dot base";
        const dot = draw(svg, "circle", { class: kind, cx: scale(v), cy: y + jitter, r: p === this.prompt ? 5 : 3.5 });
        draw(dot, "title", {}, `prompt ${prompts[p].label}: ${show(v)}`);
      });
      if (name !== "patched") return;
      if (known(low) && known(high)) draw(svg, "path", { class: "whisker", d: `M${scale(low)} ${y}H${scale(high)}` });
      const mean = this.stats().mean[cell];
      if (known(mean)) draw(svg, "path", { class: "diamond", d: `M${scale(mean)} ${y - 6}l5 6l-5 6l-5 -6z` });
    });
  }

  /** The reach of every dot and mean of the sweep: the strip's axis holds still from cell to cell. */
  extent(each, rows) {
    const key = `${this.unit} extent`, { values, prompts } = this.data;
    if (this[key]) return this[key];
    let [from, to] = [Infinity, -Infinity];
    const take = (v) => {
      if (known(v)) [from, to] = [Math.min(from, v), Math.max(to, v)];
    };
    rows.forEach(([, list]) => list.forEach(take));
    for (const list of Object.values(this.stats()).slice(0, 3)) list.forEach(take);
    for (let i = 0; values && i < values.length; i += prompts.length) {
      each(values.slice(i, i + prompts.length)).forEach(take);
    }
    return (this[key] = from <= to ? [from, to] : [0, 1]);
  }

  /** The strongest cells, each with its interval drawn on a common scale. */
  top() {
    const { data } = this, { mean, low, high, std } = this.stats();
    const share = this.unit === "share";
    const base = share ? Number(data.noising) : data.noising ? data.clean.mean : data.corrupted.mean;
    const all = data.top.flatMap((c) => [mean[c], low[c], high[c], base]).filter(known);
    const [from, to] = [Math.min(...all), Math.max(...all)];
    const scale = (v) => 6 + ((v - from) / (to - from || 1)) * 188;
    const names = data.axes.map((axis) => make("th", { class: axis.tokens || isNaN(axis.labels[0]) ? "" : "n" }, axis.name));
    const head = make("tr", {}, ...names, ...["n", "n", "", "n", ...(share ? ["n"] : [])].map((kind, i) =>
      make("th", { class: kind }, [share ? "share" : data.metric, "95% interval", "", "sd", data.metric][i])));
    const body = make("tbody");
    for (const cell of data.top) {
      const line = make("tr", { "data-cell": cell });
      data.axes.forEach(({ name, labels, tokens }, i) => {
        const at = this.index(cell, name);
        line.append(make("td", { class: names[i].className }, tokens ? `${labels[at]} ${tokens[at]}` : labels[at]));
      });
      const picture = make("td"), svg = canvas(picture, 200, 16, "interval");
      svg.style.width = "200px";
      draw(svg, "path", { class: "rule", d: `M${scale(base)} 0V16` });
      if (known(low[cell])) draw(svg, "path", { class: "whisker", d: `M${scale(low[cell])} 8H${scale(high[cell])}` });
      const dot = draw(svg, "circle", { cx: scale(mean[cell]), cy: 8, r: 4.5 });
      dot.style.cssText = `fill:${this.tint(mean[cell])};stroke:var(--ink)`;
      line.append(make("td", { class: "n" }, show(mean[cell])), make("td", { class: "n" }, between(low[cell], high[cell])),
        picture, make("td", { class: "n" }, show(std[cell])));
      if (share) line.append(make("td", { class: "n" }, show(data.metric_stats.mean[cell])));
      line.onclick = () => this.choose(cell);
      body.append(line);
    }
    this.find(".top").replaceChildren(make("thead", {}, head), body);
  }
}

const COMMON = DATA.sections[0].facts.filter((fact) => DATA.sections.every((s) => s.facts.includes(fact)));
const sections = DATA.sections.map((data, i) => new Section(data, i));
document.getElementById("facts").textContent = COMMON.join(" · ");
if (sections.length > 1) {
  sections.forEach(({ data, root }) => document.getElementById("nav").append(make("a", { href: `#${root.id}` }, data.name)));
}
if (DATA.extra.length) {
  document.getElementById("extra").append(table(DATA.extra));
  document.getElementById("extra").hidden = false;
}
const redraw = () => sections.forEach((section) => section.redraw());
DARK.addEventListener("change", redraw);
addEventListener("beforeprint", () => { printing = true; redraw(); });
addEventListener("afterprint", () => { printing = false; redraw(); });
