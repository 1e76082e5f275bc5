"""The style and the script of the viewer; the page loads both once."""

STYLE = """
.s2rm { --ink: var(--body-text-color); --muted: #586170; --line: var(--border-color-primary); }
.dark .s2rm { --muted: #a9b1bd; }
.s2rm .stage { position: relative; width: 100%; margin: 0 auto; overflow: hidden; border-radius: .5rem; }
.s2rm .stage img { position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; margin: 0; }
.s2rm .stage img[hidden] { display: none; }
.s2rm .stage.hot .photo { filter: grayscale(1); }
.s2rm .stage.hot .mask { display: none; }
.s2rm .legend, .s2rm .times { margin: .5rem 0; font-size: .85rem; color: var(--muted); text-align: center; }
.s2rm .found { list-style: none; margin: .8rem 0 0; padding: 0; display: grid; gap: .7rem; }
.s2rm .found li { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center; padding: .7rem .9rem;
  margin: 0; border-left: .35rem solid var(--c); border-radius: .5rem; background: var(--background-fill-secondary); }
.s2rm .name { display: flex; align-items: center; gap: .5rem; flex: 1 1 12rem; cursor: pointer; min-width: 0; }
.s2rm .name b { overflow-wrap: anywhere; font-weight: 600; }
.s2rm .name input { width: 1.05rem; height: 1.05rem; }
.s2rm .name input:checked { background-color: var(--c); border-color: var(--c); }
.s2rm .score { font-variant-numeric: tabular-nums; color: var(--muted); }
.s2rm .downloads { font-size: .85rem; color: var(--muted); }
.s2rm .downloads a { margin-left: .5rem; text-decoration: underline; color: var(--ink); }
.s2rm .remark { flex-basis: 100%; margin: 0; font-size: .85rem; color: #a15c00; }
.s2rm details { flex-basis: 100%; }
.s2rm summary { cursor: pointer; font-size: .9rem; color: var(--muted); }
.s2rm .row { margin: .6rem 0 .2rem; }
.s2rm .row .title { display: block; font-size: .8rem; color: var(--muted); margin-bottom: .25rem; }
.s2rm .row > div { display: flex; flex-wrap: wrap; align-items: center; gap: .35rem; }
.s2rm .words { flex-basis: 100%; margin: .1rem 0; }
.s2rm .layer { margin: 0 !important; font: inherit; font-size: .9rem; padding: .2rem .6rem;
  border: 1px solid var(--line); border-radius: 1rem; background: transparent; color: var(--ink); cursor: pointer;
  font-variant-numeric: tabular-nums; }
.s2rm .layer:hover { border-color: var(--c); }
.s2rm .layer.special { color: var(--muted); font-size: .8rem; }
.s2rm .layer[aria-pressed="true"] { background: var(--c); border-color: var(--c); color: #fff; }
.s2rm .bars .layer { border-radius: .4rem; display: inline-flex; align-items: center; gap: .4rem; }
.s2rm .bars i { display: inline-block; width: 3.5rem; height: .5rem; border-radius: .25rem;
  background: linear-gradient(var(--c), var(--c)) 0 0 / calc(100% * var(--share)) 100% no-repeat, var(--line); }
.s2rm .layer[aria-pressed="true"] i { filter: brightness(1.6) saturate(.4); }
.s2rm-problem { margin: 0; padding: .7rem .9rem; border-radius: .5rem; border: 1px solid #d9534f; color: #b02a25;
  background: #fdf1f0; overflow-wrap: anywhere; }
.dark .s2rm-problem { background: #3a1a19; color: #ffb4b0; }
.dark .s2rm .remark { color: #f0b35e; }
#examples, #examples .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
"""

# Events are heard at the document, as the viewer is replaced with every answer.
SCRIPT = """<script>
(() => {
  const lay = (view, button) => {
    const heat = view.querySelector(".heat"), legend = view.querySelector(".legend");
    for (const other of view.querySelectorAll(".layer")) other.setAttribute("aria-pressed", String(other === button));
    heat.hidden = legend.hidden = !button;
    view.querySelector(".stage").classList.toggle("hot", Boolean(button));
    if (button) { heat.src = button.dataset.heat; legend.textContent = button.dataset.legend; }
  };
  document.addEventListener("change", (event) => {
    const row = event.target.dataset.shows, view = event.target.closest(".s2rm");
    if (row === undefined || !view) return;
    view.querySelector(`.mask[data-mask="${row}"]`).hidden = !event.target.checked;
    lay(view, null);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".s2rm .layer");
    if (button) lay(button.closest(".s2rm"), button.getAttribute("aria-pressed") === "true" ? null : button);
  });
})();
</script>"""
