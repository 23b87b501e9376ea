"""The style sheet of the HTML report."""

STYLE = """\
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #ffffff; --soft: #5a626e;
  --rule: #c9ced6; --stripe: #f5f6f8; --warn: #8a4b00; --warn-paper: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181c; --soft: #a3abb6;
  --rule: #3f4650; --stripe: #1d2126; --warn: #ffc46b; --warn-paper: #33260f; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 0 0 1rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.warning { border-left: 4px solid var(--warn); background: var(--warn-paper);
  padding: .6rem .9rem; margin: .5rem 0; }
.notes { color: var(--soft); padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--soft); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
th, td { padding: .22rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
th { text-align: left; font-weight: 400; }
.numbers td, .numbers thead th + th { text-align: right; }
.words td { white-space: normal; overflow-wrap: anywhere; }
tbody tr:nth-child(even) { background: var(--stripe); }
figure { margin: 0; }
figure svg { display: block; width: 100%; max-width: 54rem; height: auto; }
figcaption { color: var(--soft); font-size: .85rem; }
@media print { .scroll { overflow: visible; } section { break-inside: avoid-page; } }
"""
