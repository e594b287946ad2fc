// The values of a chart's lines under the pointer; the lines themselves are in the page.
const SVG = "http://www.w3.org/2000/svg";
const short = (value) => Number(value.toPrecision(4)).toString();

function read(line) {
  const at = line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number));
  const values = line.dataset.values.split(";").map((pair) => pair.split(",").map(Number));
  return { name: line.dataset.name, thin: line.classList.contains("thin"), at, values };
}

function nearest(line, x) {
  let best = 0;
  line.at.forEach(([px], i) => { if (Math.abs(px - x) < Math.abs(line.at[best][0] - x)) best = i; });
  return best;
}

function follow(figure) {
  const svg = figure.querySelector("svg");
  const lines = [...figure.querySelectorAll("polyline")].map(read);
  if (!lines.length) return;
  const cursor = document.createElementNS(SVG, "line");
  cursor.setAttribute("class", "cursor");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  svg.append(cursor);
  figure.append(tip);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const view = svg.viewBox.baseVal;
    const scale = Math.min(box.width / view.width, box.height / view.height);
    const x = (event.clientX - box.left - (box.width - view.width * scale) / 2) / scale;
    const shown = lines.filter((line) => !line.thin).length ? lines.filter((line) => !line.thin) : lines;
    const first = shown[0].at[nearest(shown[0], x)][0];
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, first);
    cursor.setAttribute("y1", 12);
    cursor.setAttribute("y2", view.height - 44);
    const told = shown.slice(0, 10).map((line) => {
      const [, y] = line.values[nearest(line, x)];
      return `${short(y)}  ${line.name}`;
    });
    const [at] = shown[0].values[nearest(shown[0], x)];
    tip.textContent = [`at ${short(at)}`, ...told].join("\n");
    tip.hidden = false;
    tip.classList.toggle("left", x < view.width / 2);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.removeAttribute("y1"); cursor.removeAttribute("y2"); });
}

export function charts(root) {
  for (const figure of root.querySelectorAll(".chart:not([data-followed])")) {
    figure.dataset.followed = "";
    follow(figure);
  }
}
