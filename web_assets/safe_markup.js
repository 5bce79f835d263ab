// How text comes into the page: as text. Loaded after d3 and before the page starts.
//
// A graph's tokens, labels and names may look like markup. circuit-tracer's scripts give some of
// them to `.html`, as values of a template literal. viewer/page.py puts the tag `markup` before
// each of those, so the template is markup and its values are text. The server's policy lets the
// browser refuse all other markup.
'use strict';

(() => {
  const plain = {createHTML: html => html};
  // Browsers without Trusted Types have no such policies.
  const policy = window.trustedTypes?.createPolicy('viewer', plain) ?? plain;
  const ENTITIES = {'&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;'};
  const escaped = value => String(value).replace(/[&<>"']/g, character => ENTITIES[character]);

  class Markup {
    constructor(html) {
      this.html = policy.createHTML(html);
    }
  }

  window.markup = (template, ...values) =>
    new Markup(template.map((piece, i) => (i ? escaped(values[i - 1]) : '') + piece).join(''));

  // Whatever isn't made by `markup` is text, as in `.html('')`, which empties an element.
  d3.selection.prototype.html = function (content) {
    if (!(content instanceof Markup)) return this.text(content);
    return this.each(function () {
      this.innerHTML = content.html;
    });
  };

  // circuit-tracer joins this one's markup from parts, with text of the graph among them.
  utilCg.showTooltip = (event, node) => {
    const tooltip = d3.select('.tooltip');
    const box = tooltip.node().getBoundingClientRect();
    const below = event.clientY + 20;
    const left = event.clientX - box.width / 2;
    const top = innerHeight > below + box.height ? below : event.clientY - box.height - 20;
    tooltip
      .text('')
      .style('left', `${d3.clamp(20, left, window.innerWidth - box.width - 20)}px`)
      .style('top', `${top}px`)
      .classed('tooltip-hidden', false);
    if (!event.metaKey) return tooltip.text(node.ppClerp || `F#${node.feature}`);
    for (const [name, value] of Object.entries(node)) {
      if (/object|function/.test(typeof value) || utilCg.keysToSkip.has(name)) continue;
      const isFraction = typeof value === 'number' && !Number.isInteger(value);
      const row = tooltip.append('div').text(`${name}: `);
      row.append('b').text(isFraction ? value.toFixed(6) : value);
    }
    return tooltip;
  };
})();
