// Moves what moves: the steered forecasts, the numbers that show on pointing, the mark in the contents.
const page = (() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  document.documentElement.classList.replace("no-js", "js");

  const minus = (text) => text.replace("-", "−");
  const write = (value, digits, sign = false) => {
    const text = value.toFixed(digits);
    return (sign && Number(text) > 0 ? "+" : "") + minus(Number(text) === 0 ? (0).toFixed(digits) : text);
  };
  const tauText = (tau) => (tau > 0 ? "+" : "") + minus(String(tau));
  const clear = (parent) => { while (parent.firstChild) parent.firstChild.remove(); };
  const make = (tag, text = "", style = "") => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (style) element.className = style;
    return element;
  };

  // A forecast is a list of [x, y] in the target's frame; +x is drawn upward.
  const drawn = (points) => "M0 0" + points.map(([x, y]) => `L${(-y).toFixed(2)} ${(-x).toFixed(2)}`).join("");
  const end = (points) => { const [x, y] = points[points.length - 1]; return `M${(-y).toFixed(2)} ${(-x).toFixed(2)}h.001`; };
  const speeds = (points, interval) =>
    points.map(([x, y], i) => Math.hypot(x - (i ? points[i - 1][0] : 0), y - (i ? points[i - 1][1] : 0)) / interval);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const heading = (points) => {
    const [x, y] = points[points.length - 1];
    const [u, v] = points.length > 1 ? points[points.length - 2] : [0, 0];
    // the direction of a standing agent is noise
    return Math.hypot(x - u, y - v) > 0.05 ? Math.atan2(y - v, x - u) * 180 / Math.PI : null;
  };

  function unpack(entry) {
    const bytes = Uint8Array.from(atob(entry.paths), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    let place = 0;
    const next = () => { place += 2; return view.getInt16(place - 2, true) * entry.step; };
    const repeat = (count, item) => Array.from({ length: count }, item);
    entry.forecasts = repeat(entry.tau.length, () => repeat(entry.modes, () => repeat(entry.points, () => [next(), next()])));
    entry.best = entry.probability.map((row) => row.indexOf(Math.max(...row)));
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toFixed(9)));
    return found;
  }

  // Draws lines of [x, y] pairs in the same frame as the charts that came with the page.
  function plot(svg, { x, y, xName, yName, lines, dots = [] }) {
    const width = 340, height = 170, left = 44, right = 326, top = 26, bottom = 134;
    const px = (value) => left + (value - x[0]) / (x[1] - x[0]) * (right - left);
    const py = (value) => bottom - (value - y[0]) / (y[1] - y[0]) * (bottom - top);
    const at = ([a, b]) => `${px(a).toFixed(1)} ${py(b).toFixed(1)}`;
    const rows = ticks(y[0], y[1], 4).map((value) =>
      `<path d="M${left} ${py(value)}H${right}"/><text class="y" x="${left - 6}" y="${py(value)}" dy=".32em">${minus(String(value))}</text>`);
    const columns = ticks(x[0], x[1], 5).map((value) =>
      `<path d="M${px(value)} ${bottom}v4"/><text class="x" x="${px(value)}" y="${bottom + 16}">${minus(String(value))}</text>`);
    const names = `<text class="x" x="${(left + right) / 2}" y="${height - 4}">${xName}</text><text x="0" y="11">${yName}</text>`;
    const paths = lines.map(({ points, style }) => `<path class="line ${style}" d="M${points.map(at).join("L")}"/>`);
    const marks = dots.map(({ point, style, tip, r = 2.4 }) =>
      `<circle class="dot ${style}" cx="${px(point[0])}" cy="${py(point[1])}" r="${r}" data-tip="${tip}"/>`);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.innerHTML = `<g class="axes">${rows.join("")}${columns.join("")}${names}</g>${paths.join("")}${marks.join("")}`;
  }

  function stage() {
    const { interval, scenes } = JSON.parse(byId("stage-data").textContent);
    scenes.forEach((scene) => scene.steered.forEach(unpack));
    const figure = byId("stage"), slider = byId("tau");
    const choice = { scene: 0, vector: null, method: null };
    const unique = (items) => [...new Set(items)];
    const offered = () => scenes[choice.scene].steered;
    const entry = () => offered().find((item) => item.vector === choice.vector && item.method === choice.method);

    function pills(place, name, options, hue) {
      clear(place);
      options.forEach((option) => {
        const label = make("label", "", hue(option)), input = make("input");
        Object.assign(input, { type: "radio", name, value: option, checked: option === choice[name] });
        input.addEventListener("change", () => { choice[name] = option; choose(); byId("stage").querySelector(`input[name=${name}]:checked`).focus(); });
        label.append(input, make("span", option));
        place.append(label);
      });
    }

    // Offers what the scene has; keeps the vector, the method and the temperature where they exist.
    function choose() {
      const tau = slider.dataset.tau;
      const vectors = unique(offered().map((item) => item.vector));
      if (!vectors.includes(choice.vector)) choice.vector = vectors[0];
      const methods = unique(offered().filter((item) => item.vector === choice.vector).map((item) => item.method));
      if (!methods.includes(choice.method)) choice.method = methods[0];
      pills(byId("stage-vectors"), "vector", vectors, (name) => offered().find((item) => item.vector === name).hue);
      pills(byId("stage-methods"), "method", methods, () => "");
      const { hue, tau: grid, zero } = entry();
      figure.className = `live ${hue}`;
      slider.max = grid.length - 1;
      const kept = grid.findIndex((value) => String(value) === tau);
      slider.value = kept < 0 ? (tau === undefined ? grid.length - 1 : zero) : kept;
      const marks = figure.querySelector(".ticks");
      clear(marks);
      unique([0, Math.floor(zero / 2), zero, Math.ceil((zero + grid.length - 1) / 2), grid.length - 1]).forEach((i) => {
        const mark = make("span", tauText(grid[i]));
        mark.style.left = `calc(12px + (100% - 24px) * ${i / Math.max(grid.length - 1, 1)})`;
        marks.append(mark);
      });
      const scene = scenes[choice.scene];
      figure.querySelectorAll(".map").forEach((map) => {
        map.setAttribute("viewBox", scene.view);
        map.querySelector("use").setAttribute("href", `#map-${choice.scene}`);
      });
      figure.querySelectorAll(".scale").forEach((label) => { label.textContent = `${scene.bar} m`; });
      move();
    }

    function modes(item, index, id) {
      const best = item.best[index], strongest = item.probability[index][best] || 1;
      const order = item.forecasts[index].map((_, mode) => mode).sort((a, b) => item.probability[index][a] - item.probability[index][b]);
      return order.map((mode) => {
        const points = item.forecasts[index][mode], chosen = mode === best, share = item.probability[index][mode];
        const tip = `mode ${mode + 1} · probability ${write(share, 2)}\nmean speed ${write(mean(speeds(points, interval)), 1)} m/s`;
        const opacity = chosen ? 1 : 0.2 + 0.6 * share / strongest;
        const path = `<path class="mode${chosen ? " best" : ""}"${chosen ? ` id="${id}"` : ""} opacity="${opacity.toFixed(2)}" d="${drawn(points)}" data-tip="${tip}"/>`;
        return path + (chosen ? `<path class="end" d="${end(points)}"/>` : "");
      }).join("");
    }

    function readings(before, after, item, index) {
      const [v, w] = [before, after].map((points) => speeds(points, interval));
      const [a, b] = [before, after].map(heading);
      const [m, n] = [mean(v), mean(w)], last = v.length - 1;
      const gap = Math.hypot(before[last][0] - after[last][0], before[last][1] - after[last][1]);
      const chance = [item.zero, index].map((i) => item.probability[i][item.best[i]]);
      const turn = a === null || b === null ? "" : write((b - a + 540) % 360 - 180, 1, true);
      const rows = [
        ["mean speed [m/s]", write(m, 1), write(n, 1), m > 0.1 ? `${write(100 * (n / m - 1), 0, true)} %` : write(n - m, 1, true)],
        ["final speed [m/s]", write(v[last], 1), write(w[last], 1), write(w[last] - v[last], 1, true)],
        ["final heading [°]", ...[a, b].map((angle) => angle === null ? "–" : write(angle, 1)), turn],
        ["end points apart [m]", "", "", write(gap, 1)],
        ["probability", ...chance.map((value) => write(value, 2)), write(chance[1] - chance[0], 2, true)],
      ];
      const body = byId("readings");
      clear(body);
      rows.forEach(([name, ...cells]) => {
        const row = make("tr"), head = make("th", name);
        head.scope = "row";
        row.append(head, ...cells.map((cell) => make("td", cell, "number")));
        body.append(row);
      });
    }

    function charts(item, index) {
      const best = item.forecasts.map((forecast, i) => forecast[item.best[i]]);
      const all = best.map((points) => speeds(points, interval));
      const truth = speeds(scenes[choice.scene].truth, interval);
      const timed = (values) => values.map((value, i) => [(i + 1) * interval, value]);
      const top = 1.05 * Math.max(1, ...all.flat(), ...truth);
      const style = item.hue;
      plot(byId("speed-chart"), {
        x: [0, all[0].length * interval], y: [0, top], xName: "seconds ahead", yName: "m/s",
        lines: [
          ...(truth.length ? [{ points: timed(truth), style: "truth" }] : []),
          { points: timed(all[item.zero]), style: "ghost" },
          { points: timed(all[index]), style: `thick ${style}` },
        ],
      });
      const dose = item.tau.map((tau, i) => [tau, mean(all[i])]), room = 0.04 * (item.tau[item.tau.length - 1] - item.tau[0]);
      plot(byId("dose-chart"), {
        x: [item.tau[0] - room, item.tau[item.tau.length - 1] + room], y: [0, 1.08 * Math.max(1, ...dose.map(([, value]) => value))],
        xName: "temperature τ", yName: "m/s", lines: [{ points: dose, style }],
        dots: dose.map((point, i) => ({
          point, style, r: i === index ? 5.5 : 2.4, tip: `τ ${tauText(point[0])}\nmean speed ${write(point[1], 1)} m/s`,
        })),
      });
    }

    function move() {
      const item = entry(), index = Number(slider.value), tau = tauText(item.tau[index]);
      const before = item.forecasts[item.zero][item.best[item.zero]], after = item.forecasts[index][item.best[index]];
      slider.dataset.tau = item.tau[index];
      slider.setAttribute("aria-valuetext", `τ = ${tau}`);
      byId("tau-text").textContent = `τ = ${tau}`;
      byId("steered-tau").textContent = `τ = ${tau}`;
      byId("map-unsteered").querySelector("g").innerHTML = modes(item, item.zero, "unsteered-path");
      const ghost = `<path class="ghost" d="${drawn(before)}"/><path class="end ghost" d="${end(before)}"/>`;
      byId("map-steered").querySelector("g").innerHTML = ghost + modes(item, index, "steered-path");
      readings(before, after, item, index);
      charts(item, index);
    }

    scenes.forEach((scene, i) => {
      const option = make("option", `${i + 1}. ${scene.words}`);
      option.value = i;
      byId("scene").append(option);
    });
    byId("scene").addEventListener("change", (event) => { choice.scene = Number(event.target.value); choose(); });
    slider.addEventListener("input", move);
    choose();
  }

  const hush = () => { byId("tip").hidden = true; };

  // Shows words above a box, or below the pointer where there is no room.
  function tell(text, box, x, y) {
    const tip = byId("tip");
    tip.textContent = text;
    tip.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = tip;
    const left = Math.min(x, box.right) - width / 2;
    const above = Math.max(box.top, y - 24) - height - 8;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - width - 8))}px`;
    tip.style.top = `${above > 8 ? above : y + 20}px`;
  }

  function tips() {
    document.addEventListener("pointerover", (event) => {
      const source = event.target.closest("[data-tip]");
      if (source) tell(source.dataset.tip, source.getBoundingClientRect(), event.clientX, event.clientY); else hush();
    });
    document.addEventListener("scroll", hush, { passive: true, capture: true });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });
  }

  function contents() {
    const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.getAttribute("href").slice(1), link]));
    const watch = new IntersectionObserver((entries) => {
      const entered = entries.find((item) => item.isIntersecting);
      if (!entered) return;
      links.forEach((link) => link.removeAttribute("aria-current"));
      const link = links.get(entered.target.id);
      link.setAttribute("aria-current", "true");
      const bar = link.closest("ul");
      bar.scrollTo({ left: link.offsetLeft - bar.clientWidth / 2 + link.offsetWidth / 2 });
    }, { rootMargin: "-20% 0px -75% 0px" });
    document.querySelectorAll("main > section").forEach((section) => watch.observe(section));
  }

  const opened = () => document.querySelectorAll("details").forEach((item) => { item.open = true; });
  window.addEventListener("beforeprint", opened);
  if (byId("stage")) stage();
  tips();
  contents();
  return { byId, hush, make, minus, tell, ticks };
})();
