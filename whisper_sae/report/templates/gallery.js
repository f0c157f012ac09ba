// Draws the gallery from the JSON in the page, with what drawing.js has. Whatever comes from data becomes text, never
// HTML; a sound is decoded when it is played, a picture when its feature is chosen.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const features = new Map(data.features.map((one) => [one.feature, one]));
  const $ = (selector, within = document) => within.querySelector(selector);
  const body = $(".rows tbody"), detail = $(".detail"), form = $(".filters"), narrow = matchMedia("(max-width: 62rem)");
  const named = (one) => one.label || "no label";

  // ---------------------------------------------------------------------------------------------- the list

  const COLUMNS = [
    { key: "feature", title: "Feature", kind: "c-name", falls: false },
    { key: null, title: "Values", kind: "c-spark spark-cell" },
    { key: "phone", title: "Phone", kind: "c-phone", falls: false },
    { key: "f1", title: "F1", kind: "c-f1 number", falls: true },
    { key: "rate", title: "Fires", kind: "c-rate number", falls: true },
  ];
  const state = { sort: data.features.some((one) => one.f1 !== undefined) ? "f1" : "rate", falls: true, chosen: null, shown: [] };
  const rows = new Map();

  const values = (one) => histogram({ counts: one.histogram || [], low: one.low, high: one.high });
  const meter = (share) => {
    const inner = make("i");
    inner.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
    return make("span", { class: "meter", "aria-hidden": "true" }, inner);
  };
  const row = (one) => {
    const link = make("a", { href: `#f${one.feature}`, tabindex: "-1" },
      make("span", { class: "name" }, make("span", { class: "id" }, String(one.feature)), make("span", {}, named(one))),
      one.flag ? make("span", { class: "flag" }, one.flag) : null);
    return make("tr", { class: one.by === "note" ? "note" : "draft", "data-feature": one.feature },
      make("td", {}, link),
      make("td", { class: "spark-cell" }, values(one)),
      make("td", {}, one.phone ? spoken(one.phone) : "–"),
      make("td", { class: "number" }, one.f1 === undefined ? "–" : one.f1.toFixed(2), one.f1 === undefined ? null : meter(one.f1)),
      make("td", { class: "number" }, percent(one.rate)));
  };
  const heads = () => COLUMNS.map(({ key, title, kind, falls }) => {
    const inner = key ? make("button", { type: "button", onclick: () => sort(key, falls) }, title) : make("span", {}, title);
    return make("th", { scope: "col", class: kind, "data-key": key }, inner);
  });
  const sort = (key, falls) => {
    state.falls = state.sort === key ? !state.falls : falls;
    state.sort = key;
    refresh();
  };
  const compare = (a, b) => {
    const [x, y] = [a[state.sort], b[state.sort]];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || a.feature - b.feature;
    const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
    return (state.falls ? -order : order) || a.feature - b.feature;
  };
  const asked = () => {
    const told = Object.fromEntries(new FormData(form));
    const number = (name) => told[name] === "" || !Number.isFinite(Number(told[name])) ? null : Number(told[name]);
    return { words: told.text.toLowerCase().split(/\s+/).filter(Boolean), phone: told.phone, flag: told.flag, by: told.by,
      f1: number("f1"), least: number("least"), most: number("most") };
  };
  const searched = (one) => [one.feature, one.label, one.phone, one.phone && spoken(one.phone), one.word, one.flag, one.category, one.stage, one.evidence]
    .filter((text) => text !== undefined).join(" ").toLowerCase();
  const passes = (one, want) =>
    want.words.every((word) => searched(one).includes(word)) &&
    (!want.phone || one.phone === want.phone) &&
    (!want.flag || (want.flag === "-" ? !one.flag : one.flag === want.flag)) &&
    (!want.by || (want.by.startsWith("is ") ? one.category === want.by.slice(3) : (one.by || "draft") === want.by)) &&
    (want.f1 === null || one.f1 >= want.f1) &&
    (want.least === null || 100 * one.rate >= want.least) && (want.most === null || 100 * one.rate <= want.most);

  const refresh = () => {
    const want = asked();
    state.shown = data.features.filter((one) => passes(one, want)).sort(compare);
    body.replaceChildren(...state.shown.map((one) => rows.get(one.feature)));
    if (!state.shown.length) body.append(make("tr", {}, make("td", { colspan: "5", class: "none-left" }, "No feature is like that.")));
    for (const head of document.querySelectorAll(".rows th"))
      if (head.dataset.key === state.sort) head.setAttribute("aria-sort", state.falls ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    $(".count").textContent = `${state.shown.length.toLocaleString("en")} of ${data.features.length.toLocaleString("en")} features`;
    reachable();
  };
  const reachable = () => {  // one row is in the order of the Tab key; the arrow keys lead to the others
    const at = state.shown.find((one) => one.feature === state.chosen) || state.shown[0];
    for (const [number, one] of rows) $("a", one).tabIndex = at && number === at.feature ? 0 : -1;
  };

  // --------------------------------------------------------------------------------------- the chosen feature

  const choose = (number, { focus = false, open = true, scroll = true } = {}) => {
    const one = features.get(number);
    if (!one) return;
    player.stop();
    if (state.chosen !== null) { rows.get(state.chosen).classList.remove("chosen"); $("a", rows.get(state.chosen)).removeAttribute("aria-current"); }
    state.chosen = number;
    rows.get(number).classList.add("chosen");
    $("a", rows.get(number)).setAttribute("aria-current", "true");
    reachable();
    detail.replaceChildren(...drawn(one));
    if (narrow.matches && open) { document.body.classList.add("reading"); scrollTo(0, 0); }
    if (focus) $("a", rows.get(number)).focus({ preventScroll: true });
    const box = $(".rows"), mine = rows.get(number);
    if (scroll && !narrow.matches && mine.isConnected) {
      const top = mine.offsetTop - 40, low = mine.offsetTop + mine.offsetHeight;
      if (top < box.scrollTop) box.scrollTop = top;
      else if (low > box.scrollTop + box.clientHeight) box.scrollTop = low - box.clientHeight;
    }
  };
  const block = (title, kind, ...inside) => make("div", { class: kind }, make("h3", {}, title), ...inside);
  const bars = (pairs, name, signed) => make("dl", { class: "bars" }, ...pairs.flatMap(([what, value]) => {
    const inner = make("i", { class: value < 0 ? "minus" : null }), share = Math.min(1, Math.abs(value || 0));
    inner.style.left = signed ? `${value < 0 ? 50 - 50 * share : 50}%` : "0";
    inner.style.width = `${(signed ? 50 : 100) * share}%`;
    return [make("dt", {}, name(what)), make("dd", { "aria-hidden": "true" }, make("div", { class: "meter" }, inner)), make("dd", {}, typeof value === "number" ? value.toFixed(2) : "–")];
  }));
  const drawn = (one) => {
    const found = data.examples[one.feature] || [];
    const best = one.phones || (one.f1 === undefined ? null : [[one.phone, one.f1]]);
    const under = [one.chance === undefined ? "" : `chance ${one.chance.toFixed(2)}`, one.stage && `mostly ${one.stage}`];
    const known = make("div", { class: "known" },
      block("Fires on", "", make("div", { class: "big" }, percent(one.rate)), make("div", { class: "small" }, "of the frames")),
      best ? block("Best phones, F1", "", bars(best, spoken, false), make("div", { class: "small" }, under.filter(Boolean).join(" · "))) : "",
      one.histogram ? block("Values when it fires", "", values(one),
        make("div", { class: "ends" }, make("span", {}, digits(one.low || 0)), make("span", {}, "counts, logarithmic"), make("span", {}, digits(one.high)))) : "",
      one.correlates ? block("Goes with", "", bars(one.correlates, String, true)) : "",
      one.word ? block("Often in", "", make("div", { class: "big" }, `“${one.word}”`)) : "",
      ...(one.more || []).map(([name, value]) => block(name, "", make("div", { class: "big" }, digits(value)))));
    const about = [one.by === "note" ? "a person’s note" : one.label ? "a draft from scores" : "", one.category, one.confidence === undefined ? "" : `confidence ${digits(one.confidence, 2)}`];
    return [
      make("button", { type: "button", class: "back", onclick: back }, "← All features"),
      make("p", { class: "which" }, `Feature ${one.feature}`, ...about.filter(Boolean).map((text) => make("span", {}, `· ${text}`)),
        one.flag ? make("span", { class: "flag" }, one.flag) : ""),
      make("h2", { class: one.by === "note" ? null : "draft" }, named(one)),
      one.evidence ? make("p", { class: "evidence" }, one.evidence) : "",
      known,
      found.length ? how() : make("p", { class: "small" }, "There are no examples of it here."),
      make("ol", { class: "examples" }, ...found.map((each, at) => example(one, each, at, found))),
    ].filter((part) => part !== "");
  };

  const listening = { slow: false, loop: false, near: false }, player = playing(listening);
  const how = () => make("fieldset", { class: "how" }, make("legend", {}, "Listen"),
    ...[["slow", "half speed"], ["loop", "again and again"], ["near", "softer away from the peak"]].map(([name, text]) =>
      make("label", {}, make("input", { type: "checkbox", checked: listening[name], onchange: (event) => { listening[name] = event.target.checked; player.heed(); } }), text)));

  // ------------------------------------------------------------------------------------------------ examples

  const example = (one, each, at, all) => {
    const part = data.excerpts[each.excerpt], clip = data.clips[part.clip];
    const far = Math.max(Math.abs(one.low || 0), Math.abs(one.high || 0), ...all.map((other) => other.most));
    const trace = Array.from(Int8Array.from(bytes(each.trace)), (value) => value * each.most / 127);
    const whole = (data.wholes || []).findIndex((other) => other.part.clip === part.clip), who = clip.speaker && ` · speaker ${clip.speaker}`;
    const from = [whole < 0 ? clip.name : make("a", { href: `#c${whole}`, title: "All its features" }, clip.name), who];
    return card({ part, clip, trace, far, from, signed: (one.low || 0) < 0, kind: each.kind, value: each.value,
      at: part.first + part.seconds / 2, name: `example ${at + 1}, ${each.kind}` }, player).card;
  };

  // ---------------------------------------------------------------------------------------------- whole clips

  const wholes = data.wholes || [], clips = $(".clips"), nav = $(".switch");
  const hear = (number) => {
    const { part, found } = wholes[number], clip = data.clips[part.clip];
    player.stop();
    const rows = found.map((row) => {
      const one = features.get(row.feature), values = Array.from(Int8Array.from(bytes(row.trace)), (value) => value * row.most / 127);
      return { ...row, values, kind: `Feature ${row.feature}`, signed: (one.low || 0) < 0, far: Math.max(Math.abs(one.low || 0), Math.abs(one.high || 0)),
        label: make("span", { class: one.by === "note" ? null : "draft" }, named(one)), word: (clip.words[wordAt(clip.words, row.at)] || [])[2] };
    });
    const it = card({ part, clip, name: `clip ${clip.name}`, ...(rows[0] ? { ...rows[0], trace: rows[0].values } : { trace: [], far: 1, kind: "Nothing fires", value: 0, at: 0 }) }, player);
    detail.replaceChildren(make("button", { type: "button", class: "back", onclick: back }, "← All clips"),
      make("p", { class: "which" }, "Clip", clip.speaker ? make("span", {}, `· speaker ${clip.speaker}`) : ""), make("h2", {}, clip.name),
      make("p", { class: "small" }, "The features with the highest peaks in it, of those in this file. A number leads to the clips of that feature; its track shows it over the spectrogram."),
      how(), make("ul", { class: "examples one" }, it.card), tops(rows, it, (feature) => { location.hash = `f${feature}`; }));
    for (const [at, link] of [...clips.querySelectorAll("a")].entries()) if (at === number) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    if (narrow.matches) { document.body.classList.add("reading"); scrollTo(0, 0); }
  };
  const side = (of) => {
    document.body.classList.toggle("of-clips", of === "clips");
    for (const one of nav.children) one.setAttribute("aria-pressed", one.dataset.of === of);
  };
  if (wholes.length) {
    nav.hidden = false;
    clips.append(...wholes.map(({ part }, at) => { const clip = data.clips[part.clip]; return make("li", {}, make("a", { href: `#c${at}` }, make("b", {}, clip.name), make("span", { class: "soft" }, [clip.speaker && ` speaker ${clip.speaker}`, `${clip.seconds.toFixed(1)} s`].filter(Boolean).join(" · ")), make("i", {}, clip.text))); }));
    nav.append(...[["features", `Features (${data.features.length.toLocaleString("en")})`], ["clips", `Clips (${wholes.length.toLocaleString("en")})`]].map(([of, text]) =>
      make("button", { type: "button", "data-of": of, onclick: () => { side(of); if (of === "clips" && !narrow.matches) hear(0); else if (of === "features" && state.chosen !== null && !narrow.matches) choose(state.chosen, { open: false }); } }, text)));
    side("features");
  }

  // ---------------------------------------------------------------------------------------------- the hands

  const back = () => {
    player.stop();
    document.body.classList.remove("reading");
    if (location.hash) history.replaceState(null, "", location.pathname + location.search);
    const mine = rows.get(state.chosen);
    if (mine && mine.isConnected) { mine.scrollIntoView({ block: "center" }); $("a", mine).focus({ preventScroll: true }); }
  };
  const remember = (number) => history.replaceState(null, "", `#f${number}`);
  body.addEventListener("click", (event) => {
    const mine = event.target.closest("tr[data-feature]");
    if (!mine || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    enter(Number(mine.dataset.feature), event.detail === 0);
  });
  const enter = (number, byKey) => {
    choose(number, { focus: !narrow.matches });
    remember(number);
    if (byKey || narrow.matches) detail.focus({ preventScroll: true });
  };
  body.addEventListener("keydown", (event) => {
    const at = state.shown.findIndex((one) => one.feature === Number(event.target.closest("tr").dataset.feature)), last = state.shown.length - 1;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last, PageDown: at + 10, PageUp: at - 10 }[event.key];
    if (event.key === " ") {
      event.preventDefault();
      if (state.chosen !== state.shown[at].feature) choose(state.shown[at].feature, { open: false });
      $(".player button", detail)?.click();
    } else if (to !== undefined && !event.ctrlKey && !event.altKey && !event.metaKey) {
      event.preventDefault();
      const next = state.shown[Math.max(0, Math.min(last, to))].feature;
      choose(next, { focus: true, open: false });
      if (narrow.matches) rows.get(next).scrollIntoView({ block: "nearest" });
      else remember(next);
    }
  });
  detail.addEventListener("keydown", (event) => { if (event.key === "Escape") back(); });
  const options = (select, values, name) => $(`select[name=${select}]`).append(...values.map((value) => make("option", { value: name(value)[0] }, name(value)[1])));
  const several = (key) => [...new Set(data.features.map((one) => one[key]).filter(Boolean))].sort((a, b) => a.localeCompare(b));
  const follow = () => {
    const number = /^#f(\d+)$/.exec(location.hash), clip = /^#c(\d+)$/.exec(location.hash);
    if (clip && wholes[Number(clip[1])]) { side("clips"); hear(Number(clip[1])); }
    else if (number && features.has(Number(number[1]))) { if (wholes.length) side("features"); choose(Number(number[1])); }
    else document.body.classList.remove("reading");
  };

  for (const one of data.features) rows.set(one.feature, row(one));
  $(".rows thead tr").append(...heads());
  $(".rows table").classList.toggle("no-phones", !data.features.some((one) => one.phone));
  options("phone", several("phone"), (phone) => [phone, spoken(phone)]);
  options("flag", several("flag"), (flag) => [flag, flag]);
  options("by", several("category"), (category) => [`is ${category}`, `a person: ${category}`]);
  if (narrow.matches) $(".more-filters").open = false;
  narrow.addEventListener("change", () => { if (!narrow.matches) $(".more-filters").open = true; });
  form.addEventListener("input", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(refresh));
  addEventListener("hashchange", follow);
  refresh();
  if (state.shown.length) choose(state.shown[0].feature, { open: false, scroll: false });
  follow();
})();
