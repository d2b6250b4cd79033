// Plots as SVG, drawn to the width they get; every mark says its numbers on hover. Text only ever goes in as text.
const SVG = "http://www.w3.org/2000/svg";
const PALETTE = ["--ld-2", "--ld-1", "--ld-3", "--ld-4", "--ld-5", "--ld-6"];

function make(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function html(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function label(x, y, words, attributes = {}) { return make("text", { x, y, ...attributes }, String(words)); }
function hint(node, words) { node.append(make("title", {}, words)); return node; }

// --- numbers and words -----------------------------------------------------------------------------------------

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const two = (n) => String(n).padStart(2, "0");
function shown(value, kind) {
  if (value === null || value === undefined || value === "") return "–";
  if (kind === "share") return `${(100 * value).toFixed(Math.abs(value) < 0.0995 && value !== 0 ? 1 : 0)} %`;
  if (kind === "count") return Math.round(value).toLocaleString("en");
  if (kind === "number") return (Math.abs(value) < 0.005 ? 0 : value).toFixed(2).replace("-", "−");
  if (kind === "seconds") return value < 90 ? `${Number(value).toFixed(value < 10 ? 1 : 0)} s` : `${(value / 60).toFixed(1)} min`;
  if (kind === "flag") return value ? "yes" : "";
  if (kind === "day" || kind === "hour") {
    const at = new Date(value * 1000), day = `${at.getUTCDate()} ${MONTHS[at.getUTCMonth()]}`;
    return kind === "day" ? day : `${day} ${two(at.getUTCHours())}:00`;
  }
  if (kind === "time") { const at = new Date(value * 1000); return `${at.getDate()} ${MONTHS[at.getMonth()]} ${two(at.getHours())}:${two(at.getMinutes())}`; }
  return String(value).replaceAll("_", " ");
}
function withRange(row, key, kind) {
  if (row[key] === null || row[key] === undefined) return "–";
  const range = row[key + "_low"];
  return shown(row[key], kind) + (range === null || range === undefined ? "" : ` (${shown(range, kind)} to ${shown(row[key + "_high"], kind)})`.replace(" % to ", " to "));
}
// Round numbers that cover [low, high].
function ticks(low, high, wanted = 4) {
  const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12);
  const found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) found.push(Math.abs(t) < 1e-12 ? 0 : t);
  return found;
}
function cut(words, width, size = 7.1) {
  const most = Math.max(3, Math.floor(width / size));
  return words.length > most ? words.slice(0, most - 1) + "…" : words;
}
function svg(width, height, described) {
  return make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": described, class: "ld-svg" });
}

// --- kinds of plots --------------------------------------------------------------------------------------------

const CHARTS = {
  // One row per thing, one dot with its interval per measure.
  dots(panel, width) {
    const { facets, label: keys } = panel.chart;
    const used = facets.filter((facet) => panel.rows.some((row) => row[facet.key] !== null && row[facet.key] !== undefined));
    if (width < 640 && used.length > 1) return used.map((facet) => this.dots({ ...panel, chart: { ...panel.chart, facets: [facet] } }, width)[0]);
    if (!used.length) return [];
    const many = used.length > 1, gap = 48, top = 34, line = keys.length > 1 ? 34 : 27;
    const names = Math.min(width * (many ? 0.2 : 0.36), 250), numbers = many ? 0 : width < 480 ? 52 : 146;
    const inner = (width - names - numbers - gap * used.length) / used.length;
    const height = top + line * panel.rows.length + 6;
    const picture = svg(width, height, panel.title);
    panel.rows.forEach((row, i) => {
      const y = top + line * i + line / 2;
      if (i % 2 === 0) picture.append(make("rect", { x: 0, y: top + line * i, width, height: line, class: "ld-zebra", rx: 6 }));
      const name = label(8, y + (keys.length > 1 ? -2 : 4), cut(shown(row[keys.at(-1)], "text"), names - 12), { class: "ld-name" });
      picture.append(hint(name, String(row[keys.at(-1)])));
      if (keys.length > 1) picture.append(label(8, y + 12, cut(shown(row[keys[0]], "text"), names - 12, 6.2), { class: "ld-small" }));
    });
    used.forEach((facet, f) => {
      const column = panel.columns.find((c) => c.key === facet.key), kind = column.kind;
      const values = panel.rows.flatMap((row) => [row[facet.key], row[facet.key + "_low"], row[facet.key + "_high"]]).filter((v) => v !== null && v !== undefined);
      let low = Math.min(...values, facet.zero ?? Infinity), high = Math.max(...values, facet.zero ?? -Infinity);
      if (facet.from !== null && facet.from !== undefined) low = Math.min(low, facet.from);
      if (facet.to !== null && facet.to !== undefined) high = Math.max(high, facet.to);
      if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
      const x0 = names + gap * (f + 0.5) + inner * f, at = (v) => x0 + ((v - low) / (high - low)) * inner;
      if (facet.label) picture.append(label(x0, 12, facet.label, { class: "ld-axis-title" }));
      for (const t of ticks(low, high, inner < 170 ? 2 : 4)) {
        picture.append(make("line", { x1: at(t), x2: at(t), y1: top - 4, y2: height - 6, class: "ld-grid" }));
        picture.append(label(at(t), top - 8, shown(t, kind), { class: "ld-tick", "text-anchor": "middle" }));
      }
      if (facet.zero !== undefined) picture.append(make("line", { x1: at(facet.zero), x2: at(facet.zero), y1: top - 4, y2: height - 6, class: "ld-zero" }));
      panel.rows.forEach((row, i) => {
        const value = row[facet.key], y = top + line * i + line / 2;
        if (value === null || value === undefined) { picture.append(label(x0 + 2, y + 4, "–", { class: "ld-small" })); return; }
        const from = row[facet.key + "_low"] ?? value, to = row[facet.key + "_high"] ?? value;
        const off = (facet.alarm && to < facet.zero) || (facet.alarm === "both" && from > facet.zero);
        const mark = make("g", { class: off ? "ld-mark ld-off" : "ld-mark" });
        mark.append(make("line", { x1: at(from), x2: at(to), y1: y, y2: y, class: "ld-whisker" }), make("circle", { cx: at(value), cy: y, r: 5, class: "ld-dot" }));
        picture.append(hint(mark, `${row[keys.at(-1)]}: ${withRange(row, facet.key, kind)}`));
        if (numbers) picture.append(label(width - 8, y + 4, numbers < 80 ? shown(value, kind) : withRange(row, facet.key, kind), { class: "ld-value", "text-anchor": "end" }));
      });
    });
    return [picture];
  },

  bars(panel, width) {
    const { x, y } = panel.chart, kind = panel.columns.find((c) => c.key === x).kind;
    const height = 210, left = 44, bottom = 26, top = 12, inner = width - left - 8;
    const most = Math.max(1, ...panel.rows.map((row) => row[y])), marks = ticks(0, most, 3);
    const high = Math.max(most, marks.at(-1)), step = inner / panel.rows.length;
    const at = (v) => top + (1 - v / high) * (height - top - bottom);
    const picture = svg(width, height, panel.title);
    for (const t of marks) picture.append(make("line", { x1: left, x2: width - 8, y1: at(t), y2: at(t), class: "ld-grid" }), label(left - 8, at(t) + 4, shown(t, "count"), { class: "ld-tick", "text-anchor": "end" }));
    const every = Math.ceil(panel.rows.length / Math.max(2, Math.floor(inner / (kind === "day" ? 62 : 120))));
    panel.rows.forEach((row, i) => {
      const bar = make("rect", { x: left + step * i + step * 0.14, width: step * 0.72, y: at(row[y]), height: Math.max(0, at(0) - at(row[y])), rx: Math.min(3, step / 5), class: "ld-bar" });
      picture.append(hint(bar, `${shown(row[x], kind)}: ${shown(row[y], "count")}`));
      if ((panel.rows.length - 1 - i) % every === 0) picture.append(label(left + step * (i + 0.5), height - 8, shown(row[x], kind), { class: "ld-tick", "text-anchor": i === panel.rows.length - 1 ? "end" : "middle" }));
    });
    return [picture];
  },

  // Small multiples: one line with its band per measure.
  lines(panel, width) {
    const { x, y: series, zero } = panel.chart, columns = width < 640 ? 1 : series.length, gap = 28;
    const inner = (width - gap * (columns - 1)) / columns;
    const box = html("div", { class: "ld-multiples" });
    for (const key of series) {
      const column = panel.columns.find((c) => c.key === key), rows = panel.rows.filter((row) => row[key] !== null && row[key] !== undefined);
      const height = 200, left = 40, bottom = 24, top = 26, right = 10, w = inner - left - right;
      const picture = svg(inner, height, `${panel.title}: ${column.label}`);
      picture.append(label(0, 12, column.label, { class: "ld-axis-title" }));
      const values = rows.flatMap((row) => [row[key], row[key + "_low"] ?? row[key], row[key + "_high"] ?? row[key]]);
      let low = Math.min(zero, ...values), high = Math.max(zero, ...values);
      low = Math.max(0, Math.floor(low * 10) / 10); high = Math.min(1, Math.ceil(high * 10) / 10);
      if (high - low < 0.2) { low = Math.max(0, low - 0.1); high = Math.min(1, high + 0.1); }
      const first = panel.rows[0][x], last = panel.rows.at(-1)[x];
      const X = (v) => left + (last === first ? 0.5 : (v - first) / (last - first)) * w, Y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
      for (const t of ticks(low, high, 3)) picture.append(make("line", { x1: left, x2: inner - right, y1: Y(t), y2: Y(t), class: "ld-grid" }), label(left - 6, Y(t) + 4, shown(t, "share"), { class: "ld-tick", "text-anchor": "end" }));
      if (zero >= low && zero <= high) picture.append(make("line", { x1: left, x2: inner - right, y1: Y(zero), y2: Y(zero), class: "ld-zero" }));
      if (rows.length > 1) {
        const upper = rows.map((row) => `${X(row[x])},${Y(Math.min(high, row[key + "_high"] ?? row[key]))}`), lower = rows.map((row) => `${X(row[x])},${Y(Math.max(low, row[key + "_low"] ?? row[key]))}`).reverse();
        picture.append(make("polygon", { points: [...upper, ...lower].join(" "), class: "ld-band" }), make("polyline", { points: rows.map((row) => `${X(row[x])},${Y(row[key])}`).join(" "), class: "ld-line" }));
      }
      for (const row of rows) {
        if (rows.length === 1) picture.append(make("line", { x1: X(row[x]), x2: X(row[x]), y1: Y(row[key + "_low"]), y2: Y(row[key + "_high"]), class: "ld-whisker" }));
        picture.append(hint(make("circle", { cx: X(row[x]), cy: Y(row[key]), r: 4, class: "ld-dot" }), `${shown(row[x], "day")}: ${withRange(row, key, "share")}`));
      }
      const every = Math.ceil(panel.rows.length / Math.max(2, Math.floor(w / 56)));
      panel.rows.forEach((row, i) => { if ((panel.rows.length - 1 - i) % every === 0) picture.append(label(X(row[x]), height - 6, shown(row[x], "day"), { class: "ld-tick", "text-anchor": i === panel.rows.length - 1 && i ? "end" : "middle" })); });
      box.append(picture);
    }
    return [box];
  },

  // Horizontal bars of 100 %, one per group, in parts that keep their colour.
  stack(panel, width) {
    const { x, part, y } = panel.chart, kind = panel.columns.find((c) => c.key === x).kind;
    const groups = [...new Set(panel.rows.map((row) => row[x]))];
    const known = panel.chart.parts ?? [...new Set(panel.rows.map((row) => row[part]))];
    return stacked(panel.title, width, groups.map((group) => ({ name: shown(group, kind), parts: panel.rows.filter((row) => row[x] === group).map((row) => ({ name: row[part], value: row[y], words: `${shown(row[y], "share")} (${shown(row.count, "count")})`, inside: shown(row[y], "share") })) })), known);
  },
  progress(panel, width) {
    const { parts, label: keys } = panel.chart;
    const rows = panel.rows.map((row) => {
      const total = parts.reduce((sum, part) => sum + row[part], 0) || 1;
      return { name: keys.map((key) => row[key]).join(" · "), parts: parts.map((part) => ({ name: part, value: row[part] / total, words: shown(row[part], "count"), inside: shown(row[part], "count") })) };
    });
    return stacked(panel.title, width, rows, parts, ["--ld-1", "--ld-4", "--ld-0"]);
  },

  ranks(panel, width) {
    const { label: keys, y } = panel.chart, line = 30, names = Math.min(280, width * 0.45), numbers = 64, inner = width - names - numbers;
    const most = Math.max(1, ...panel.rows.map((row) => row[y])), picture = svg(width, line * panel.rows.length + 4, panel.title);
    panel.rows.forEach((row, i) => {
      const words = shown(row[keys[0]], "text"), length = Math.max(2, (row[y] / most) * inner);
      picture.append(hint(label(0, line * i + 19, cut(words, names - 12), { class: "ld-name" }), words), make("rect", { x: names, y: line * i + 6, width: length, height: line - 12, rx: 4, class: "ld-bar" }), label(names + length + 8, line * i + 19, shown(row[y], "count"), { class: "ld-value" }));
    });
    return [picture];
  },

  matrix(panel) {
    const { row: rowKey, column, y, n } = panel.chart, cell = new Map(panel.rows.map((row) => [JSON.stringify([row[rowKey], row[column]]), row]));
    const order = [...new Set(panel.rows.map((row) => row[rowKey]))];
    for (const name of panel.rows.map((row) => row[column])) if (!order.includes(name)) order.push(name);
    const table = html("table", { class: "ld-matrix" }, html("thead", {}, html("tr", {}, html("th", {}, ""), ...order.map((name) => html("th", { scope: "col", title: name }, html("span", {}, name))))));
    const body = html("tbody");
    for (const name of order) {
      const line = html("tr", {}, html("th", { scope: "row", title: name }, name));
      for (const other of order) {
        const found = cell.get(JSON.stringify([name, other]));
        const box = html("td", { class: name === other ? "ld-self" : "" }, found ? html("b", {}, shown(found[y], "share")) : "", found ? html("small", {}, shown(found[n], "count")) : "");
        if (found) {
          box.title = `${name} against ${other}: ${shown(found[y], "share")} of ${shown(found[n], "count")} comparisons`;
          box.style.setProperty("--ld-heat", `${Math.round(Math.min(1, Math.abs(found[y] - 0.5) * 2) * 100)}%`);
          box.dataset.side = found[y] >= 0.5 ? "won" : "lost";
        }
        line.append(box);
      }
      body.append(line);
    }
    table.append(body);
    return [html("div", { class: "ld-scroll" }, table)];
  },
};

function stacked(title, width, groups, known, colours = PALETTE) {
  const colour = (name) => `var(${colours[known.indexOf(name) % colours.length]})`;
  const line = 36, names = Math.min(170, width * 0.36), inner = width - names, picture = svg(width, line * groups.length + 2, title);
  groups.forEach((group, i) => {
    picture.append(hint(label(0, line * i + 22, cut(group.name, names - 10), { class: "ld-name" }), group.name));
    let from = 0;
    for (const part of [...group.parts].sort((a, b) => known.indexOf(a.name) - known.indexOf(b.name))) {
      const length = part.value * inner;
      if (length <= 0) continue;
      const box = make("g", { class: "ld-part" }, make("rect", { x: names + from + 0.5, y: line * i + 5, width: Math.max(0.5, length - 1.5), height: line - 12, rx: 3, style: `fill: ${colour(part.name)}` }));
      if (length > 44) box.append(label(names + from + length / 2, line * i + 22, part.inside, { class: "ld-inside", "text-anchor": "middle", "data-on": colours[known.indexOf(part.name) % colours.length] }));
      picture.append(hint(box, `${group.name}, ${part.name}: ${part.words}`));
      from += length;
    }
  });
  const used = known.filter((name) => groups.some((group) => group.parts.some((part) => part.name === name && part.value > 0)));
  const legend = html("p", { class: "ld-legend" }, ...used.map((name) => { const swatch = html("i"); swatch.style.background = colour(name); return html("span", {}, swatch, shown(name, "text")); }));
  return [legend, picture];
}
