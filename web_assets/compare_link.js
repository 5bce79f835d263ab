// A link to the page that compares graphs, where two or more are open. Loaded before the page
// starts.
'use strict';

(() => {
  const initCg = window.initCg;
  window.initCg = (place, slug, ...options) => {
    drawLink(slug);
    return initCg(place, slug, ...options);
  };

  async function drawLink(slug) {
    const {graphs} = await util.getFile('./data/graph-metadata.json');
    const names = graphs.map(graph => graph.slug);
    const next = names[(names.indexOf(slug) + 1) % names.length];
    d3.selectAll('.compare-link').remove();
    if (names.length < 2) return;
    d3.select('.controls-container')
      .append('a')
      .attr('class', 'compare-link')
      .attr('href', `./compare?${new URLSearchParams({a: slug, b: next})}`)
      .attr('title', 'two graphs beside each other')
      .text('Compare');
  }
})();
