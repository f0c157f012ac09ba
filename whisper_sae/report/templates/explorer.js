// The explorer: what a person asks goes to Python as JSON over the notebook's own channel, and the answers are drawn with
// what drawing.js has. Whatever comes from data becomes text, never HTML. No other host is asked for anything.

// Questions and their answers. A question is answered once; one that is asked again under the same name takes the place
// of the one before, whose answer then counts no more.
const asking = (model) => {
  const waiting = new Map(), latest = new Map(), me = Math.random().toString(36).slice(2);
  let last = 0;
  const hear = (message) => {
    const one = message && waiting.get(message.id);
    if (!one) return;
    waiting.delete(message.id);
    if (message.answer.error === undefined) one.resolve(message.answer);
    else one.reject(new Error(message.answer.error));
  };
  model.on("msg:custom", hear);
  const ask = (question, buffers = []) => new Promise((resolve, reject) => {
    const id = `${me}-${++last}`;
    waiting.set(id, { resolve, reject });
    model.send({ id, question }, undefined, buffers);
  });
  const only = async (name, question) => {
    const turn = (latest.get(name) || 0) + 1;
    latest.set(name, turn);
    const answer = await ask(question);
    return latest.get(name) === turn ? answer : null;
  };
  return { ask, only, leave: () => model.off("msg:custom", hear) };
};

// ------------------------------------------------------------------------------------------------------- sounds

const wavOf = (samples, rate = 16000) => {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, rate, 4], [28, 2 * rate, 4], [32, 2, 2], [34, 16, 2]].forEach(([at, value, size]) =>
    size === 4 ? view.setUint32(at, value, true) : view.setUint16(at, value, true));
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, n) => view.setInt16(44 + 2 * n, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return view.buffer;
};
const decodedByBrowser = async (blob) => {  // what Python has no decoder for: a recording, in WebM or MP4
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await blob.arrayBuffer());
  const many = sound.numberOfChannels, channels = Array.from({ length: many }, (_, n) => sound.getChannelData(n));
  return wavOf(Array.from({ length: sound.length }, (_, at) => channels.reduce((sum, one) => sum + one[at], 0) / many));
};
const CHUNK = 1 << 20;  // bytes: a notebook server takes messages of less than 10 MiB
const handOver = async ({ ask }, source, name, buffer, told) => {
  const parts = Math.max(1, Math.ceil(buffer.byteLength / CHUNK)), upload = Math.random().toString(36).slice(2);
  for (let part = 0; part < parts; part++) {
    const answer = await ask({ ask: "upload", source, name, upload, part, parts }, [buffer.slice(part * CHUNK, (part + 1) * CHUNK)]);
    if (part + 1 === parts) return answer;
    told(`${Math.round(100 * (part + 1) / parts)} % handed over`);
  }
};
const save = (name, data) => {
  const address = URL.createObjectURL(new Blob([bytes(data)], { type: "audio/wav" }));
  const link = make("a", { href: address, download: `${name.replace(/[^\w.-]+/g, "_").slice(0, 80) || "sound"}.wav` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};

// ------------------------------------------------------------------------------------------------- differences

const pieces = (text) => text.match(/[\p{L}\p{N}'’-]+|[^\s\p{L}\p{N}]/gu) || [];
const difference = (before, after) => {  // [kind, word] of the shortest way from one text to the other
  const a = pieces(before), b = pieces(after), best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const way = [];
  for (let i = 0, j = 0; i < a.length || j < b.length;)
    if (i < a.length && j < b.length && a[i] === b[j]) { way.push(["same", b[j++]]); i++; }
    else if (j < b.length && (i === a.length || best[i][j + 1] > best[i + 1][j])) way.push(["ins", b[j++]]);
    else way.push(["del", a[i++]]);
  return way;
};
const marked = (before, after) => difference(before, after).flatMap(([kind, word], n) => {
  const gap = n && !/^[^\p{L}\p{N}]$/u.test(word) ? " " : "";
  return [gap, kind === "same" ? word : make(kind, {}, word)];
});

// -------------------------------------------------------------------------------------------------- the widget

const TABS = { feature: "Feature → clips", clip: "Clip → features", compare: "Compare", change: "Change" };
const same = (one, other) => one && other && one.clip === other.clip && one.upload === other.upload;
const named = (clip) => clip.upload === undefined ? { clip: clip.clip } : { upload: clip.upload };
const turned = (share) => -2 + 102 * share ** 3;  // of the slider: fine near 0 to 2, and 100 at its end
const place = (scale) => Math.cbrt((scale + 2) / 102);

const explorer = (model, el) => {
  const { ask, only, leave } = asking(model), id = `e${Math.random().toString(36).slice(2)}`;
  const player = playing(), state = { source: 0, about: null, tab: "feature", past: [], now: null, clip: null, recent: [], scales: new Map() };
  const root = make("section", { class: "whisper-explorer", "data-lm-suppress-shortcuts": "true", "aria-label": "Explorer of features and clips" });
  const status = make("p", { class: "status", role: "status" });
  const say = (text = "", wrong = false) => { status.textContent = text; status.classList.toggle("wrong", wrong); };
  const trying = (work) => async (...given) => {
    try { return await work(...given); } catch (error) { say(error.message, true); }
  };
  const about = () => state.about[state.source];
  const question = (fields) => ({ source: about().source, ...fields });
  const button = (text, press, given = {}) => make("button", { type: "button", onclick: trying(press), ...given }, text);
  const field = (text, given, wide = false) => make("label", { class: wide ? "wide" : null }, make("span", {}, text), make("input", given));
  const value = (form, name) => { const text = form.elements[name].value.trim(); return text === "" ? null : Number(text); };
  const labelled = (one) => one.label ? make("span", { class: one.by === "note" ? "label note" : "label" }, one.label) : "";

  // --------------------------------------------------------------------------------------------------- cards

  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    seen.unobserve(entry.target);
    entry.target.bring();
  }), { rootMargin: "400px" });
  const shown = (given, kept = {}) => {  // a card whose sound and picture come when it is looked at
    const { clip, part } = given;
    const bring = trying(async () => {
      if (part.sound) return;
      if (part.coming) return part.coming;
      part.coming = ask(question({ ask: "media", ...named(clip), first: part.first }));
      Object.assign(part, await part.coming);
      it.fill();
    });
    const foot = [make("div", { class: "foot" }, ...(given.foot || []),
      button("Save sound", async () => { await bring(); save(clip.name, part.sound); }, { "aria-label": `Save the sound of ${clip.name}` }))];
    const it = card({ ...given, precise: true, bring, foot }, player);
    it.card.bring = bring;
    if (kept.now) bring();
    else seen.observe(it.card);
    return it;
  };
  const shortly = (names) => names.length > 4 ? [...names.slice(0, 3), `${names.length - 3} more labels`] : names;
  const about_clip = (clip) => [clip.name, clip.speaker && `speaker ${clip.speaker}`, ...shortly(Object.values(clip.groups || {}))].filter(Boolean).join(" · ");

  // ------------------------------------------------------------------------------------------ feature to clips

  const panels = {}, found = {};
  const fill_feature = async (query) => {
    const started = performance.now();
    const told = await only("feature", question({ ask: "feature", ...query }));
    if (!told) return;
    state.feature = told.feature;
    player.stop();
    const far = Math.max(Math.abs(told.low), Math.abs(told.high)), one = about();
    const within = query.low === null && query.high === null ? null : [query.low ?? -Infinity, query.high ?? Infinity];
    const list = make("ol", { class: "examples" }), drawn = (row, n) => shown({
      clip: row.clip, part: { first: row.first, seconds: row.seconds, ...(n ? {} : told.media) }, trace: floats(row.track), far, signed: one.signed,
      kind: `${n + 1} of ${told.matched}`, value: row.value, at: row.at, name: `clip ${row.clip.name}`, from: [about_clip(row.clip)],
      foot: [button("Its features", () => go("clip", { clip: row.clip.clip }), { "aria-label": `The features of ${row.clip.name}` })],
    }, { now: n === 0 }).card;
    if (told.found.length) list.append(drawn(told.found[0], 0));  // the others after it has been seen
    found.feature.replaceChildren(
      make("header", { class: "which" }, make("h3", { tabindex: "-1" }, `Feature ${told.feature}`), labelled(told),
        make("span", { class: "soft" }, `fires on ${percent(told.rate)} of the frames, in ${told.fires_in.toLocaleString("en")} of ${told.searched.toLocaleString("en")} clips; values from ${digits(told.low)} to ${digits(told.high)}`),
        one.can_change ? button("Change it", () => { state.scales.set(told.feature, state.scales.get(told.feature) ?? 0); go("change", {}); }) : ""),
      make("figure", { class: "peaks" }, histogram(told.histogram, within),
        make("div", { class: "ends" }, make("span", {}, digits(told.histogram.low)), make("span", {}, "peaks of clips, counts logarithmic"), make("span", {}, digits(told.histogram.high)))),
      one.can_note ? note_form(told) : "",
      list);
    say(told.matched ? `${told.found.length} of ${told.matched.toLocaleString("en")} clips${within ? " within the range" : ""}` : within ? "No clip peaks within this range." : "It fires in none of the clips.");
    root.dataset.took = (performance.now() - started).toFixed(1);
    await new Promise((done) => setTimeout(done));
    if (list.isConnected) list.append(...told.found.slice(1).map((row, n) => drawn(row, n + 1)));
  };
  const feature_form = () => {
    const form = make("form", { class: "ask", role: "search", "aria-label": "Clips of a feature", autocomplete: "off", onsubmit: trying(async (event) => {
      event.preventDefault();
      await go("feature", { feature: value(form, "feature"), low: value(form, "low"), high: value(form, "high"), absolute: form.elements.absolute.checked, most: value(form, "most") ?? 20 });
    }) },
      field("Feature", { type: "number", name: "feature", min: 0, step: 1, required: true, inputmode: "numeric" }),
      field("Peak from", { type: "number", name: "low", step: "any", placeholder: "any" }),
      field("to", { type: "number", name: "high", step: "any", placeholder: "any" }),
      field("At most", { type: "number", name: "most", min: 1, max: 100, value: 20 }),
      make("label", { class: "check" }, make("input", { type: "checkbox", name: "absolute" }), make("span", {}, "absolute value")),
      make("button", { type: "submit", class: "main" }, "Find clips"));
    return form;
  };
  const note_form = (told) => {
    const note = told.note || {}, field_of = (name) => `${id}-note-${name}`;
    const area = (name, text, rows) => make("label", { class: "wide" }, make("span", {}, text), make("textarea", { name, rows, id: field_of(name) }, note[name] || ""));
    const done = make("span", { class: "soft", role: "status" }, note.when ? `kept on ${note.when}` : "");
    const form = make("form", { class: "note-form", onsubmit: trying(async (event) => {
      event.preventDefault();
      const text = (name) => form.elements[name].value;
      const kept = await ask(question({ ask: "note", feature: told.feature, category: text("category"), description: text("description"),
        confidence: text("confidence") === "" ? null : Number(text("confidence")), evidence: text("evidence"), who: text("who") }));
      done.textContent = `kept on ${kept.note.when}`;
      say(`The note on feature ${told.feature} is kept.`);
    }) },
      make("label", {}, make("span", {}, "Category"), make("select", { name: "category" }, ...about().categories.map((one) => make("option", { value: one, selected: one === (note.category || "unknown") }, one)))),
      field("Confidence, 0 to 1", { type: "number", name: "confidence", min: 0, max: 1, step: 0.05, value: note.confidence ?? "" }),
      field("Who", { type: "text", name: "who", value: note.who || "", maxlength: 100 }),
      area("description", "What it stands for", 2), area("evidence", "What was heard and seen", 2),
      make("div", { class: "row" }, make("button", { type: "submit", class: "main" }, "Keep the note"),
        told.note ? button("Remove it", async () => { await ask(question({ ask: "forget", feature: told.feature })); say(`The note on feature ${told.feature} is removed.`); await again(); }) : "", done));
    return make("details", { class: "note", open: false }, make("summary", {}, told.note ? "Your note" : "Write a note"), form);
  };

  // ------------------------------------------------------------------------------------------ clip to features

  const fill_clip = async ({ by = "peak", most = 32, ...source }) => {
    const told = await only("clip", question({ ask: "clip", by, most, ...source }));
    if (!told) return;
    player.stop();
    state.clip = told.clip;
    state.recent = [told.clip, ...state.recent.filter((one) => !same(one, told.clip))].slice(0, 12);
    const one = about(), part = { first: told.first, seconds: told.seconds };
    const first = told.found[0], nothing = { trace: [], far: 1, value: 0, at: told.first };
    const drawn = (row) => ({ far: Math.max(Math.abs(row.low), Math.abs(row.high)) || Math.abs(row.value), signed: one.signed, value: row.value, at: row.at, kind: `Feature ${row.feature}` });
    const it = shown({ clip: told.clip, part, ...(first ? { trace: floats(first.track), ...drawn(first) } : nothing), kind: first ? `Feature ${first.feature}` : "Nothing fires",
      name: `clip ${told.clip.name}`, from: [about_clip(told.clip)],
      foot: [button("Compare it", () => go("compare", {})), one.can_change ? button("Change what is heard", () => go("change", {})) : ""] }, { now: true });
    const list = tops(told.found.map((row) => ({ ...row, ...drawn(row), values: floats(row.track), label: labelled(row),
      extra: one.can_change ? button("change", () => { state.scales.set(row.feature, 0); go("change", {}); }, { class: "small", "aria-label": `Change feature ${row.feature}` }) : "" })),
    it, trying((feature) => go("feature", { feature, low: null, high: null, absolute: one.signed, most: 20 })));
    found.clip.replaceChildren(make("header", { class: "which" }, make("h3", { tabindex: "-1" }, told.clip.name),
      make("span", { class: "soft" }, `${told.fires.toLocaleString("en")} features fire; ${by === "share" ? "those nearest to their highest value anywhere" : "the highest peaks"} come first. A number leads to the clips of that feature.`),
      button(by === "share" ? "Order by peak" : "Order by share", () => go("clip", { ...named(told.clip), by: by === "share" ? "peak" : "share", most }))),
      make("div", { class: "pair" }, make("ul", { class: "examples one" }, it.card), list));
    say(`${told.found.length} of ${told.fires} features of ${told.clip.name}`);
  };
  const pick = () => {
    const list = make("ul", { class: "picks", "aria-label": "Clips" });
    const look = trying(async (text) => {
      const told = await only("clips", question({ ask: "clips", text, most: 30 }));
      if (!told) return;
      list.replaceChildren(...told.found.map((clip) => make("li", {}, button(make("span", {}, make("b", {}, clip.name), ` ${about_clip(clip).slice(clip.name.length)}`, make("i", {}, clip.text)), () => go("clip", { clip: clip.clip })))));
      if (!told.found.length) list.append(make("li", { class: "soft" }, "No clip has all these words."));
    });
    const search = make("input", { type: "search", name: "text", placeholder: "a word, a speaker, a label", oninput: () => look(search.value) });
    const form = make("div", { class: "ask" }, make("label", { class: "wide" }, make("span", {}, "A clip of the corpus"), search), about().can_upload ? own() : "");
    look("");
    return [form, make("details", { class: "pick", open: true }, make("summary", {}, "Clips"), list)];
  };
  const own = () => {  // a sound of one's own: a file, or what the microphone hears
    const file = make("input", { type: "file", accept: "audio/*,.wav,.flac,.ogg,.mp3", id: `${id}-file`, onchange: trying(async () => { if (file.files[0]) await take(file.files[0].name, file.files[0]); }) });
    const preview = make("div", { class: "preview", hidden: true });
    const take = async (name, blob) => {
      if (blob.size > about().most_bytes) throw new Error(`${name}: ${(blob.size / 1e6).toFixed(0)} MB; at most ${(about().most_bytes / 1e6).toFixed(0)} MB can be handed over`);
      say(`Handing over ${name} …`);
      const foreign = /webm|mp4|m4a|aac/.test(`${blob.type} ${name}`);
      const buffer = await (foreign ? decodedByBrowser(blob).catch(() => { throw new Error(`${name}: this browser cannot decode it; WAV, FLAC, Ogg and MP3 can be read`); }) : blob.arrayBuffer());
      const told = await handOver({ ask }, about().source, name, buffer, say);
      preview.hidden = true;
      file.value = "";
      await go("clip", { upload: told.upload });
    };
    let recorder = null;
    const record = button("Record", async () => {
      if (recorder) { recorder.stop(); return; }
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch(() => { throw new Error("The microphone is not given to this page."); });
      const parts = [], longest = setTimeout(() => recorder && recorder.stop(), 1000 * about().longest);
      recorder = new MediaRecorder(stream);
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.onstop = () => {
        clearTimeout(longest);
        stream.getTracks().forEach((track) => track.stop());
        const blob = new Blob(parts, { type: recorder.mimeType });
        recorder = null;
        record.textContent = "Record";
        const sound = make("audio", { controls: true, src: URL.createObjectURL(blob), "aria-label": "What was recorded" });
        const gone = () => { URL.revokeObjectURL(sound.src); preview.hidden = true; };
        preview.replaceChildren(sound, button("Ask about it", async () => { await take("recording.webm", blob); gone(); }, { class: "main" }), button("Discard", gone));
        preview.hidden = false;
        say("");
      };
      recorder.start();
      record.textContent = "Stop";
      say("Recording …");
    });
    return make("div", { class: "own" }, make("label", { for: `${id}-file` }, make("span", {}, "or a sound of your own"), file), record, preview);
  };

  // --------------------------------------------------------------------------------------------------- compare

  const compare_form = () => {
    const groups = about().groups, names = Object.keys(groups), side = (text, chosen) => {
      const number = make("input", { type: "number", min: 0, max: about().all_clips - 1, step: 1, value: chosen ?? "", "aria-label": `${text}: number of a clip`, name: text });
      const recent = make("select", { "aria-label": `${text}: a clip you have seen`, onchange: () => { number.hidden = recent.value !== ""; } },
        make("option", { value: "" }, "clip number …"), ...state.recent.map((clip, n) => make("option", { value: n }, clip.name)));
      return { tag: make("div", { class: "side" }, make("span", {}, text), recent, number), number, recent,
        get: () => recent.value !== "" ? named(state.recent[Number(recent.value)]) : number.value.trim() === "" ? {} : { clip: Number(number.value) } };
    };
    const a = side("A"), b = side("B");
    state.recent.slice(0, 2).forEach((_, n) => { const one = [a, b][n]; one.recent.value = String(n); one.number.hidden = true; });
    const clips = make("form", { class: "ask", "aria-label": "Compare two clips", onsubmit: trying(async (event) => { event.preventDefault(); await go("compare", { a: a.get(), b: b.get() }); }) },
      a.tag, b.tag, make("button", { type: "submit", class: "main" }, "Compare clips"));
    const lost = Object.entries(about().left_out), note = lost.length ? [make("details", { class: "soft left-out-groups" }, make("summary", {}, "Columns and groups that cannot be chosen here"),
      ...lost.map(([name, why]) => make("p", {}, `${name}: ${why}.`)))] : [];
    if (!names.length) return [clips, ...note];
    const column = make("select", { name: "column", onchange: () => fill() }, ...names.map((name) => make("option", { value: name }, name)));
    const one = make("select", { name: "one" }), other = make("select", { name: "other" });
    const fill = () => [one, other].forEach((select, n) => { select.replaceChildren(...groups[column.value].map((text) => make("option", { value: text }, text))); select.selectedIndex = n; });
    fill();
    const labels = (text, select) => make("label", {}, make("span", {}, text), select);
    return [clips, make("form", { class: "ask", "aria-label": "Compare two groups", onsubmit: trying(async (event) => { event.preventDefault();
      await go("compare", { a: { column: column.value, value: one.value }, b: { column: column.value, value: other.value } }); }) },
      labels("Groups by", column), labels("A", one), labels("B", other), make("button", { type: "submit", class: "main" }, "Compare groups")), ...note];
  };
  const fill_compare = async ({ a, b }) => {
    panels.compare.replaceChildren(...compare_form(), found.compare);
    if (!a) { found.compare.replaceChildren(make("p", { class: "soft" }, "Open two clips, or choose two groups of speakers.")); return; }
    say("Comparing …");
    const told = await only("compare", question({ ask: "compare", a, b, most: 30 }));
    if (!told) return;
    const most = Math.max(...told.found.map((row) => Math.abs(row.difference)), 1e-9), unit = told.groups ? `Cohen’s d over speakers${told.within ? `, within each ${told.within}` : ""}` : "of its highest value anywhere";
    const rows = told.found.map((row) => {
      const share = Math.min(1, Math.abs(row.difference) / most), inner = make("i", { class: row.difference < 0 ? "minus" : null });
      inner.style.left = `${row.difference < 0 ? 50 - 50 * share : 50}%`;
      inner.style.width = `${50 * share}%`;
      return make("tr", {}, make("th", { scope: "row" }, button(String(row.feature), () => go("feature", { feature: row.feature, low: null, high: null, absolute: about().signed, most: 20 }), { class: "leap", "aria-label": `The clips of feature ${row.feature}` }), " ", labelled(row)),
        make("td", { class: "number" }, digits(row.a)), make("td", { class: "number" }, digits(row.b)),
        make("td", { class: "number" }, told.groups ? row.difference.toFixed(2) : percent(Math.abs(row.difference))),
        make("td", { "aria-hidden": "true" }, make("div", { class: "bars" }, make("div", { class: "meter" }, inner))));
    });
    const speakers = told.groups && told.found[0] ? ` ${told.found[0].speakers_a} and ${told.found[0].speakers_b} speakers; chosen among ${told.compared} features, so this is to listen by and no test.${told.in_both.length ? ` In both groups and left out: ${told.in_both.join(", ")}.` : ""}` : "";
    found.compare.replaceChildren(make("h3", { tabindex: "-1" }, `${told.names[0]} and ${told.names[1]}`), make("div", { class: "scroll" }, make("table", {}, make("caption", { class: "soft" }, `The features that are farthest apart, ${unit}.${speakers}`),
      make("thead", {}, make("tr", {}, ...["Feature", told.groups ? "mean in A" : "peak in A", "in B", "apart", "more in B · more in A"].map((text, n) => make("th", { scope: "col", class: n ? "number" : null }, text)))), make("tbody", {}, ...rows))));
    say(`${told.found.length} of ${told.compared} features`);
  };

  // ---------------------------------------------------------------------------------------------------- change

  const fill_change = async () => {
    const one = about();
    if (!state.clip) { panels.change.replaceChildren(make("p", { class: "soft" }, "Open a clip first: then its features can be turned up and down here."), button("Choose a clip", () => go("clip", {}))); return; }
    const clip = state.clip, list = make("div", { class: "sliders" });
    const draw = () => list.replaceChildren(...[...state.scales].map(([feature, scale]) => {
      const number = make("input", { type: "number", min: one.scales[0], max: one.scales[1], step: "any", value: digits(scale), name: `scale-${feature}`, "aria-label": `Feature ${feature} times` });
      const slider = make("input", { type: "range", min: 0, max: 1, step: 0.001, value: place(scale), "aria-label": `Feature ${feature} times, slider`, "aria-valuetext": digits(scale) });
      slider.addEventListener("input", () => { const now = Number(turned(Number(slider.value)).toPrecision(2)); number.value = digits(now); slider.setAttribute("aria-valuetext", digits(now)); state.scales.set(feature, now); });
      number.addEventListener("input", () => { state.scales.set(feature, number.value.trim() === "" ? null : Number(number.value)); slider.value = place(Number(number.value)); });
      return make("div", { class: "slider" }, make("b", {}, `Feature ${feature}`), make("span", {}, "×"), number, slider, button("Leave as it is", () => { state.scales.delete(feature); draw(); }, { class: "small", "aria-label": `Leave feature ${feature} as it is` }));
    }));
    draw();
    const add = make("input", { type: "number", min: 0, max: one.features - 1, step: 1, name: "add", "aria-label": "Number of a feature to change" });
    const form = make("form", { class: "ask", "aria-label": "Change features", onsubmit: trying(async (event) => { event.preventDefault(); await hear(false); }) },
      make("label", {}, make("span", {}, "Another feature"), add), button("Add", () => {
        const feature = Number(add.value);
        if (add.value === "" || !Number.isInteger(feature) || feature < 0 || feature >= one.features) throw new Error(`feature: must be a whole number from 0 to ${one.features - 1}`);
        state.scales.set(feature, state.scales.get(feature) ?? 0); draw(); }),
      field("Only from, s", { type: "number", name: "start", min: 0, step: "any", placeholder: "start" }), field("to, s", { type: "number", name: "end", min: 0, step: "any", placeholder: "end" }),
      make("button", { type: "submit", class: "main" }, "Listen again"), button("With random features beside it", () => hear(true)));
    const hear = async (control) => {
      say("Listening …");
      const started = performance.now();
      const told = await only("change", question({ ask: "change", ...named(clip), scales: Object.fromEntries(state.scales), start: value(form, "start"), end: value(form, "end"), control }));
      if (told) written(told, performance.now() - started);
    };
    panels.change.replaceChildren(make("header", { class: "which" }, make("h3", { tabindex: "-1" }, `Change what is heard in ${clip.name}`), make("span", { class: "soft" }, "0 silences a feature, 1 leaves it, 2 doubles it, −1 turns it around.")), list, form, found.change);
    found.change.replaceChildren();
    say(state.scales.size ? "" : "Add a feature, or press “change” beside one of a clip.");
  };
  const written = (told, took) => {
    const texts = [["As it is", told.baseline, null], ["Re-said by the dictionary", told.reconstructed, told.baseline], ["Changed", told.edited, told.baseline]];
    if (told.control) texts.push([`Control: ${told.control.features.map((n, at) => `feature ${n} for ${told.control.of[at]}`).join(", ") || "none matches"}`, told.control.text, told.baseline]);
    const list = make("dl", { class: "texts" }, ...texts.flatMap(([name, text, before]) => [make("dt", {}, name),
      make("dd", { "data-text": name }, ...(before === null ? [text || "(nothing)"] : text === before ? [text || "(nothing)", make("span", { class: "soft same" }, "the same")] : marked(before, text)))]));
    const clip = told.clip, tracks = Object.entries(told.tracks).map(([feature, [before, after]]) => {
      const far = Math.max(...before.map(Math.abs), ...after.map(Math.abs), 1e-9), signed = [...before, ...after].some((x) => x < 0), part = { first: 0, seconds: before.length * HOP };
      const peak = (values) => values.reduce((best, x, n) => Math.abs(x) > Math.abs(values[best]) ? n : best, 0);
      return make("div", { class: "both" }, ...[["as it is", before], ["changed", after]].map(([kind, values]) => shown({ clip, part: { ...part }, trace: values, far, signed, kind: `Feature ${feature}, ${kind}`,
        value: values[peak(values)], at: peak(values) * HOP, name: `${clip.name}, feature ${feature} ${kind}`, from: [] }).card));
    });
    found.change.replaceChildren(list, ...tracks);
    say(`Written in ${(took / 1000).toFixed(1)} s.`);
    root.dataset.wrote = took.toFixed(1);
  };

  // --------------------------------------------------------------------------------------------- going about

  const tabs = make("div", { class: "tabs", role: "tablist", "aria-label": "What to ask" });
  const back = button("← Back", async () => { const one = state.past.pop(); if (one) { state.now = null; await go(one.tab, one.query); } }, { class: "back", disabled: true });
  const fills = { feature: fill_feature, clip: fill_clip, compare: fill_compare, change: fill_change };
  const choose = (name) => {
    state.tab = name;
    for (const tab of tabs.children) { const mine = tab.dataset.tab === name; tab.setAttribute("aria-selected", mine); tab.tabIndex = mine ? 0 : -1; }
    for (const [key, panel] of Object.entries(panels)) panel.hidden = key !== name;
  };
  const go = async (tab, query) => {
    if (state.now) state.past = [...state.past, state.now].slice(-50);
    state.now = { tab, query };
    back.disabled = !state.past.length;
    choose(tab);
    say("");
    if (tab === "feature" && query.feature !== undefined) for (const name of ["feature", "low", "high", "most"]) panels.feature.querySelector(`[name=${name}]`).value = query[name] ?? "";
    if (tab === "feature") panels.feature.querySelector("[name=absolute]").checked = Boolean(query.absolute);
    if (tab === "clip" && query.clip === undefined && query.upload === undefined) { panels.clip.querySelector(".pick").open = true; return; }
    if (tab === "clip") panels.clip.querySelector(".pick").open = false;
    await fills[tab](query);
    if (root.contains(document.activeElement) && panels[tab].querySelector("h3")) panels[tab].querySelector("h3").focus({ preventScroll: true });
  };
  const again = () => fills[state.now.tab](state.now.query);
  const begin = async () => {
    const one = about(), names = Object.keys(TABS).filter((name) => name !== "change" || one.can_change);
    Object.assign(state, { past: [], now: null, clip: null, recent: [], scales: new Map() });
    tabs.replaceChildren(...names.map((name) => make("button", { type: "button", role: "tab", id: `${id}-${name}`, "data-tab": name, "aria-controls": `${id}-panel-${name}`, onclick: trying(() =>
      name === "change" || name === "compare" ? go(name, {}) : choose(name)) }, TABS[name])));
    for (const name of Object.keys(TABS)) {
      found[name] = make("div", { class: "found" });
      panels[name] = make("div", { class: "panel", role: "tabpanel", id: `${id}-panel-${name}`, "aria-labelledby": `${id}-${name}`, hidden: true });
    }
    panels.feature.append(feature_form(), found.feature);
    panels.feature.querySelector("[name=feature]").max = one.features - 1;
    panels.clip.append(...pick(), found.clip);
    const sources = state.about.length > 1 ? make("label", { class: "source" }, make("span", {}, "Features of"), make("select", { onchange: trying(async (event) => { state.source = Number(event.target.value); player.stop(); await begin(); }) },
      ...state.about.map((each, n) => make("option", { value: n, selected: n === state.source }, each.source)))) : "";
    root.replaceChildren(make("header", { class: "head" }, make("h2", {}, one.title), make("span", { class: "soft" }, `${one.features.toLocaleString("en")} features, ${one.clips.toLocaleString("en")} clips`), sources, back), tabs, status, ...Object.values(panels));
    await go("feature", { feature: one.start, low: null, high: null, absolute: false, most: 20 });
  };
  for (const kind of ["keydown", "keypress", "keyup"]) root.addEventListener(kind, (event) => event.stopPropagation());  // a notebook has keys of its own
  tabs.addEventListener("keydown", (event) => {
    const all = [...tabs.children], at = all.indexOf(document.activeElement), to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = all[(to + all.length) % all.length];
    next.focus();
    next.click();
  });
  const shade = () => {  // the notebook's own theme, whichever it is: what is behind this tells
    let place = el, colour = [];
    while (place && !((colour = (getComputedStyle(place).backgroundColor.match(/[\d.]+/g) || []).map(Number)).length >= 3 && colour[3] !== 0)) place = place.parentElement || (place.getRootNode().host ?? null);
    const dark = colour.length >= 3 && colour[3] !== 0 ? 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 128 : matchMedia("(prefers-color-scheme: dark)").matches;
    root.classList.toggle("dark", dark);
  };
  const watch = new MutationObserver(shade);
  for (const one of [document.body, document.documentElement]) watch.observe(one, { attributes: true });
  el.append(root);
  requestAnimationFrame(shade);
  trying(async () => { state.about = (await ask({ ask: "about" })).sources; await begin(); })();
  if (!root.contains(status)) root.append(status);
  return () => { player.stop(); seen.disconnect(); watch.disconnect(); leave(); };
};

export default { render: ({ model, el }) => explorer(model, el) };
