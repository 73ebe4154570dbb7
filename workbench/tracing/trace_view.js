// Makes every .trace-view of the page that is not made yet. The data are in its <script type="application/json">,
// the markup in its <template>; both are written by trace_view.py.
const MOST_TICKS = 13, MANY_FACTS = 10, SLACK = 0.05, GAPS_TO = 16; // as in the static heat maps
const STATES = [["before", "Before"], ["after", "After"], ["difference", "Difference"]];

function makeView(root, data) {
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const [view, grid, live, facts, search] = ["view", "grid", "live", "facts", "search"].map(part);
  const at = new Shown();
  const label = (site) => data.labels[site] ?? site;
  let active = [0, 0], low = 0, high = 1, cells = [], rowHeads = [], columnHeads = [];

  // Drawing --------------------------------------------------------------------------------------------------

  function drawFact(index) {
    at.trace = data.traces[index];
    const sites = Object.keys(at.trace.sites);
    if (!sites.includes(at.site)) at.site = sites[0];
    if (!at.trace.after) at.state = "before";
    drawChoices("site", sites.map((site) => [site, label(site)]));
    drawChoices("state", at.trace.after ? STATES : []);
    drawGrid();
    active = peak();
    paint();
  }

  // Radio buttons for a field of `at`.
  function drawChoices(name, options) {
    part(name).closest("fieldset").hidden = options.length === 0;
    part(name).replaceChildren(...options.map(([value, text]) => {
      const input = make("input", { type: "radio", name, value });
      input.checked = value === at[name];
      input.addEventListener("change", () => {
        at[name] = value;
        paint();
        live.textContent = `${text}. ${at.sentence(...active)}`;
      });
      return make("label", {}, input, make("span", {}, text));
    }));
  }

  function drawGrid() {
    const layers = [...Array(at.depth).keys()], [first, end] = data.planted ?? [0, 0];
    const step = [1, 2, 4, 5, 8, 10, 20, 40].find((size) => layers.length <= size * MOST_TICKS) ?? layers.length;
    columnHeads = layers.map((layer) => {
      const kind = (layer / step) % 2 ? "odd" : "", planted = first <= layer && layer < end ? "planted" : "";
      const attributes = { scope: "col", role: "columnheader", "aria-label": `layer ${layer}`, class: `${kind} ${planted}` };
      return make("th", attributes, make("span", {}, layer % step ? "" : String(layer)));
    });
    rowHeads = at.trace.tokens.map((token, row) =>
      make("th", { scope: "row", role: "rowheader", title: token }, written([token]), at.inSubject(row) ? make("b", {}, "*") : ""));
    cells = at.trace.tokens.map((_, row) =>
      layers.map((column) => make("td", { role: "gridcell", tabindex: "-1", "data-row": row, "data-column": column })));
    const widths = [make("col", { class: "tokens" }), ...layers.map(() => make("col"))];
    const rows = rowHeads.map((head, row) => make("tr", { role: "row" }, head, ...cells[row]));
    const axis = make("tr", { role: "row" }, make("td"), ...columnHeads);
    grid.replaceChildren(make("colgroup", {}, ...widths), make("thead", {}, axis), make("tbody", {}, ...rows));
    grid.classList.toggle("dense", layers.length > GAPS_TO);
    view.style.setProperty("--layers", layers.length);
    view.style.setProperty("--longest", Math.max(...rowHeads.map((head) => [...head.textContent].length)));
  }

  // Colours and words, after any choice.
  function paint() {
    const { trace, run, differs } = at;
    [low, high] = at.scale();
    view.dataset.palette = differs ? "difference" : at.site;
    cells.flat().forEach((cell) => {
      const value = at.value(...place(cell));
      cell.style.setProperty("--v", value === null ? 0 : fraction(value));
      cell.classList.toggle("missing", value === null);
      cell.setAttribute("aria-label", at.format(value, differs));
    });
    const answer = (of) => make("b", {}, plain(of.answer));
    const answers = differs ? [answer(trace), " before, ", answer(trace.after), " after"] : [answer(run)];
    part("title").replaceChildren(make("bdi", {}, trace.prompt), " → ", ...answers);
    part("subtitle").textContent = at.summary();
    part("note").textContent = [
      trace.severed && `${label(trace.severed)} outputs of later layers stay corrupted.`,
      trace.span > 1 && `${trace.span} tokens from each row on are restored together.`,
    ].filter(Boolean).join(" ");
    part("axis").textContent = at.window > 1 ? `Layer, the centre of a window of ${at.window}` : "Layer";
    const what = differs ? "difference in indirect effect" : at.quantity(run);
    grid.setAttribute("aria-label", `${label(at.site)}: ${what} by token and layer`);
    drawLegend();
    setActive(...active);
    show(...active);
  }

  function drawLegend() {
    const { run, differs } = at, alone = !at.trace.after;
    const values = Object.values(run.sites).flat(2).filter((value) => value !== null), slack = SLACK * (high - low);
    const below = !differs && Math.min(...values) < low - slack, above = !differs && Math.max(...values) > high + slack;
    const [first, last] = run.clean < run.corrupted ? [" clean", " corrupted"] : [" corrupted", " clean"];
    part("low").textContent = (below ? "≤ " : "") + at.format(low) + (alone ? first : "");
    part("high").textContent = (above ? "≥ " : "") + at.format(high, differs) + (alone ? last : "");
    part("middle").textContent = differs ? "0" : "";
    part("quantity").textContent = differs ? "Difference in indirect effect" : `${at.quantity(run)}, one state restored`;
    [["notch-low", run.corrupted], ["notch-high", run.clean]].forEach(([name, value]) => {
      part(name).hidden = differs || alone;
      part(name).style.left = `${100 * fraction(value)}%`;
    });
    part("notches").hidden = differs || alone;
  }

  // The numbers of one cell, pointed at or active.
  function show(row, column) {
    rowHeads.forEach((head, index) => head.classList.toggle("on", index === row));
    columnHeads.forEach((head, index) => head.classList.toggle("on", index === column));
    part("token").replaceChildren(written(at.tokens(row)), at.inSubject(row) ? "*" : "");
    part("where").textContent = `${label(at.site)}, ${at.layers(column)}`;
    const line = ([name, number]) => make("div", {}, make("dt", {}, name), make("dd", {}, number));
    part("facets").replaceChildren(...at.facets(row, column).map(line));
    const value = at.value(row, column);
    part("pointer").hidden = value === null;
    part("pointer").style.left = `${100 * fraction(value)}%`;
  }

  // The subject's cell of the largest effect: at the prompt's last token the top layers bring everything back.
  function peak() {
    const size = (cell) => Math.abs(at.effect(at.trace, ...place(cell)) ?? 0);
    const subject = cells.slice(...at.trace.subject).flat();
    return place(subject.reduce((best, cell) => (size(cell) > size(best) ? cell : best)));
  }

  const fraction = (value) => Math.min(1, Math.max(0, (value - low) / (high - low)));

  // Moving: the grid is one stop of the tab key, arrows move within it -----------------------------------------

  function setActive(row, column) {
    grid.querySelector('td[tabindex="0"]')?.setAttribute("tabindex", "-1");
    active = [row, column];
    cells[row][column].setAttribute("tabindex", "0");
  }

  grid.addEventListener("keydown", (event) => {
    const [row, column] = active, bottom = cells.length - 1, right = columnHeads.length - 1;
    const target = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], PageUp: [0, column], PageDown: [bottom, column],
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [event.ctrlKey ? 0 : row, 0], End: [event.ctrlKey ? bottom : row, right],
    }[event.key];
    if (!target || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    cells[Math.min(bottom, Math.max(0, target[0]))][Math.min(right, Math.max(0, target[1]))].focus();
  });
  grid.addEventListener("focusin", (event) => {
    setActive(...place(event.target));
    show(...active);
    live.textContent = at.sentence(...active);
  });
  grid.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("tbody td");
    if (cell) show(...place(cell));
  });
  grid.addEventListener("mouseleave", () => show(...active));

  // Choosing a fact --------------------------------------------------------------------------------------------

  function listFacts() {
    const wanted = search.value.trim().toLowerCase();
    const name = (one) => `${one.prompt} → ${plain(one.answer)}${one.after ? ` (after an edit: ${plain(one.after.answer)})` : ""}`;
    const named = data.traces.map((one, index) => [index, name(one)]);
    const found = named.filter(([, text]) => text.toLowerCase().includes(wanted));
    facts.replaceChildren(...found.map(([index, text]) => make("option", { value: index }, text)));
    facts.disabled = found.length === 0;
    if (found.length === 0) facts.append(make("option", {}, "No fact has these words"));
    else if (found.some(([index]) => data.traces[index] === at.trace)) facts.value = data.traces.indexOf(at.trace);
    else drawFact(found[0][0]);
  }

  facts.addEventListener("change", () => drawFact(Number(facts.value)));
  search.addEventListener("input", listFacts);
  part("chooser").hidden = data.traces.length === 1;
  search.closest("label").hidden = data.traces.length <= MANY_FACTS;
  if (data.planted) {
    const [first, end] = data.planted;
    part("planted").hidden = false;
    part("planted-layers").textContent = end - first === 1 ? `layer ${first}` : `layers ${first} to ${end - 1}`;
  }
  listFacts();
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  element.append(...children);
  return element;
}

// Tokens exactly, with quiet signs for what cannot be seen.
function written(tokens) {
  const pieces = tokens.flatMap(exactly);
  return make("bdi", {}, ...pieces.map(([text, sign]) => (sign ? make("i", {}, text) : text)));
}

const place = (cell) => [Number(cell.dataset.row), Number(cell.dataset.column)];

// Notebooks have a theme of their own, which need not be that of the system.
function adoptTheme(host) {
  const { dataset, classList } = document.body;
  const light = dataset.jpThemeLight === "true" || classList.contains("vscode-light");
  const dark = dataset.jpThemeLight === "false" || classList.contains("vscode-dark");
  if (light || dark) host.style.colorScheme = dark ? "dark" : "light";
}

document.querySelectorAll(".trace-view:not([data-ready])").forEach((host) => {
  host.dataset.ready = "";
  adoptTheme(host);
  const root = host.attachShadow({ mode: "open" });
  root.append(host.querySelector(":scope > template").content.cloneNode(true));
  makeView(root, JSON.parse(host.querySelector(":scope > script").textContent));
});
