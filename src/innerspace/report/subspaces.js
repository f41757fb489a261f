// What moves on the pages of subspaces: paths through the weights, lit from a part on, and preimages, found by query.
(() => {
  "use strict";
  const { byId, hush, make, minus, ticks } = page;
  const { brief, read, write } = dictionaries;

  // Pointing at a part lights the paths that begin or end in it.
  function flows(svg) {
    const paths = [...svg.querySelectorAll(".flow")];
    svg.querySelectorAll("[data-node]").forEach((node) => {
      const own = paths.filter((path) => path.dataset.nodes.split(" ").includes(node.dataset.node));
      const light = (on) => {
        svg.classList.toggle("choosing", on);
        own.forEach((path) => path.classList.toggle("lit", on));
      };
      node.addEventListener("pointerenter", () => light(true));
      node.addEventListener("pointerleave", () => light(false));
    });
  }

  function unpacked({ states, words, queries, partitions, ...others }) {
    const hits = (flat) => Array.from({ length: flat.length / 3 }, (_, i) => ({ state: states[flat[3 * i]], values: flat.slice(3 * i + 1, 3 * i + 3) }));
    const text = ([first, at]) => (Array.isArray(first) ? first.map((token) => words[token]) : first.split(" ").map((word) => ` ${word}`));
    const known = queries.map(([state, about], i) => {
      const tokens = text(states[state]), at = Array.isArray(states[state][0]) ? states[state][1] : -1;
      return { number: i, state: states[state], about, tokens, at, sought: `${tokens.join("")} ${about}`.toLowerCase() };
    });
    const sites = partitions.map(({ name, parts, queries: found }) => ({
      name,
      parts: parts.map(([title, tip, hue]) => ({ title, tip, hue })),
      views: found.map(({ n, w, p }) => ({
        considered: n, whole: hits(w),
        parts: p.map((one) => ({ sample: hits(one.s), counts: one.n, histogram: one.h, complement: hits(one.c) })),
      })),
    }));
    return { ...others, words, queries: known, sites };
  }

  function preimages() {
    const data = unpacked(read("preimage-data")), { queries, sites, levels, edges, show, extent } = data;
    const NAMES = ["cosine", "distance"], FULL = ["cosine at least", "distance at most, of the query's length"];
    const list = byId("preimage-list"), search = byId("preimage-search"), slider = byId("preimage-level"), leaf = byId("preimage-leaf");
    const choice = { site: 0, part: 0, query: 0, measure: 0, level: [...data.default] };
    let offered = queries;

    const within = (value) => (choice.measure ? value[1] <= levels[1][choice.level[1]] : value[0] >= levels[0][choice.level[0]]);
    const closer = (a, b) => (choice.measure ? a.values[1] - b.values[1] : b.values[0] - a.values[0]);

    // A state in its context, or as a small path with its words.
    function context({ state, values }) {
      const row = make("p", "", "strip"), body = make("span");
      if (values) row.append(make("small", minus(values[choice.measure].toFixed(2))));
      state[0].forEach((number, i) => {
        const word = data.words[number], token = write(make("span"), word);
        if (i === state[1]) {
          token.className = "on";
          token.style.setProperty("--heat", "60%");
          if (values) token.dataset.tip = `cosine ${brief(values[0])}\ndistance ${brief(values[1])} of the query's length`;
        }
        if (/^\s/.test(word)) body.append(make("wbr"));
        body.append(token);
      });
      row.append(...(values ? [body] : body.childNodes));
      return row;
    }

    function trip({ state: [caption, past, future], values }) {
      const figure = make("figure");
      const paths = [["past", past], ["future", future]].map(([name, path]) => (path ? `<path class="${name}" d="M${path}"/>` : "")).join("");
      if (paths) figure.innerHTML = `<svg class="trip" viewBox="${-extent / 2} ${-0.75 * extent} ${extent} ${extent}" aria-hidden="true">${paths}<path class="here" d="M0 0h.001"/></svg>`;
      figure.append(make("span", caption));
      if (values) figure.append(make("small", minus(values[choice.measure].toFixed(2))));
      return figure;
    }

    function fill(place, hits, otherwise = "None.") {
      if (!hits.length) { place.replaceChildren(make("p", otherwise, "none")); return; }
      if (Array.isArray(hits[0].state[0])) { place.replaceChildren(...hits.map(context)); return; }
      const box = make("div", "", "trips");
      box.append(...hits.map(trip));
      place.replaceChildren(box);
    }

    function histogram(counts) {
      const width = 340, height = 150, left = 44, right = 326, top = 20, bottom = 114;
      const [first, last] = [edges[0], edges[edges.length - 1]], most = Math.log10(Math.max(10, ...counts) * 1.3 / 0.7);
      const px = (value) => (left + (value - first) / (last - first) * (right - left)).toFixed(1);
      const py = (count) => (bottom - Math.max(0, Math.log10(count / 0.7) / most) * (bottom - top)).toFixed(1);
      const rows = [1, 100, 1e4, 1e6].filter((count) => py(count) >= top).map((count) =>
        `<path d="M${left} ${py(count)}H${right}"/><text class="y" x="${left - 6}" y="${py(count)}" dy=".32em">${count < 1e5 ? count : "1e6"}</text>`);
      const columns = ticks(first, last, 4).map((value) =>
        `<path d="M${px(value)} ${bottom}v4"/><text class="x" x="${px(value)}" y="${bottom + 16}">${minus(String(value))}</text>`);
      const near = choice.measure ? -Infinity : levels[0][choice.level[0]];
      const bars = counts.map((count, i) => (count ? `<path class="column${edges[i] < near - 1e-9 ? " far" : ""}" d="M${px(edges[i])} ${bottom}V${py(count)}H${px(edges[i + 1])}V${bottom}Z" data-tip="${brief(edges[i])} to ${brief(edges[i + 1])}\n${count} states"/>` : ""));
      byId("preimage-histogram").innerHTML = `<svg class="chart" viewBox="0 0 ${width} ${height}" role="img" aria-label="Histogram of the cosines of all states with the query, in the part"><g class="axes">${rows.join("")}${columns.join("")}<text class="x" x="${(left + right) / 2}" y="${height - 2}">cosine with the query</text><text x="0" y="10">states, logarithmic</text></g>${bars.join("")}</svg>`;
    }

    function draw() {
      const query = queries[choice.query], site = sites[choice.site], part = site.parts[choice.part];
      const view = site.views[choice.query], own = view.parts[choice.part], m = choice.measure, level = choice.level[m];
      [leaf, list].forEach((place) => { place.className = part.hue; });
      byId("preimage-title").className = part.hue;
      byId("preimage-title").textContent = `${site.name} · ${part.tip.split("\n").join(" · ")} · query ${query.number}`;
      fill(byId("preimage-query"), [{ state: query.state }]);
      slider.max = levels[m].length - 1;
      slider.value = level;
      slider.setAttribute("aria-valuetext", `${FULL[m]} ${levels[m][level]}`);
      byId("preimage-level-name").textContent = FULL[m];
      byId("preimage-level-text").textContent = levels[m][level];
      const close = own.sample.filter(({ values }) => within(values)).slice(0, show).sort(closer), count = own.counts[m][level];
      const share = brief(100 * count / view.considered), drawn = count > close.length ? `, ${close.length} of them drawn at random` : "";
      byId("preimage-said").textContent = `${count} of ${view.considered} states are that close (${share} %)${drawn}.`;
      histogram(own.histogram);
      fill(byId("preimage-sample"), close, "No other state is that close: the preimage is empty.");
      fill(byId("preimage-whole"), view.whole.slice(0, show));
      fill(byId("preimage-complement"), own.complement.slice(0, show));
      list.querySelectorAll("li").forEach((row) => row.setAttribute("aria-selected", String(row.id === `query-${query.number}`)));
      const row = byId(`query-${query.number}`), index = offered.indexOf(query);
      if (row) {
        list.setAttribute("aria-activedescendant", row.id);
        if (row.offsetTop < list.scrollTop || row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = row.offsetTop - list.clientHeight / 3;
      }
      byId("preimage-previous").disabled = index <= 0;
      byId("preimage-next").disabled = index < 0 || index === offered.length - 1;
      byId("preimage-count").textContent = offered.length ? `${index + 1} of ${offered.length}` : "none found";
    }

    const address = () => history.replaceState(null, "", `#preimage-${choice.site}-${choice.part}-${choice.query}`);
    const turn = (changes) => { Object.assign(choice, changes); draw(); address(); };

    function pills(place, name, options, current, choose) {
      place.replaceChildren(...options.map(({ title, tip, hue }, i) => {
        const label = make("label", "", hue || ""), input = make("input");
        Object.assign(input, { type: "radio", name, value: i, checked: i === current });
        input.addEventListener("change", () => choose(i));
        if (tip) label.dataset.tip = tip;
        label.append(input, make("span", title));
        return label;
      }));
    }
    const offerParts = () => {
      choice.part = Math.min(choice.part, sites[choice.site].parts.length - 1);
      pills(byId("preimage-parts"), "preimage-part", sites[choice.site].parts, choice.part, (part) => turn({ part }));
    };

    // The word of the query stands in what came just before it.
    function named({ tokens, at, about }) {
      const words = make("em");
      if (at < 0) words.append(tokens.join("").trim());
      else {
        const before = tokens.slice(Math.max(0, at - 3), at).join("").trimStart();
        words.append(before ? `…${before}` : "");
        words.append(write(make("b"), tokens[at].trim() ? tokens[at].trimStart() : tokens[at]));
        if (/^\s+\S/.test(tokens[at]) && before) words.lastChild.before(" ");
      }
      if (about) words.append(` · ${about}`);
      return words;
    }

    function offer() {
      const sought = search.value.trim().toLowerCase();
      offered = queries.filter(({ number, sought: text }) => !sought || (/^\d+$/.test(sought) && String(number) === sought) || text.includes(sought));
      list.replaceChildren(...offered.map((query) => {
        const row = make("li");
        Object.assign(row, { id: `query-${query.number}`, role: "option", ariaSelected: "false" });
        row.append(make("b", String(query.number)), named(query));
        row.addEventListener("click", () => turn({ query: query.number }));
        return row;
      }));
      if (offered.length && !offered.includes(queries[choice.query])) choice.query = offered[0].number;
      draw();
    }

    const step = (by) => {
      const next = offered[Math.max(0, Math.min(offered.length - 1, offered.indexOf(queries[choice.query]) + by))];
      if (next) turn({ query: next.number });
    };

    function follow() {
      const found = /^#preimage-(\d+)-(\d+)-(\d+)$/.exec(location.hash);
      const [site, part, query] = found ? found.slice(1).map(Number) : [];
      if (!found || !sites[site] || !sites[site].parts[part] || !queries[query]) return;
      Object.assign(choice, { site, part, query });
      byId("preimage-partition").value = site;
      if (!offered.includes(queries[query])) search.value = "";
      offerParts();
      offer();
      byId("preimage-live").scrollIntoView({ block: "start" });
      byId("preimage-title").focus({ preventScroll: true });
    }

    sites.forEach(({ name }, i) => { const option = make("option", name); option.value = i; byId("preimage-partition").append(option); });
    byId("preimage-partition").addEventListener("change", (event) => { choice.site = Number(event.target.value); offerParts(); turn({}); });
    pills(byId("preimage-measures"), "preimage-measure", NAMES.map((title) => ({ title })), 0, (measure) => { choice.measure = measure; draw(); });
    slider.addEventListener("input", () => { choice.level[choice.measure] = Number(slider.value); hush(); draw(); });
    search.addEventListener("input", offer);
    byId("preimage-previous").addEventListener("click", () => step(-1));
    byId("preimage-next").addEventListener("click", () => step(1));
    list.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
      if (by) { event.preventDefault(); step(by); }
    });
    window.addEventListener("hashchange", follow);
    offerParts();
    offer();
    follow();
  }

  document.querySelectorAll(".flows").forEach(flows);
  if (byId("preimage-live")) preimages();
})();
