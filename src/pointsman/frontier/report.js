"use strict";
(() => {
  const points = JSON.parse(document.getElementById("data").textContent).points;
  const byId = new Map(points.map((point) => [point.id, point]));
  const pick = points.find((point) => point.role === "pick");
  const chart = document.getElementById("chart");
  const charts = [...chart.querySelectorAll("svg")];
  const tip = document.getElementById("tip");
  const panel = document.getElementById("panel");
  const body = document.querySelector("#points tbody");
  const rows = new Map([...body.rows].map((row) => [row.dataset.point, row]));
  const HEADS = { pick: "The pick", point: "Selected", reference: "Reference", oracle: "Oracle" };
  const NEAR = 26; // pixels from a mark that still count as pointing at it
  const heads = [...document.querySelectorAll("#points th")];
  const [, , quality, drop, cost, saved] = heads.map((head) => head.textContent.trim());
  const NAMES = { quality, cost, saved, drop };
  const shown = new Set();
  let chosen = pick;
  document.documentElement.classList.add("scripted");

  const idOf = (svg, id) => `${svg.classList[0]}-${id}`;
  const markOf = (svg, point) => svg.getElementById(idOf(svg, point.id));
  const visible = (point) => !point.slug || shown.has(point.slug);
  const current = () => charts.find((svg) => svg.getClientRects().length > 0) || charts[0];
  const words = (point) =>
    `${point.way}, ${point.knob}: ${NAMES.quality} ${point.quality}, cost ${point.cost}, ` +
    `saved ${point.saved}, drop ${point.drop}`;

  function ring(svg, point, kind) {
    const old = svg.querySelector(`.ring.${kind}`);
    if (old) old.remove();
    const mark = point && visible(point) && markOf(svg, point);
    if (!mark || svg.getClientRects().length === 0) return;
    const box = mark.getBBox();
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("class", `ring ${kind}`);
    circle.setAttribute("cx", box.x + box.width / 2);
    circle.setAttribute("cy", box.y + box.height / 2);
    circle.setAttribute("r", point.role === "pick" ? 11 : 9);
    svg.append(circle);
  }

  function showTip(point) {
    const svg = current();
    ring(svg, point, "hover");
    tip.hidden = !point;
    if (!point) return;
    const head = document.createElement("b");
    head.textContent = point.way;
    const facts = document.createElement("div");
    for (const [key, name] of Object.entries(NAMES)) {
      for (const text of [name, point[key]]) {
        const cell = document.createElement("span");
        cell.textContent = text;
        facts.append(cell);
      }
    }
    tip.replaceChildren(head, point.knob, facts);
    const frame = chart.getBoundingClientRect();
    const mark = markOf(svg, point).getBoundingClientRect();
    const middle = mark.left + mark.width / 2 - frame.left;
    const left = Math.min(Math.max(middle - tip.offsetWidth / 2, 0), frame.width - tip.offsetWidth);
    const above = mark.top - frame.top - tip.offsetHeight - 12;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > -40 ? above : mark.bottom - frame.top + 12}px`;
  }

  function select(point) {
    chosen = point;
    for (const field of ["glyph", "way", "knob", "quality", "drop", "cost", "saved", "mixed"]) {
      panel.querySelector(`[data-field="${field}"]`).textContent = point[field];
    }
    const again = point.again.split(" ").flatMap((word) => {
      const piece = document.createElement("span");
      piece.textContent = word;
      return [piece, " "];
    });
    panel.querySelector('[data-field="again"]').replaceChildren(...again);
    panel.querySelector('[data-field="role"]').textContent = HEADS[point.role];
    panel.querySelector('[data-field="glyph"]').style.color = `var(--${point.colour})`;
    for (const part of panel.querySelectorAll("[data-use]")) {
      part.hidden = part.dataset.use !== point.role;
    }
    document.getElementById("back").hidden = point === pick;
    for (const [id, row] of rows) row.classList.toggle("chosen", id === point.id);
    for (const svg of charts) {
      ring(svg, point === pick ? null : point, "selected");
      for (const other of points) {
        const mark = markOf(svg, other);
        if (mark) mark.setAttribute("aria-pressed", String(other === point));
      }
    }
  }

  function nearest(event) {
    const svg = current();
    let best = null;
    let least = NEAR;
    for (const point of points) {
      const mark = visible(point) && markOf(svg, point);
      if (!mark) continue;
      const box = mark.getBoundingClientRect();
      const across = event.clientX - (box.left + box.width / 2);
      const away = Math.hypot(across, event.clientY - (box.top + box.height / 2));
      if (away < least) [best, least] = [point, away];
    }
    return best;
  }

  // one stop for Tab, arrow keys from mark to mark
  function focus(svg, point) {
    for (const other of points) {
      const mark = markOf(svg, other);
      if (mark) mark.setAttribute("tabindex", other === point ? "0" : "-1");
    }
  }

  function move(svg, point, step) {
    const there = points.filter((other) => visible(other) && markOf(svg, other));
    const at = there.indexOf(point);
    const ends = { first: 0, last: there.length - 1 };
    const next = there[step in ends ? ends[step] : (at + step + there.length) % there.length];
    focus(svg, next);
    markOf(svg, next).focus();
  }

  const KEYS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: "first", End: "last" };
  for (const svg of charts) {
    for (const point of points) {
      const mark = markOf(svg, point);
      if (!mark) continue;
      mark.dataset.point = point.id;
      mark.setAttribute("role", "button");
      mark.setAttribute("aria-label", words(point));
      mark.addEventListener("focus", () => showTip(point));
      mark.addEventListener("blur", () => showTip(null));
      mark.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") select(point);
        else if (event.key === "Escape") showTip(null);
        else if (event.key in KEYS) move(svg, point, KEYS[event.key]);
        else return;
        event.preventDefault();
      });
    }
    focus(svg, pick);
    svg.addEventListener("pointermove", (event) => {
      const point = nearest(event);
      svg.style.cursor = point ? "pointer" : "";
      showTip(point);
    });
    svg.addEventListener("pointerleave", () => showTip(null));
    svg.addEventListener("click", (event) => {
      const mark = event.target.closest && event.target.closest("[data-point]");
      // a click made by a script or an assistive tool has no place: then the mark itself counts
      const point = nearest(event) || (mark && byId.get(mark.dataset.point));
      if (point) select(point);
    });
  }

  for (const [id, row] of rows) {
    row.querySelector(".select").addEventListener("click", () => select(byId.get(id)));
  }
  document.getElementById("back").addEventListener("click", () => select(pick));

  function filter() {
    shown.clear();
    for (const box of document.querySelectorAll("input[data-way]")) {
      const slug = box.dataset.way;
      if (box.checked) shown.add(slug);
      for (const svg of charts) {
        const line = svg.getElementById(idOf(svg, `way-${slug}`));
        if (line) line.classList.toggle("gone", !box.checked);
      }
    }
    for (const point of points) {
      rows.get(point.id).hidden = !visible(point);
      for (const svg of charts) {
        const mark = markOf(svg, point);
        if (mark) mark.classList.toggle("gone", !visible(point));
      }
    }
    for (const svg of charts) svg.getElementById(idOf(svg, "pick-ring")).classList.toggle("gone", !visible(pick));
    for (const svg of charts) focus(svg, visible(chosen) ? chosen : points[0]);
    select(chosen);
  }
  for (const box of document.querySelectorAll("input[data-way]")) box.addEventListener("change", filter);

  function sortBy(column) {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.setAttribute("aria-sort", "none");
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      if (!cell.classList.contains("number")) return cell.querySelector(".way, .select").textContent;
      return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
    const order = [...body.rows].sort((one, two) => {
      const [a, b] = [key(one), key(two)];
      if (a === null || b === null) return (a === null) - (b === null); // no value: last, either way
      return (up ? 1 : -1) * compare(a, b);
    });
    body.append(...order);
  }
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));

  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => select(chosen));
  });
  filter();
})();
