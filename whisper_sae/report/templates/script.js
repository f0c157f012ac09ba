// Marks in the contents list the section being read, lets the keyboard reach boxes that scroll sideways, and
// on a phone shows a figure at its full size when it is tapped.
(() => {
  const links = new Map();
  for (const link of document.querySelectorAll(".contents.wide a"))
    links.set(decodeURIComponent(link.hash.slice(1)), link);
  const headings = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);

  const mark = () => {
    const line = window.innerHeight * 0.3;
    let here = null;
    for (const heading of headings) if (heading.getBoundingClientRect().top <= line) here = heading;
    for (const [id, link] of links)
      if (here && id === here.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
  };
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  };

  const reach = () => {
    for (const box of document.querySelectorAll(".scroll, pre, math[display=block]"))
      if (box.scrollWidth > box.clientWidth + 1) box.setAttribute("tabindex", "0");
      else box.removeAttribute("tabindex");
  };

  for (const picture of document.querySelectorAll("figure.plot img"))
    picture.addEventListener("click", () => {
      picture.parentElement.classList.toggle("large");
      reach();
    });

  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", () => { soon(); reach(); });
  mark();
  reach();
})();
