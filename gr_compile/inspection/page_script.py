# ruff: noqa: E501 (one rule of CSS, one statement of JavaScript a line)
"""The script of the dump's HTML page. Text reaches the page as text nodes only, never as markup."""

SCRIPT = r"""
"use strict";
const D = JSON.parse(document.getElementById("data").textContent), G = D.graph;
const CONTEXT = 3, CHUNK = 80, narrow = matchMedia("(max-width: 820px)");
const state = {view: -1, all: false, split: null, gaps: new Set(), query: "", hits: [], hit: -1, from: -1};
const $ = id => document.getElementById(id);

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {}))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
  return made;
}
const record = stage => stage.pass === null || stage.pass === undefined ? null : G.passes[stage.pass];
const ms = value => value >= 1000 ? (value / 1000).toFixed(1) + " s" : value.toFixed(1) + " ms";
const plural = (n, one, many) => n + " " + (n === 1 ? one : many || one + "s");
// Programs are indented once; the page needs no room for that.
const shown = line => D.lines[line][0].replace(/^ {4}/, "");
const base = file => file.split(/[\\/]/).pop();

// ---------------------------------------------------------------- head and side
function drawHead() {
  const passTime = G.passes.reduce((sum, p) => sum + p.milliseconds + p.verify_milliseconds, 0);
  $("head").append(el("h1", {}, `${G.model} [${G.compile_id}]` + (G.attempt ? ` attempt ${G.attempt}` : "")),
    ...[G.training ? "training" : "inference", "target " + G.target, "capture " + ms(G.capture_milliseconds),
      "passes " + ms(passTime), G.target_milliseconds ? "target " + ms(G.target_milliseconds) : ""]
      .filter(Boolean).map(text => el("span", {}, text)));
}
function passButton(index) {
  const stage = D.stages[index], done = index < 0 ? null : record(stage);
  const slowest = Math.max(1e-9, ...G.passes.map(p => p.milliseconds));
  const small = el("small", {});
  if (index < 0) small.append(plural(G.passes.length, "pass", "passes"));
  else if (!done) small.append(plural(stage.lines.length, "line"));
  else {
    small.append(el("span", {class: done.matches.length ? "good" : ""}, done.matches.length + " rewritten"));
    if (done.misses.length) small.append(el("span", {class: "warn"}, done.misses.length + " left"));
    small.append(`${done.nodes_before}→${done.nodes_after}`, el("span", {}, ms(done.milliseconds)));
    if (done.error) small.append(el("span", {class: "bad"}, "error"));
  }
  return el("button", {class: "pass", type: "button", "data-view": index, onclick: () => show(index)},
    el("b", {}, index < 0 ? "Overview" : stage.name.slice(0, 2) + " " + stage.stage), small,
    done ? el("i", {style: `width:${(100 * done.milliseconds / slowest).toFixed(1)}%`}) : null);
}
function drawSide() {
  const list = el("div", {class: "passes"}, [-1, ...D.stages.keys()].map(passButton));
  const box = el("input", {type: "search", placeholder: "Filter passes", "aria-label": "Filter passes by name, rewrite or reason",
    oninput: event => {
      const wanted = event.target.value.toLowerCase();
      for (const button of list.children) {
        const index = Number(button.dataset.view), stage = D.stages[index];
        const text = index < 0 ? "" : stage.name + JSON.stringify(record(stage) || "");
        button.hidden = Boolean(wanted) && !text.toLowerCase().includes(wanted);
      }
    }});
  const keys = [["j", "k", "next, previous pass"], ["n", "p", "next, previous change"], ["/", "", "search the program"],
    ["a", "", "all lines, changes only"], ["s", "", "one or two columns"]];
  $("side").append(box, list, el("div", {class: "keys"}, keys.map(([one, two, text]) =>
    el("div", {}, el("kbd", {}, one), two ? " " : "", two ? el("kbd", {}, two) : "", " " + text))));
}

// ---------------------------------------------------------------- parts of a view
function whereButton(place, node) {
  if (!place && !node) return null;
  const text = place ? [el("span", {class: "dim"}, `${base(place.file)}:${place.line} in ${place.function}`), place.code]
    : [el("span", {class: "dim"}, "node"), node];
  return el("button", {type: "button", class: "where code", title: place ? `${place.file}:${place.line}` : node,
    onclick: () => reveal(place, node)}, text);
}
function items(found) {
  const groups = new Map();
  for (const one of found) {
    const key = JSON.stringify([one.what || one.reason, one.detail || one.hint]), place = JSON.stringify([one.where, one.where ? "" : one.node]);
    if (!groups.has(key)) groups.set(key, [one, 0, new Map()]);
    const group = groups.get(key);
    group[1]++;
    if (!group[2].has(place)) group[2].set(place, one);
  }
  return [...groups.values()].map(([one, times, places]) => {
    const all = [...places.values()], holder = el("div", {});
    const draw = count => holder.replaceChildren(...all.slice(0, count).map(p => whereButton(p.where, p.node)).filter(Boolean),
      ...(all.length > count ? [el("button", {type: "button", onclick: () => draw(all.length)}, `${all.length - count} more places`)] : []));
    draw(6);
    return el("div", {class: "item"}, (one.what || one.reason) + (times > 1 ? ` (${times} times)` : ""),
      one.detail ? el("div", {class: "dim"}, one.detail) : null, one.hint ? el("div", {class: "hint"}, one.hint) : null, holder);
  });
}
function fold(title, kind, found, open) {
  return found.length ? el("details", {open}, el("summary", {class: kind}, `${title} (${found.length})`),
    el("div", {class: "inside"}, items(found))) : null;
}
function table(head, rows) {
  const cell = (tag, value) => el(tag, {class: typeof value === "number" || /^[+−\d][\d.,→ +−ms]*$/.test(value) ? "n" : ""}, String(value));
  return el("div", {class: "scroll"}, el("table", {}, el("thead", {}, el("tr", {}, head.map((name, i) =>
    el("th", {class: rows.length && cell("td", rows[0][i]).className}, name)))),
    el("tbody", {}, rows.map(row => el("tr", {}, row.map(value => value instanceof Node ? el("td", {}, value) : cell("td", value)))))));
}
function operators(done) {
  const names = [...new Set([...Object.keys(done.operators_before), ...Object.keys(done.operators_after)])].sort();
  const rows = names.map(name => [name, done.operators_before[name] || 0, done.operators_after[name] || 0])
    .map(([name, a, b]) => [el("code", {}, name), a, b, a === b ? "" : (b > a ? "+" : "−") + Math.abs(b - a)]);
  const changed = rows.filter(row => row[3] !== "");
  const body = el("div", {class: "inside"}), head = ["operator", "before", "after", "change"];
  const draw = all => body.replaceChildren(changed.length || all ? table(head, all ? rows : changed) : el("p", {class: "dim"}, "No operator count changed."),
    all || changed.length === rows.length ? "" : el("button", {type: "button", onclick: () => draw(true)}, `show all ${rows.length} operators`));
  draw(false);
  return el("details", {}, el("summary", {}, `Operators (${plural(changed.length, "change")})`), body);
}
function overview() {
  const main = [el("h2", {}, "Overview"), el("p", {class: "code dim"}, G.pipeline)];
  if (G.not_captured) main.push(el("h3", {class: "bad"}, "Not captured: runs as torch.compile would run it"), ...items([G.not_captured]));
  if (G.graph_breaks.length) main.push(el("h3", {class: "warn"}, "Graph breaks"), ...items(G.graph_breaks));
  main.push(el("h3", {}, "Passes"), G.passes.length ? table(["pass", "numerics", "rewritten", "left alone", "nodes", "time", "verify"],
    G.passes.map(p => [p.text, p.numerics, p.matches.length, p.misses.length, `${p.nodes_before} → ${p.nodes_after}`,
      ms(p.milliseconds), ms(p.verify_milliseconds)])) : el("p", {class: "dim"}, "No pass ran."));
  const facts = Object.entries(G.facts);
  if (facts.length) main.push(el("h3", {}, "Facts"), table(["", ""], facts.map(([k, v]) => [k, el("span", {}, String(v))])));
  const misses = G.passes.flatMap(p => p.misses);
  if (misses.length) main.push(el("h3", {}, "Left alone, and why"), ...items(misses));
  main.push(el("h3", {}, "Made with"), table(["", ""], Object.entries(D.versions).map(([k, v]) => [k, el("span", {}, v)])));
  return main;
}
function chips(stage, done) {
  const pairs = done ? [["numerics", done.numerics], ["nodes", `${done.nodes_before} → ${done.nodes_after}`],
    ["time", ms(done.milliseconds)], ["verify", ms(done.verify_milliseconds)], ["program", stage.name + ".py"]]
    : [["lines", stage.lines.length], ["program", stage.name + ".py"]];
  return el("div", {class: "chips"}, pairs.map(([name, value]) => el("span", {}, name + " ", el("b", {}, String(value)))));
}

// ---------------------------------------------------------------- the program
function rowsOf(index) {
  const stage = D.stages[index], before = index ? D.stages[index - 1].lines : [], rows = [];
  if (!index) return stage.lines.map((line, j) => ({i: -1, j, a: null, b: line, kind: "same"}));
  for (const [i, j, count] of stage.rows) for (let k = 0; k < count; k++) {
    const a = i < 0 ? null : before[i + k], b = j < 0 ? null : stage.lines[j + k];
    rows.push({i: i < 0 ? -1 : i + k, j: j < 0 ? -1 : j + k, a, b, kind: a === b ? "same" : a === null ? "added" : b === null ? "gone" : "changed"});
  }
  return rows;
}
function paint(cell, text, low, high, start) {
  const push = (part, kind, from) => {
    const cut = [[0, low - from], [low - from, high - from], [high - from, part.length]];
    cut.forEach(([x, y], place) => {
      const piece = part.slice(Math.max(0, x), Math.max(0, y));
      if (!piece) return;
      const inner = place === 1 ? el("mark", {}, piece) : piece;
      cell.append(kind ? el("span", {class: kind}, inner) : inner);
    });
  };
  const comment = text.search(/(?:^\s*|  )# /), code = comment < 0 ? text : text.slice(0, comment);
  const call = /(\baten|\bgr|torch\.ops)(\.[\w.]+)\(/.exec(code);
  if (call) {
    push(code.slice(0, call.index), "", 0);
    push(call[1] + call[2], call[1] === "gr" ? "g" : "o", call.index);
    push(code.slice(call.index + call[1].length + call[2].length), "", call.index + call[1].length + call[2].length);
  } else push(code, "", 0);
  if (comment >= 0) push(text.slice(comment), "c", comment);
}
function cell(line, kind, other) {
  const made = el("div", {class: "text " + kind});
  if (line === null) return made;
  const text = shown(line);
  let low = text.length, high = text.length;
  if (other !== null && other !== line) {
    const theirs = shown(other), most = Math.min(text.length, theirs.length);
    for (low = 0; low < most && text[low] === theirs[low];) low++;
    let tail = 0;
    while (tail < most - low && text[text.length - 1 - tail] === theirs[theirs.length - 1 - tail]) tail++;
    high = text.length - tail;
  }
  paint(made, text, low, high);
  return made;
}
function rowElements(row, place, split) {
  const number = value => el("div", {class: "no"}, value < 0 ? "" : String(value + 1));
  const hit = state.query && [row.a, row.b].some(line => line !== null && D.lines[line][0].toLowerCase().includes(state.query));
  const from = state.from >= 0 && [row.a, row.b].some(line => line !== null && D.lines[line][2] === state.from);
  const attributes = {class: "row" + (hit ? " hit" : "") + (from ? " from" : ""), "data-place": place};
  const sign = (value, kind) => { const made = number(value); made.classList.add(kind); made.append(kind === "gone" ? " −" : kind === "added" ? " +" : "  "); return made; };
  if (split) {
    const left = row.a === null ? "void" : row.kind === "same" ? "same" : "gone", right = row.b === null ? "void" : row.kind === "same" ? "same" : "added";
    return [el("div", attributes, sign(row.i, left), cell(row.a, left, row.b), sign(row.j, right), cell(row.b, right, row.a))];
  }
  if (row.kind === "same") return [el("div", attributes, sign(row.j, "same"), cell(row.b, "same", null))];
  return [["gone", row.i, row.a, row.b], ["added", row.j, row.b, row.a]].filter(part => part[2] !== null)
    .map(([kind, value, line, other]) => el("div", attributes, sign(value, kind), cell(line, kind, other)));
}
function plan(rows, index) {
  if (state.all || !index) return [{from: 0, to: rows.length, gap: false}];
  const near = new Uint8Array(rows.length), parts = [];
  rows.forEach((row, place) => {
    const wanted = row.kind !== "same" || (state.query && D.lines[row.b][0].toLowerCase().includes(state.query)) || (state.from >= 0 && D.lines[row.b][2] === state.from);
    if (wanted) near.fill(1, Math.max(0, place - CONTEXT), Math.min(rows.length, place + CONTEXT + 1));
  });
  for (let from = 0, to; from < rows.length; from = to) {
    for (to = from + 1; to < rows.length && near[to] === near[from];) to++;
    parts.push({from, to, gap: !near[from] && to - from > 1 && !state.gaps.has(from)});
  }
  return parts;
}
function drawProgram() {
  const index = state.view, rows = rowsOf(index), holder = $("program");
  const split = index > 0 && (state.split === null ? !narrow.matches : state.split);
  holder.className = "program" + (split ? "" : " single");
  const pieces = [];
  let chunk = null;
  const close = () => { if (chunk) pieces.push(chunk); chunk = null; };
  for (const part of plan(rows, index)) {
    if (part.gap) {
      close();
      pieces.push(el("button", {type: "button", class: "gap", onclick: () => { state.gaps.add(part.from); drawProgram(); }},
        `⋯ ${plural(part.to - part.from, "equal line")}`));
      continue;
    }
    for (let place = part.from; place < part.to; place++) {
      chunk = chunk || el("div", {class: "chunk"});
      chunk.append(...rowElements(rows[place], place, split));
      if (chunk.children.length >= CHUNK) close();
    }
  }
  close();
  // Short pages are laid out at once: an estimate of heights is for long ones.
  if (pieces.length < 4) pieces.forEach(piece => { piece.style.contentVisibility = "visible"; });
  holder.replaceChildren(...pieces);
  state.rows = rows;
  const changes = rows.filter(row => row.kind !== "same").length;
  state.hits = state.query ? rows.flatMap((row, place) => [row.a, row.b].some(line => line !== null && D.lines[line][0].toLowerCase().includes(state.query)) ? [place] : []) : [];
  $("count").textContent = state.query ? plural(state.hits.length, "hit") : index ? plural(changes, "changed line") : "";
  $("all").setAttribute("aria-pressed", state.all); $("split").setAttribute("aria-pressed", split);
  $("all").hidden = $("split").hidden = !index;
}
function go(place) {
  document.querySelectorAll(".row.now").forEach(row => row.classList.remove("now"));
  const found = document.querySelectorAll(`.row[data-place="${place}"]`);
  found.forEach(row => row.classList.add("now"));
  if (found.length) found[0].scrollIntoView({block: "center"});
  state.now = place;
}
function nextHit(step) {
  if (!state.hits.length) return;
  state.hit = (state.hit + step + state.hits.length) % state.hits.length;
  go(state.hits[state.hit]);
  $("count").textContent = `${state.hit + 1} of ${state.hits.length}`;
}
function nextChange(step) {
  if (state.view < 0) return;
  const starts = state.rows.flatMap((row, place) => row.kind !== "same" && (!place || state.rows[place - 1].kind === "same") ? [place] : []);
  const now = state.now === undefined ? (step > 0 ? -1 : Infinity) : state.now;
  const place = step > 0 ? starts.find(start => start > now) : starts.filter(start => start < now).pop();
  if (place !== undefined) go(place);
}
function reveal(place, node) {
  if (state.view < 0) {
    const holds = stage => stage.lines.some(line => D.lines[line][1] === node || isFrom(line, place));
    const index = D.stages.findIndex(stage => record(stage) && JSON.stringify(record(stage)).includes(JSON.stringify(place || node)));
    show(index >= 0 ? index : Math.max(0, D.stages.findIndex(holds)));
  }
  state.from = place ? D.sources.findIndex(s => s[0] === place.file && s[1] === place.line && s[2] === place.function) : -1;
  const target = () => state.rows.findIndex(row => [row.a, row.b].some(line => line !== null && (node ? D.lines[line][1] === node : isFrom(line, place))));
  drawProgram();
  let found = target();
  if (found < 0) found = state.rows.findIndex(row => [row.a, row.b].some(line => line !== null && isFrom(line, place)));
  if (found < 0) { $("count").textContent = "not in this stage"; return; }
  if (!document.querySelector(`.row[data-place="${found}"]`)) { state.all = true; drawProgram(); }
  go(found);
}
function isFrom(line, place) {
  const source = D.sources[D.lines[line][2]];
  return Boolean(place && source && source[0] === place.file && source[1] === place.line);
}
function programBar(index) {
  const search = el("input", {type: "search", id: "search", placeholder: "Search the program", "aria-label": "Search the program",
    oninput: event => {
      clearTimeout(state.typing);
      state.typing = setTimeout(() => { state.query = event.target.value.toLowerCase(); state.hit = -1; drawProgram(); }, 120);
    },
    onkeydown: event => { if (event.key === "Enter") { nextHit(event.shiftKey ? -1 : 1); event.preventDefault(); } }});
  search.value = state.query;
  return el("div", {class: "bar"}, search, el("span", {id: "count", class: "count", "aria-live": "polite"}),
    el("button", {type: "button", id: "all", onclick: () => { state.all = !state.all; drawProgram(); }}, "All lines"),
    el("button", {type: "button", id: "split", onclick: toggleSplit}, "Side by side"));
}
function toggleSplit() {
  state.split = !(state.split === null ? !narrow.matches : state.split);
  drawProgram();
}
function show(index) {
  Object.assign(state, {view: index, gaps: new Set(), from: -1, hit: -1, now: undefined});
  for (const button of document.querySelectorAll(".pass")) {
    const current = Number(button.dataset.view) === index;
    current ? button.setAttribute("aria-current", "page") : button.removeAttribute("aria-current");
    if (current) button.scrollIntoView({block: "nearest", inline: "nearest"});
  }
  history.replaceState(null, "", "#" + (index < 0 ? "overview" : D.stages[index].name));
  const main = $("main");
  main.scrollTop = 0;
  if (index < 0) { main.replaceChildren(...overview()); return; }
  const stage = D.stages[index], done = record(stage);
  main.replaceChildren(...[el("h2", {}, done ? done.text : stage.stage), chips(stage, done),
    done && done.error ? el("p", {class: "bad"}, done.error) : null,
    done ? fold("Rewritten", "good", done.matches, done.matches.length < 8) : null,
    done ? fold("Left alone, and why", "warn", done.misses, true) : null,
    done ? operators(done) : null, programBar(index),
    index && stage.rows.every(([i, j, n]) => i >= 0 && j >= 0) && rowsOf(index).every(row => row.kind === "same")
      ? el("p", {class: "dim"}, "The program is the same as before.") : null,
    el("div", {id: "program"})].filter(Boolean));
  drawProgram();
}

// ---------------------------------------------------------------- keys
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input")) { if (event.key === "Escape") event.target.blur(); return; }
  const last = D.stages.length - 1;
  const keys = {j: () => show(Math.min(last, state.view + 1)), k: () => show(Math.max(-1, state.view - 1)), n: () => nextChange(1),
    p: () => nextChange(-1), "/": () => $("search") && $("search").focus(), a: () => $("all") && $("all").click(), s: () => $("split") && $("split").click()};
  if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
});
narrow.addEventListener("change", () => state.view >= 0 && drawProgram());
addEventListener("hashchange", fromHash);
function fromHash() {
  const wanted = decodeURIComponent(location.hash.slice(1)), index = D.stages.findIndex(stage => stage.name === wanted);
  if (wanted === "overview" || index < 0) { if (state.view !== -1 || !$("main").querySelector("h2")) show(-1); } else if (index !== state.view) show(index);
}
drawHead(); drawSide(); fromHash();
"""
