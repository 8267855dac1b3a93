# ruff: noqa: E501 (one rule of CSS, one statement of JavaScript a line)
"""The style of the dump's HTML page: light and dark, wide and narrow."""

STYLE = """
:root {
  --back: #ffffff; --panel: #f6f8fa; --text: #1f2328; --dim: #59636e; --line: #d1d9e0; --accent: #0969da;
  --pick: #ddf4ff; --added: #dafbe1; --added-word: #aceebb; --gone: #ffebe9; --gone-word: #ffc9c4;
  --good: #1a7f37; --bad: #cf222e; --warn: #9a6700; --own: #8250df; --hit: #fff3b0; --void: #f6f8fa;
  --mono: ui-monospace, SFMono-Regular, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #0d1117; --panel: #151b23; --text: #e6edf3; --dim: #9198a1; --line: #30363d; --accent: #58a6ff;
    --pick: #1c2d45; --added: #12261e; --added-word: #1f5130; --gone: #2a1618; --gone-word: #6b2226;
    --good: #3fb950; --bad: #f85149; --warn: #d29922; --own: #bc8cff; --hit: #4d4000; --void: #11161d;
  }
}
* { box-sizing: border-box; }
html { scrollbar-color: var(--line) transparent; }
body {
  margin: 0; display: grid; grid-template: auto 1fr / 17rem minmax(0, 1fr); height: 100vh; height: 100dvh;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; background: var(--back); color: var(--text);
}
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--back); z-index: 9; }
header { grid-column: 1 / -1; padding: .6rem 1rem; border-bottom: 1px solid var(--line); background: var(--panel); }
header h1 { display: inline; font-size: 1.05rem; margin: 0 .75rem 0 0; overflow-wrap: anywhere; }
header span { color: var(--dim); margin-right: .9rem; display: inline-block; }
nav { overflow: auto; border-right: 1px solid var(--line); padding: .6rem; background: var(--panel); }
main { overflow: auto; padding: .9rem 1.1rem 3rem; outline: none; scroll-padding-top: 3rem; }
h2 { font-size: 1.15rem; margin: 0 0 .15rem; overflow-wrap: anywhere; } h3 { font-size: .95rem; margin: 1.1rem 0 .4rem; }
p { margin: .3rem 0; } .dim { color: var(--dim); }
button, input {
  font: inherit; color: inherit; background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .2rem .55rem;
}
button { cursor: pointer; } button:hover { border-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
nav input { width: 100%; margin-bottom: .5rem; }
nav .keys { margin-top: .8rem; font-size: .8rem; color: var(--dim); line-height: 1.9; }
kbd { font: .8em var(--mono); border: 1px solid var(--line); border-radius: 4px; padding: 0 .3em; background: var(--back); }
.pass {
  display: block; width: 100%; text-align: left; border-color: transparent; background: none; padding: .35rem .5rem; margin-bottom: 2px;
}
.pass[aria-current] { background: var(--pick); border-color: var(--accent); }
.pass b { display: block; font-weight: 600; overflow-wrap: anywhere; }
.pass small { color: var(--dim); display: flex; gap: 0 .6rem; flex-wrap: wrap; }
.pass i { display: block; height: 3px; border-radius: 2px; background: var(--accent); opacity: .55; margin-top: .25rem; min-width: 1px; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.chips { display: flex; flex-wrap: wrap; gap: .35rem; margin: .4rem 0; }
.chips span { border: 1px solid var(--line); border-radius: 2rem; padding: .05rem .6rem; color: var(--dim); white-space: nowrap; }
.chips span b { color: var(--text); font-weight: 600; }
table { border-collapse: collapse; } .scroll { overflow-x: auto; }
th, td { text-align: left; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, .code { font: 12.5px/1.5 var(--mono); }
details { border: 1px solid var(--line); border-radius: 8px; margin: .5rem 0; } summary { padding: .35rem .7rem; cursor: pointer; }
details > .inside { padding: 0 .7rem .6rem; max-height: 21rem; overflow: auto; }
.item { padding: .35rem 0; border-top: 1px solid var(--line); } .item:first-child { border-top: 0; }
.item .hint { color: var(--good); } .item .hint::before { content: "→ "; }
.where {
  display: block; width: fit-content; max-width: 100%; text-align: left; margin-top: .15rem; padding: .1rem .4rem;
  background: var(--panel); overflow-wrap: anywhere;
}
.where .dim { margin-right: .6em; }
.bar {
  position: sticky; top: -.9rem; z-index: 2; display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; padding: .45rem 0;
  background: var(--back); margin-top: .8rem; border-bottom: 1px solid var(--line);
}
.bar input { flex: 1 1 11rem; max-width: 22rem; } .bar .count { color: var(--dim); min-width: 5.5em; }
button[aria-pressed=true] { background: var(--pick); border-color: var(--accent); }
.program { border: 1px solid var(--line); border-top: 0; border-radius: 0 0 8px 8px; overflow: clip; font: 12.5px/1.5 var(--mono); }
.chunk { content-visibility: auto; contain-intrinsic-size: auto 1900px; }
.row { display: grid; grid-template-columns: 4.2em minmax(0, 1fr) 4.2em minmax(0, 1fr); }
.single .row { grid-template-columns: 4.2em minmax(0, 1fr); }
.row > * { padding: 0 .5em; min-height: 1.5em; } .row > :nth-child(3) { border-left: 1px solid var(--line); }
.no { color: var(--dim); text-align: right; user-select: none; white-space: nowrap; opacity: .85; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; padding-left: calc(.5em + 4ch) !important; text-indent: -4ch; }
.text .c { color: var(--dim); } .text .o { color: var(--accent); } .text .g { color: var(--own); font-weight: 600; }
.gone { background: var(--gone); } .added { background: var(--added); } .void { background: var(--void); }
.gone mark { background: var(--gone-word); } .added mark { background: var(--added-word); }
mark { color: inherit; border-radius: 2px; }
.row.hit .text { background: var(--hit); } .row.now { outline: 2px solid var(--accent); outline-offset: -2px; }
.row.from .text { box-shadow: inset 3px 0 var(--warn); }
.gap {
  display: block; width: 100%; border: 0; border-radius: 0; padding: .15rem; background: var(--panel); color: var(--dim);
  font: 12px/1.6 system-ui, sans-serif; border-block: 1px solid var(--line);
}
@media (max-width: 820px) {
  body { grid-template: auto auto 1fr / minmax(0, 1fr); }
  nav { border-right: 0; border-bottom: 1px solid var(--line); max-height: 32vh; padding: .45rem; }
  nav input { margin-bottom: .35rem; } nav .keys { display: none; } .passes { display: flex; flex-wrap: wrap; gap: .3rem; }
  .pass { width: auto; min-width: 7rem; max-width: 15rem; margin: 0; flex: none; } main { padding: .7rem .6rem 3rem; } .bar { top: -.7rem; }
  header { padding: .4rem .7rem; } header span { font-size: .85rem; margin-right: .6rem; }
}
@media print { body { display: block; height: auto; } nav, .bar { display: none; } }
"""
