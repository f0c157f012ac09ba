// Uses a gallery as a reader would, and says what it saw; test_gallery.py knows what that should be.
(async () => {
const $ = (one) => document.querySelector(one), all = (many) => [...document.querySelectorAll(many)], told = {};
const rows = () => all(".rows tbody tr[data-feature]").map((row) => Number(row.dataset.feature));
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const type = (name, text) => { const field = $(`[name=${name}]`); field.value = text; field.dispatchEvent(new Event("input", { bubbles: true })); };
told.first = rows(); told.count = $(".count").textContent;
$(".rows th[data-key=rate] button").click(); told.byRate = rows();
$(".rows th[data-key=rate] button").click(); told.rising = rows(); told.sorted = $("[aria-sort]").getAttribute("aria-sort");
$(".rows th[data-key=f1] button").click(); told.byF1 = rows();
type("text", "LIKELY"); told.text = rows(); type("text", "");
type("phone", "ʃ"); told.phone = rows(); type("phone", "");
type("flag", "-"); told.flag = rows(); type("flag", "");
type("by", "is sound"); told.by = rows(); type("by", "");
type("f1", "0.6"); told.f1 = rows(); type("f1", "");
type("most", "5"); told.most = rows(); told.left = $(".count").textContent; type("most", "");
type("text", "nothing like it"); told.none = $(".rows tbody").textContent; type("text", "");
all(".rows tbody a").find((link) => link.tabIndex === 0).focus(); press("Home");
told.home = [$(".which").textContent, all(".rows a[tabindex='0']").length]; press("ArrowDown");
told.down = [document.activeElement.getAttribute("href"), $(".chosen").dataset.feature, $("[aria-current]").getAttribute("href")];
document.activeElement.click(); told.entered = document.activeElement.className;
press("Escape"); told.left_again = document.activeElement.getAttribute("href");
all(".rows tbody tr").find((row) => row.dataset.feature === "11").click();
told.heading = $(".detail h2").textContent; told.marked = all(".said mark").map((mark) => mark.textContent);
told.outside = all(".outside").map((part) => part.style.width);
all(".rows tbody tr").find((row) => row.dataset.feature === "3").click();
told.curves = all(".stage path:not(.band)").map((path) => path.getAttribute("class"));
told.stage = $(".stage").getAttribute("aria-label"); told.said = $(".said").innerHTML;
const parts = JSON.parse($("#data").textContent).excerpts, listen = new OfflineAudioContext(1, 16000, 16000);
told.decoded = [];
for (const part of parts) {
  const sound = await listen.decodeAudioData(Uint8Array.from(atob(part.sound), (one) => one.charCodeAt(0)).buffer);
  told.decoded.push([sound.duration, Math.max(...sound.getChannelData(0).map(Math.abs))]);
}
told.picture = await new Promise((done) => { const image = new Image(); image.onload = () => done([image.width, image.height]);
  image.onerror = () => done("no picture"); image.src = $(".stage img").src; });
$(".player button").click();
for (let n = 0; n < 200 && !(Number($(".player input").value) > 0.1); n++) await new Promise((done) => setTimeout(done, 30));
told.moved = Number($(".player input").value) > 0.1;
told.playing = [all(".example.playing").length, $(".player button").getAttribute("aria-label"), $(".trouble")?.textContent || ""];
told.wide = document.documentElement.scrollWidth <= innerWidth; told.title = document.title;
return told;
})()
