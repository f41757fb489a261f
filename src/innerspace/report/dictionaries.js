// What moves on the pages of dictionaries: curves that a legend shows, single features, the map that selects them.
const dictionaries = (() => {
  "use strict";
  const { byId, hush, make, minus, tell, ticks } = page;
  const brief = (value) => {
    const size = Math.abs(value);
    return minus(size && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3))));
  };
  const read = (id) => JSON.parse(byId(id).textContent);
  const places = (path) => (path.getAttribute("d").match(/[\d.]+ [\d.]+/g) || []).map((pair) => pair.split(" ").map(Number));
  const located = (svg, event) => {
    const { a, d, e, f } = svg.getScreenCTM();
    return [(event.clientX - e) / a, (event.clientY - f) / d];
  };

  // Legends ------------------------------------------------------------------------------------------------------
  function legend(root) {
    const boxes = [...root.querySelectorAll("[data-shows]")];
    const apply = () => {
      const off = boxes.filter((box) => !box.checked).map((box) => box.dataset.shows);
      root.querySelectorAll(".line, .cloud").forEach((mark) =>
        mark.classList.toggle("off", off.some((name) => mark.classList.contains(name))));
      root.dispatchEvent(new Event("switch"));
    };
    boxes.forEach((box) => box.addEventListener("change", apply));
    root.querySelectorAll(".toggles").forEach((row) => {
      const own = [...row.querySelectorAll("[data-shows]")], button = make("button", row.querySelector("legend").textContent);
      if (own.length < 2) return;
      button.type = "button";
      button.dataset.tip = "all or none";
      button.addEventListener("click", () => {
        const show = own.some((box) => !box.checked);
        own.forEach((box) => { box.checked = show; });
        apply();
      });
      row.querySelector("legend").replaceChildren(button);
    });
  }

  // Pointing near a line lights its run in every chart and tells the value there.
  function readable(svg) {
    const { x, y, box: [left, top, right, bottom] } = JSON.parse(svg.dataset.axes);
    const value = ([low, high, log], share) => (log ? low * (high / low) ** share : low + share * (high - low));
    const lines = [...svg.querySelectorAll("[data-run]")].map((path) => ({ path, points: places(path) }));
    const root = svg.closest(".switched"), name = svg.querySelector(".name.x").textContent;
    const light = (run) => {
      root.classList.toggle("dimmed", Boolean(run));
      root.querySelectorAll("[data-run]").forEach((path) => path.classList.toggle("lit", path.dataset.run === run));
    };
    svg.addEventListener("pointermove", (event) => {
      const [u, v] = located(svg, event);
      let best = null, nearest = 12 ** 2;
      lines.filter(({ path }) => !path.classList.contains("off")).forEach(({ path, points }) => points.forEach(([a, b]) => {
        const distance = (a - u) ** 2 + (b - v) ** 2;
        if (distance < nearest) [nearest, best] = [distance, { path, a, b }];
      }));
      light(best && best.path.dataset.run);
      if (!best) { hush(); return; }
      const [at, found] = [value(x, (best.a - left) / (right - left)), value(y, (bottom - best.b) / (bottom - top))];
      tell(`${best.path.dataset.run}\n${brief(found)} at ${name} ${brief(at)}`, svg.getBoundingClientRect(), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => { light(null); hush(); });
  }

  // Features -----------------------------------------------------------------------------------------------------
  const INVISIBLE = /([\s\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff])/u;
  const MARKS = { " ": "·", "\n": "↵", "\t": "⇥" };
  const mark = (sign) => MARKS[sign] || `U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

  // What would not be seen is drawn as a faint sign.
  function write(parent, text) {
    const parts = text.split(INVISIBLE).filter(Boolean);
    (parts.length ? parts : [""]).forEach((part) => {
      if (part && !INVISIBLE.test(part)) parent.append(part);
      else parent.append(make("i", part ? mark(part) : "∅"));
    });
    return parent;
  }

  function unpacked({ dictionaries, features, words, letters }) {
    const digit = new Map([...letters].map((letter, i) => [letter, i]));
    const tokens = (packed) => (packed.match(/.../g) || []).map((three) => words[[...three].reduce((sum, letter) => 64 * sum + digit.get(letter), 0)]);
    const example = ([text, on]) => {
      if (!Array.isArray(on)) return { caption: text, value: on, peak: text };
      const found = tokens(text), values = found.map(() => 0);
      for (let i = 0; i < on.length; i += 2) values[on[i]] = on[i + 1];
      return { tokens: found, values, peak: on.length ? found[values.indexOf(Math.max(...values))] : "" };
    };
    const pushed = (rows) => rows.map(([word, value]) => ({ word: words[word], value }));
    return features.map((one) => {
      const bands = one.b.map(([name, low, high, examples]) => ({ name, low, high, examples: examples.map(example) }));
      const peaks = [...new Set(bands.flatMap((band) => band.examples.map(({ peak }) => peak.trim())).filter(Boolean))];
      return {
        id: `feature-${one.d}-${one.n}`, dictionary: one.d, name: dictionaries[one.d].name, hue: dictionaries[one.d].hue,
        latent: one.n, density: one.f, max: one.m, edges: one.h[0], counts: one.h[1], bands, peaks,
        neighbors: one.s.map(([latent, cosine]) => ({ dictionary: one.d, latent, cosine })),
        similar: one.o.map(([dictionary, latent, cosine]) => ({ dictionary, latent, cosine })),
        up: pushed(one.u), down: pushed(one.l), said: one.e || "", judged: one.j || "",
      };
    });
  }

  // One context: active tokens are shaded and can be pointed at; the arrow keys go from one to the next.
  function strip(one, example) {
    const row = make("p", "", "strip"), on = [];
    const parts = example.tokens || [example.caption], values = example.values || [example.value], most = Math.max(...values);
    parts.forEach((part, i) => {
      const token = example.tokens ? write(make("span"), part) : make("span", part);
      if (values[i]) {
        token.className = "on";
        token.style.setProperty("--heat", `${8 + 52 * Math.min(Math.max(values[i] / (one.max || 1), 0), 1)}%`);
        token.dataset.tip = brief(values[i]);
        token.tabIndex = values[i] === most ? 0 : -1;
        on.push(token);
      }
      // a line breaks where a word begins
      if (/^\s/.test(part)) row.append(make("wbr"));
      row.append(token);
    });
    if (example.caption) row.append(make("small", brief(example.value)));
    row.addEventListener("keydown", (event) => {
      const next = on[on.indexOf(document.activeElement) + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] || NaN)];
      if (next) { event.preventDefault(); next.focus(); }
    });
    row.addEventListener("focusin", ({ target }) => {
      const box = target.getBoundingClientRect();
      tell(target.dataset.tip, box, box.left + box.width / 2, box.bottom);
    });
    row.addEventListener("focusout", hush);
    return row;
  }

  function histogram({ edges, counts, id }) {
    const width = 340, height = 170, left = 44, right = 326, top = 26, bottom = 134;
    const [first, last] = [edges[0], edges[edges.length - 1]], most = Math.log10(Math.max(10, ...counts) * 1.3 / 0.7);
    const px = (value) => (left + (value - first) / (last - first || 1) * (right - left)).toFixed(1);
    const py = (count) => bottom - Math.max(0, Math.log10(count / 0.7) / most) * (bottom - top);
    const rows = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter((count) => py(count) >= top).map((count) =>
      `<path d="M${left} ${py(count).toFixed(1)}H${right}"/><text class="y" x="${left - 6}" y="${py(count).toFixed(1)}" dy=".32em">${count < 1e4 ? count : count.toExponential(0).replace("+", "")}</text>`);
    const columns = last > first ? ticks(first, last, 4).map((value) =>
      `<path d="M${px(value)} ${bottom}v4"/><text class="x" x="${px(value)}" y="${bottom + 16}">${brief(value)}</text>`) : [];
    const bars = counts.map((count, i) => (count ? `<path class="column" d="M${px(edges[i])} ${bottom}V${py(count).toFixed(1)}H${px(edges[i + 1])}V${bottom}Z" data-tip="${brief(edges[i])} to ${brief(edges[i + 1])}\n${count} times"/>` : ""));
    const svg = make("div");
    svg.innerHTML = `<svg class="chart" viewBox="0 0 ${width} ${height}" role="img" aria-label="Histogram of the nonzero activations of ${id}"><g class="axes">${rows.join("")}${columns.join("")}<text class="x" x="${(left + right) / 2}" y="${height - 4}">activation, where not zero</text><text x="0" y="11">count, logarithmic</text></g>${bars.join("")}</svg>`;
    return svg.firstChild;
  }

  function browser() {
    const raw = read("features-data"), all = unpacked(raw);
    const byName = new Map(all.map((one) => [one.id, one]));
    const list = byId("browser-list"), leaf = byId("browser-leaf");
    const search = byId("browser-search"), chooser = byId("browser-dictionary"), order = byId("browser-order");
    const orders = {
      "most frequent first": (a, b) => b.density - a.density,
      "rarest first": (a, b) => a.density - b.density,
      "strongest first": (a, b) => b.max - a.max,
      "by number": (a, b) => a.dictionary - b.dictionary || a.latent - b.latent,
    };
    let offered = all, current = null;

    const panel = (title, ...content) => {
      const box = make("div", "", "panel");
      box.append(make("h4", title), ...content);
      return box;
    };
    const item = (...content) => { const row = make("li"); row.append(...content); return row; };
    const listed = (rows, draw) => {
      const ol = make("ol", "", "pairs");
      ol.append(...rows.map((row) => item(...draw(row))));
      return ol;
    };
    const pushed = ({ word, value }) => [write(make("code"), word), make("span", (value > 0 ? "+" : "") + brief(value))];

    // A feature that has a page becomes a link to it.
    function named({ dictionary, latent, cosine }, words) {
      const known = byName.get(`feature-${dictionary}-${latent}`), link = make(known ? "a" : "span", words + latent);
      if (known) link.href = `#${known.id}`;
      link.className = raw.dictionaries[dictionary].hue;
      const about = known ? [make("em", known.peaks.slice(0, 3).join(", "))] : [];
      return [link, ...about, make("span", brief(cosine))];
    }

    function draw(one) {
      const title = make("h3", `${one.name} · feature ${one.latent}`, one.hue), facts = make("div", "", "facts");
      title.tabIndex = -1;
      const share = `fires on ${brief(100 * one.density)} % of ${raw.unit} · at most ${brief(one.max)}`;
      facts.append(panel("Activations", histogram(one)));
      if (one.up.length) facts.append(panel("Pushes up", listed(one.up, pushed)));
      if (one.down.length) facts.append(panel("Pushes down", listed(one.down, pushed)));
      if (one.neighbors.length) facts.append(panel("Most similar in this one", listed(one.neighbors, (row) => named(row, ""))));
      if (one.similar.length) {
        facts.append(panel("Most similar in the other dictionaries", listed(one.similar, (row) => named(row, `${raw.dictionaries[row.dictionary].name} · `))));
      }
      const bands = one.bands.map((band) => {
        const box = make("div", "", "quantile"), head = make("h4", band.name);
        head.append(make("small", `${brief(band.low)} to ${brief(band.high)}`));
        box.append(head, ...band.examples.map((example) => strip(one, example)));
        return box;
      });
      leaf.className = one.hue;
      const said = one.said ? [make("p", one.said, "said"), make("p", one.judged, "numbers")] : [];
      leaf.replaceChildren(title, ...said, make("p", share, "numbers"), facts, ...bands);
    }

    function show(one) {
      current = one;
      draw(one);
      list.querySelectorAll("[aria-selected=true]").forEach((row) => row.setAttribute("aria-selected", "false"));
      const row = byId(`row-${one.id}`), index = offered.indexOf(one);
      if (row) {
        row.setAttribute("aria-selected", "true");
        list.setAttribute("aria-activedescendant", row.id);
        const place = row.offsetTop;
        if (place < list.scrollTop || place + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = place - list.clientHeight / 3;
      }
      byId("browser-previous").disabled = index <= 0;
      byId("browser-next").disabled = index < 0 || index === offered.length - 1;
      byId("browser-count").textContent = `${index + 1} of ${offered.length}`;
    }

    // Leafing keeps the address in step without filling the history.
    const turn = (one) => { show(one); history.replaceState(null, "", `#${one.id}`); };
    const step = (by) => { const next = offered[offered.indexOf(current) + by]; if (next) turn(next); };

    function fits(one) {
      const sought = search.value.trim().toLowerCase();
      if (chooser.value !== "" && one.dictionary !== Number(chooser.value)) return false;
      if (!sought || (/^\d+$/.test(sought) && String(one.latent).startsWith(sought))) return true;
      return [one.said, ...one.peaks, ...one.up.map(({ word }) => word)].some((word) => word.toLowerCase().includes(sought));
    }

    function offer() {
      offered = all.filter(fits).sort(orders[order.value]);
      list.replaceChildren(...offered.map((one) => {
        const row = make("li", "", one.hue);
        Object.assign(row, { id: `row-${one.id}`, role: "option", ariaSelected: "false" });
        row.append(make("b", String(one.latent)), make("em", one.said || one.peaks.slice(0, 4).join(", ")), make("span", `${brief(100 * one.density)} %`));
        row.addEventListener("click", () => turn(one));
        return row;
      }));
      if (offered.length) show(offered.includes(current) ? current : offered[0]);
      else byId("browser-count").textContent = "none found";
    }

    function follow() {
      const one = byName.get(decodeURIComponent(location.hash.slice(1)));
      if (!one) return;
      if (!offered.includes(one)) { search.value = ""; chooser.value = ""; current = one; offer(); } else show(one);
      byId("browser").scrollIntoView({ block: "start" });
      leaf.querySelector("h3").focus({ preventScroll: true });
    }

    const choice = (place, value, words) => { const option = make("option", words); option.value = value; place.append(option); };
    choice(chooser, "", "all");
    raw.dictionaries.forEach(({ name }, i) => { if (all.some((one) => one.dictionary === i)) choice(chooser, i, name); });
    Object.keys(orders).forEach((words) => choice(order, words, words));
    search.addEventListener("input", offer);
    [chooser, order].forEach((place) => place.addEventListener("change", offer));
    byId("browser-previous").addEventListener("click", () => step(-1));
    byId("browser-next").addEventListener("click", () => step(1));
    list.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
      if (!by) return;
      event.preventDefault();
      const last = offered.length - 1, at = offered.indexOf(current);
      step(Math.max(0, Math.min(last, at + by)) - at);
    });
    window.addEventListener("hashchange", follow);
    offer();
    follow();
    const pages = new Map(all.map((one) => [`${one.name}/${one.latent}`, one]));
    return { find: (name, latent) => pages.get(`${name}/${latent}`) };
  }

  // The map ------------------------------------------------------------------------------------------------------
  function atlas(find) {
    const LISTED = 40;
    const root = byId("atlas"), map = byId("atlas-map"), svg = map.querySelector("svg"), layer = svg.querySelector("g");
    const points = read("atlas-data").flatMap(({ name, hue, latents, words }, i) => {
      const cloud = svg.querySelector(`.cloud-${i}`);
      return places(cloud).map(([x, y], j) => ({ x, y, name, hue, cloud, latent: latents[j], words: words[j] || "" }));
    });
    const there = () => points.filter(({ cloud }) => !cloud.classList.contains("off"));
    let chosen = [], cursor = null, start = null;

    function entry(point) {
      const page = find(point.name, point.latent), row = make("li", "", point.hue);
      const title = make(page ? "a" : "b", `${point.name} · ${point.latent}`);
      if (page) title.href = `#${page.id}`;
      const first = page && page.bands[0] && page.bands[0].examples[0];
      row.append(title, first ? strip(page, first) : make("p", point.words));
      return row;
    }

    function select(wanted, frame = "") {
      chosen = wanted;
      layer.innerHTML = chosen.map(({ x, y, hue }) => `<circle class="${hue}" cx="${x}" cy="${y}" r="3.2"/>`).join("") + frame;
      const paged = ({ name, latent }) => Boolean(find(name, latent));
      const listed = [...chosen].sort((a, b) => paged(b) - paged(a)).slice(0, LISTED);
      byId("atlas-list").replaceChildren(...listed.map(entry));
      const rest = chosen.length > LISTED ? `, ${LISTED} of them below` : "";
      byId("atlas-said").textContent = chosen.length ? `${chosen.length} selected${rest}. Escape clears.` : "Nothing selected.";
    }

    const nearest = ([x, y], reach) => there().reduce((best, point) => {
      const distance = Math.hypot(point.x - x, point.y - y);
      return distance < best.distance ? { distance, point } : best;
    }, { distance: reach, point: null }).point;
    const rectangle = ([a, b], [c, d]) => ({ x: Math.min(a, c), y: Math.min(b, d), width: Math.abs(a - c), height: Math.abs(b - d) });

    map.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      start = located(svg, event);
      map.setPointerCapture(event.pointerId);
    });
    map.addEventListener("pointermove", (event) => {
      const here = located(svg, event);
      if (start) {
        const { x, y, width, height } = rectangle(start, here);
        layer.querySelectorAll("rect").forEach((old) => old.remove());
        layer.insertAdjacentHTML("beforeend", `<rect x="${x}" y="${y}" width="${width}" height="${height}"/>`);
        return;
      }
      const point = nearest(here, 8);
      if (point) tell(`${point.name} · ${point.latent}${point.words ? `\n${point.words}` : ""}`, map.getBoundingClientRect(), event.clientX, event.clientY);
      else hush();
    });
    map.addEventListener("pointerup", (event) => {
      if (!start) return;
      const here = located(svg, event), { x, y, width, height } = rectangle(start, here), kept = event.shiftKey ? chosen : [];
      start = null;
      if (width + height < 6) {
        cursor = nearest(here, 18);
        select(cursor ? [...kept.filter((point) => point !== cursor), cursor] : kept);
      } else {
        const inside = there().filter((point) => point.x >= x && point.x <= x + width && point.y >= y && point.y <= y + height);
        select([...kept.filter((point) => !inside.includes(point)), ...inside], `<rect x="${x}" y="${y}" width="${width}" height="${height}"/>`);
      }
    });
    map.addEventListener("pointercancel", () => { start = null; select(chosen); });
    map.addEventListener("pointerleave", hush);
    map.addEventListener("keydown", (event) => {
      const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") { cursor = null; select([]); }
      if (!way) return;
      event.preventDefault();
      const from = cursor || { x: svg.viewBox.baseVal.width / 2, y: svg.viewBox.baseVal.height / 2 };
      // the next feature in this direction; what lies aside counts as farther
      const far = ({ x, y }) => {
        const along = (x - from.x) * way[0] + (y - from.y) * way[1], aside = Math.abs((x - from.x) * way[1] + (y - from.y) * way[0]);
        return along > 0 ? along + 2 * aside : Infinity;
      };
      const next = there().reduce((best, point) => (far(point) < far(best) ? point : best), { x: NaN, y: NaN });
      if (Number.isNaN(next.x)) return;
      const kept = event.shiftKey ? chosen.filter((point) => point !== next) : [];
      cursor = next;
      select([...kept, next]);
    });
    root.addEventListener("switch", () => select(chosen.filter(({ cloud }) => !cloud.classList.contains("off"))));
  }

  document.querySelectorAll(".switched").forEach(legend);
  document.querySelectorAll("[data-axes]").forEach(readable);
  const { find } = byId("browser") ? browser() : { find: () => undefined };
  if (byId("atlas")) atlas(find);
  return { brief, read, write };
})();
