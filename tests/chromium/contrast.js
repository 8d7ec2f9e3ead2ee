// Texts whose contrast with the nearest painted ground is below `least`: [[ratio, where], …] (WCAG 2.2, relative luminance).
((least) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (/^rgb\(/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = "p, dt, dd, td, th, li, small, h1, h2, h3, h1 em, .chip, .yes, .no, .cell span, .lane b, summary span";
  return [...document.querySelectorAll(texts)].filter((e) => e.getClientRects().length).map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${e.tagName}.${e.className}: ${e.textContent.slice(0, 30)}`];
  }).filter(([ratio]) => ratio < least);
})
