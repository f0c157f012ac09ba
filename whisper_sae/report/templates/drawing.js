// What the gallery and the explorer draw alike: a card with a spectrogram, what a feature says over it, the words, and
// its player. Nothing here knows where data come from. Whatever comes from data becomes text, never HTML; a sound is
// decoded when it is played.
const SVG = "http://www.w3.org/2000/svg";

const make = (name, given = {}, ...children) => {
  const tag = ["svg", "path", "rect", "line"].includes(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(given))
    if (key.startsWith("on")) tag.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) tag.setAttribute(key, value === true ? "" : value);
  tag.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return tag;
};
const digits = (value, n = 3) =>
  value === undefined || value === null ? "–" : typeof value !== "number" ? String(value)
    : value === 0 ? "0" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(n)));
const percent = (share) => share === undefined ? "–" : share > 0 && share < 1e-4 ? "<\u00a00.01\u00a0%" : `${digits(100 * share, 2)}\u00a0%`;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const floats = (text) => Array.from(new Float32Array(bytes(text).buffer));
const spoken = (phone) => `/${phone}/`;

// Counts of values from low to high, logarithmic; `within` tells which of them are chosen.
const histogram = ({ counts, low = 0, high = 0 }, within = null) => {
  const most = Math.max(1, ...counts);
  const picture = make("svg", { class: "spark", viewBox: `0 0 ${Math.max(1, counts.length)} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
  counts.forEach((count, at) => {
    const height = count ? Math.max(3, 100 * Math.log1p(count) / Math.log1p(most)) : 0;
    const from = low + (high - low) * at / counts.length, to = low + (high - low) * (at + 1) / counts.length;
    const kind = `${(from + to) / 2 < 0 ? "down" : "up"}${within && (to < within[0] || from > within[1]) ? " left-out" : ""}`;
    if (height) picture.append(make("rect", { class: kind, x: at + 0.08, width: 0.84, y: 100 - height, height }));
  });
  return picture;
};
const icon = (playing) => make("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" },
  make("path", { d: playing ? "M3 2h4v12H3zM9 2h4v12H9z" : "M4 1.5v13l10-6.5z" }));

// Seconds from one frame to the next. Frame i of what is shown is centred on i · HOP (speech.CENTRE is 0), so its cell
// reaches half a frame to either side: the first begins half a frame before the picture.
const HOP = 0.02;
const cell = (second) => Math.round(second / HOP);

// What a feature says, (frame,) as shares of its farthest value: a step a frame where it fires, over bands whose opacity
// tells how much; what is below zero hangs from the middle. The picture is `frames` wide.
const curves = (trace, signed, frames = trace.length) => {
  const picture = make("svg", { viewBox: `0.5 0 ${frames} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const ground = signed ? 50 : 100, height = signed ? 48 : 90, most = Math.max(...trace.map(Math.abs)) || 1, levels = 6;
  for (const [kind, side] of [["up", 1], ["down", -1]]) {
    const held = trace.map((value) => Math.max(0, side * value));
    if (!held.some(Boolean)) continue;
    const bands = Array(levels).fill("");
    let path = "";
    held.forEach((value, at) => {
      if (!value) return;
      bands[Math.min(levels - 1, Math.floor(levels * value / most))] += `M${at} 0h1v100h-1z`;
      const y = (ground - side * height * Math.min(1, value)).toFixed(1);
      path += held[at - 1] ? `L${at} ${y}` : `M${at} ${ground}L${at} ${y}`;
      path += held[at + 1] ? `L${at + 1} ${y}` : `L${at + 1} ${y}L${at + 1} ${ground}`;
    });
    bands.forEach((band, level) => band && picture.append(make("path", { class: `band ${kind}`, d: band, opacity: (0.5 * (level + 1) / levels).toFixed(2) })));
    picture.append(make("path", { class: kind, d: path }));
  }
  return picture;
};
const wordAt = (words, moment) => words.findIndex(([start, end]) => start <= moment && moment < end);
const lane = (words, chosen, part) => make("div", { class: "lane", "aria-hidden": "true" }, ...words.flatMap(([start, end, word], at) => {
  const left = Math.max(0, (start - part.first) / part.seconds), right = Math.min(1, (end - part.first) / part.seconds);
  if (right <= 0 || left >= 1) return [];
  const tag = make(at === chosen ? "mark" : "span", {}, word);
  tag.style.left = `${100 * left}%`;
  tag.style.width = `${100 * (right - left)}%`;
  return [tag];
}));
const said = (clip, chosen, middle) => {
  if (!clip.words.length) return clip.text ? make("p", { class: "said untimed", title: clip.text }, clip.text) : "";
  const near = chosen >= 0 ? chosen : Math.max(0, clip.words.findIndex(([, end]) => end > middle));
  const from = Math.max(0, near - 14), to = Math.min(clip.words.length, near + 15), parts = [from ? "… " : ""];
  for (let at = from; at < to; at++) parts.push(at === chosen ? make("mark", {}, clip.words[at][2]) : clip.words[at][2], " ");
  return make("p", { class: "said" }, ...parts, to < clip.words.length ? "…" : "");
};
const outside = (part, clip) => {
  const before = Math.max(0, -part.first) / part.seconds, after = Math.max(0, part.first + part.seconds - clip.seconds) / part.seconds;
  return [["left", before], ["right", after]].filter(([, share]) => share > 0).map(([side, share]) => {
    const shade = make("span", { class: "outside" });
    shade.style[side] = 0;
    shade.style.width = `${100 * Math.min(1, share)}%`;
    return shade;
  });
};
const described = (trace, part, at, value, word) => {
  const fires = trace.flatMap((one, frame) => one ? [frame] : []);
  const from = (edge) => `${(edge * HOP + part.first - at).toFixed(2)} s`;
  const when = fires.length ? `It fires on ${fires.length} of ${trace.length} frames, from ${from(fires[0] - 0.5)} to ${from(fires[fires.length - 1] + 0.5)} around its peak` : "It does not fire";
  return `Spectrogram of ${part.seconds.toFixed(1)} seconds with the activation over it. ${when}; ${digits(value)} there${word ? `, in “${word}”` : ""}.`;
};
const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(2).padStart(5, "0")}`;

// A card. `part` is what is shown of a `clip`: first and seconds, and, as soon as they are there, picture and sound
// (base64); `bring()` may bring them. `trace` are values, drawn as shares of `far`; `at` is the moment of the `value`.
const card = ({ part, clip, trace, far, signed = false, kind, value, at, name, foot = [], from = null, bring = null, precise = false }, player) => {
  const image = make("img", { alt: "", decoding: "async" });
  const over = make("div", { class: "over" }), peak = make("span", { class: "peak" }), cursor = make("span", { class: "cursor", hidden: true });
  const stage = make("div", { class: "stage", role: "img" }, image, ...outside(part, clip), over, peak, cursor);
  const seek = make("input", { type: "range", min: 0, max: part.seconds, step: HOP, value: 0, "aria-label": `Position in ${name}, seconds` });
  const button = make("button", { type: "button", "aria-label": `Play ${name}` }, icon(false));
  const moment = make("span", { class: "moment" }, precise ? clock(Math.max(0, at - part.first)) : `${at.toFixed(2)} s`);
  const now = precise ? make("p", { class: "now" }) : "";
  const lanes = make("div"), words = make("div"), title = make("b", {}, kind), shown = make("span", { class: "value" }, digits(value));
  const tag = make("li", { class: "example" }, make("header", {}, title, shown), stage, lanes,
    make("div", { class: "player" }, button, seek, moment), now, words,
    make("p", { class: "from" }, ...(from || [[clip.name, clip.speaker && `speaker ${clip.speaker}`].filter(Boolean).join(" · ")])), ...foot);
  const it = { part, card: tag, button, seek, cursor, name, at, bring, trace: [] };
  image.style.transform = `translateX(${-0.5 / part.seconds}%)`;  // a column, too, is centred on its 10 ms, not after
  it.fill = () => { if (part.picture && !image.src) image.src = `data:image/webp;base64,${part.picture}`; };
  it.told = (second) => {
    if (!precise) return;
    const here = it.trace[Math.min(it.trace.length - 1, cell(second))] || 0;
    moment.textContent = clock(second);
    now.textContent = it.trace.length ? `now ${here.toFixed(4)} · max ${Math.max(...it.trace).toFixed(4)} · min ${Math.min(...it.trace).toFixed(4)}` : "";
  };
  it.show = (values, { far, signed, kind = title.textContent, value, at }) => {  // another feature over the same sound
    it.trace = values;
    it.at = at;
    title.textContent = kind;
    shown.textContent = digits(value);
    over.replaceChildren(curves(values.map((one) => one / (far || 1)), signed, part.seconds / HOP));
    peak.style.left = `${100 * (at - part.first) / part.seconds}%`;
    const word = wordAt(clip.words, at);
    lanes.replaceChildren(clip.words.length ? lane(clip.words, word, part) : "");
    words.replaceChildren(said(clip, word, at));
    stage.setAttribute("aria-label", described(values, part, at, value, (clip.words[word] || [])[2]));
    it.told(Number(seek.value));
  };
  button.addEventListener("click", () => player.toggle(it));
  seek.addEventListener("input", () => player.move(it, Number(seek.value), false));
  stage.addEventListener("click", (event) => {
    const box = stage.getBoundingClientRect();
    player.move(it, part.seconds * (event.clientX - box.left) / box.width, true);
  });
  it.show(trace, { far, signed, value, at });
  it.fill();
  return it;
};

// The features of a clip, a row each: its number leads to its clips, and its track shows it over the card of the clip.
// `found` are what `it.show` takes, with feature, values, share, word and, as nodes, label and extra.
const tops = (found, it, leap) => {
  const list = make("ol", { class: "tops" });
  list.append(...found.map((row, n) => {
    const look = () => { it.show(row.values, row); for (const other of list.children) other.classList.toggle("chosen", other === tag); };
    const line = make("div", { class: "mini" }, curves(row.values.map((one) => one / (row.far || 1)), row.signed, it.part.seconds / HOP));
    const tag = make("li", { class: n ? "peak-row" : "peak-row chosen" },
      make("button", { type: "button", class: "leap", onclick: () => leap(row.feature), "aria-label": `The clips of feature ${row.feature}`, title: "Its clips" }, make("b", {}, String(row.feature))),
      make("button", { type: "button", class: "look", onclick: look, "aria-label": `Show feature ${row.feature} over the spectrogram: peak ${digits(row.value)} at ${row.at.toFixed(2)} s${row.word ? `, in “${row.word}”` : ""}` }, line),
      make("span", { class: "number" }, digits(row.value)), make("span", { class: "number soft", title: "of its highest value in the corpus" }, percent(row.share)),
      make("span", { class: "about" }, row.label || "", row.word ? make("span", { class: "soft" }, ` “${row.word}”`) : ""), row.extra || "");
    return tag;
  }));
  return list;
};

// One sound at a time. `listening` has slow, loop and near; `heed` is called when one of them changes.
const playing = (listening = {}) => {
  const sound = new Audio();
  let now = null, address = "";
  const load = async (it) => {
    if (now === it) return true;
    stop();
    now = it;
    if (!it.part.sound && it.bring) await it.bring();
    if (now !== it || !it.part.sound) return false;
    URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([bytes(it.part.sound)], { type: it.part.type || "audio/ogg; codecs=opus" }));
    sound.src = address;
    heed();
    return true;
  };
  const heed = () => { sound.playbackRate = listening.slow ? 0.5 : 1; sound.loop = Boolean(listening.loop); };
  const toggle = async (it) => {
    if (now === it && !sound.paused) sound.pause();
    else if (await load(it)) play();
  };
  const play = () => sound.play().catch((error) => { if (now && error.name === "NotSupportedError") complain(now); });
  const move = async (it, second, on) => {
    const fresh = now !== it, go = () => { sound.currentTime = Math.max(0, Math.min(it.part.seconds - HOP, second)); draw(); };
    if (!await load(it)) return;
    if (fresh) sound.addEventListener("loadedmetadata", go, { once: true });
    else go();
    if (on) play();
  };
  const complain = (it) => {
    if (!it.card.querySelector(".trouble")) it.card.append(make("p", { class: "trouble", role: "alert" }, "This browser cannot play this sound."));
  };
  const shape = () => {
    if (!now) return;
    const on = !sound.paused && !sound.ended;
    now.card.classList.toggle("playing", on);
    now.button.replaceChildren(icon(on));
    now.button.setAttribute("aria-label", `${on ? "Pause" : "Play"} ${now.name}`);
  };
  const draw = () => {
    if (!now) return;
    const share = sound.currentTime / now.part.seconds;
    now.cursor.hidden = false;
    now.cursor.style.left = `${100 * Math.min(1, share)}%`;
    now.seek.value = sound.currentTime;
    now.told(sound.currentTime);
    sound.volume = listening.near && Math.abs(sound.currentTime - (now.at - now.part.first)) > 0.25 ? 0.2 : 1;
    if (!sound.paused) requestAnimationFrame(draw);
  };
  const stop = () => {
    sound.pause();
    if (now) { shape(); now.cursor.hidden = true; }
    now = null;
  };
  for (const event of ["play", "pause", "ended"]) sound.addEventListener(event, shape);
  for (const event of ["play", "seeked", "timeupdate"]) sound.addEventListener(event, draw);
  sound.addEventListener("error", () => now && now.part.sound && complain(now));
  return { toggle, move, stop, heed };
};
