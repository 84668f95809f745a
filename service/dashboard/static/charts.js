// Two charts over uPlot. Data come in as columns; colours come from the style sheet.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

class Chart {
  constructor(element, { describe }) {
    this.element = element;
    this.describe = describe;
    this.plot = null;
    this.look = "";
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  size() {
    const legend = this.element.querySelector(".u-legend");
    return {
      width: Math.max(200, this.element.clientWidth),
      height: this.element.clientHeight - (legend?.offsetHeight ?? 28),
    };
  }

  // `empty`: what to say when there is nothing to draw.
  draw(data, { axis, isLog, empty }) {
    if (data[0].length === 0) return this.say(empty);
    if (typeof uPlot === "undefined") return this.say("The charts are missing.");
    this.data = isLog ? [data[0], ...data.slice(1).map(positive)] : data;
    this.axis = axis;
    this.isLog = isLog;
    const look = `${axis} ${isLog} ${data.length}`;
    if (this.plot && this.look === look) this.plot.setData(this.data);
    else this.redraw();
    this.look = look;
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", this.describe(data, axis));
  }

  say(text) {
    this.plot?.destroy();
    this.plot = null;
    this.element.removeAttribute("role");
    this.element.removeAttribute("aria-label");
    const shown = this.element.querySelector(".empty");
    if (shown?.textContent === text) return;
    const line = document.createElement("p");
    line.className = "empty";
    line.textContent = text;
    this.element.replaceChildren(line);
  }

  redraw() {
    if (!this.data) return;
    this.plot?.destroy();
    this.element.replaceChildren();
    this.plot = new uPlot(this.options(), this.data, this.element);
    this.plot.setSize(this.size());
  }

  options() {
    const axes = {
      stroke: colour("--dim"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 },
    };
    return {
      ...this.size(),
      scales: { x: { time: false }, y: this.isLog ? { distr: 3 } : {} },
      axes: [
        { ...axes, values: (_, ticks) => ticks.map(short) },
        {
          ...axes,
          size: 64,
          values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))),
        },
      ],
      cursor: { drag: { x: true, y: false } },
      ...this.content(),
    };
  }
}

// null is a gap in the line, undefined none: the column has nothing to say there.
const positive = (values) =>
  values.map((value) => (value === undefined || value > 0 ? value : null));
const short = (value) => {
  if (value === null || value === undefined) return "-";
  if (Math.abs(value) >= 1e4) {
    const [scaled, unit] =
      Math.abs(value) >= 1e9
        ? [value / 1e9, "G"]
        : Math.abs(value) >= 1e6
          ? [value / 1e6, "M"]
          : [value / 1e3, "k"];
    return `${+scaled.toPrecision(4)}${unit}`;
  }
  return String(+value.toPrecision(4));
};
const legend = (_, value) => short(value);

// Columns: x, min, max, last.
export class BandChart extends Chart {
  content() {
    const edge = { stroke: "transparent", points: { show: false }, value: legend };
    const band = colour("--band");
    return {
      legend: { markers: { fill: (_, i) => (i < 3 ? band : null) } },
      series: [
        { label: this.axis, value: legend },
        { label: "min", ...edge },
        { label: "max", ...edge },
        {
          label: "last",
          stroke: colour("--train"),
          width: 1.5,
          points: { show: false },
          value: legend,
        },
      ],
      bands: [{ series: [2, 1], fill: band }],
    };
  }
}

// Columns: x, loss, and with the theory's overlay: predicted, promised. `links`: for each point the
// address of its checkpoint, or null.
export class PointChart extends Chart {
  links = [];

  content() {
    const line = colour("--eval");
    return {
      legend: { markers: { dash: (plot, i) => (plot.series[i].dash ? "dashed" : "solid") } },
      series: [
        { label: this.axis, value: legend },
        {
          label: "eval loss",
          stroke: line,
          width: 1.5,
          points: { show: true, size: 5, fill: colour("--card") },
          value: legend,
        },
        ...(this.data.length > 2 ? this.overlay() : []),
      ],
      hooks: {
        draw: [(plot) => this.drawKept(plot, line)],
        setCursor: [
          (plot) => this.element.classList.toggle("keeps", Boolean(this.links[plot.cursor.idx])),
        ],
        ready: [(plot) => plot.over.addEventListener("click", () => this.follow(plot))],
      },
    };
  }

  overlay() {
    const line = { stroke: colour("--theory"), width: 1.5, points: { show: false }, value: legend };
    return [
      { label: "predicted", ...line },
      { label: "promised", ...line, dash: [6, 5] },
    ];
  }

  drawKept(plot, fill) {
    plot.ctx.fillStyle = fill;
    this.links.forEach((link, i) => {
      const value = plot.data[1][i];
      if (!link || value === null || value === undefined) return;
      plot.ctx.beginPath();
      plot.ctx.arc(
        plot.valToPos(plot.data[0][i], "x", true),
        plot.valToPos(value, "y", true),
        5 * devicePixelRatio,
        0,
        7,
      );
      plot.ctx.fill();
    });
  }

  follow(plot) {
    const link = this.links[plot.cursor.idx];
    const dragged = plot.select.width > 0;
    if (link && !dragged) location.assign(link);
  }
}
