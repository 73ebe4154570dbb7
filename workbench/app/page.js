// The heat map writes itself into the page by a script, which a browser does not run where HTML is merely put in: what
// is sent is kept as text, and put in here.
let site = "mlp_out"; // what editors change; kept when rows are added
const show = () => {
  const kept = element.querySelector(".kept"), map = element.querySelector(".shown");
  if (!kept || !map) return;
  map.innerHTML = kept.textContent;
  map.querySelectorAll("script:not([type])").forEach((written) => {
    const script = document.createElement("script");
    script.text = written.text;
    written.replaceWith(script);
  });
  map.querySelector(".trace-view")?.shadowRoot?.querySelector(`input[value="${site}"]`)?.click();
};
const pick = (event) => {
  const at = event.composedPath()[0];
  if (at.matches?.('input[name="site"]')) site = at.value;
  const cell = at.closest?.("td[data-column]");
  if (cell) trigger("pick", { layer: Number(cell.dataset.column) });
};
element.addEventListener("click", pick);
element.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(event); });
watch("value", show);
show();
