// What the shapes and colours of a graph mean, beside the list of graphs. Loaded after
// complete_graphs.js, which knows the shapes, and before the page starts.
'use strict';

(() => {
  const SHAPES = [
    ['cross layer transcoder', 'MLP feature'],
    ['lorsa', 'attention feature (Lorsa)'],
    ['mlp reconstruction error', 'MLP error'],
    ['lorsa error', 'attention error'],
    ['embedding', 'token, prediction'],
  ];
  // As init-cg.js colours links; a darker one has more of what its target receives.
  const COLOURS = [
    ['adds', d3.interpolatePRGn(0.85)],
    ['takes away', d3.interpolatePRGn(0.15)],
  ];
  const STATES = [
    ['clicked', 'is-clicked'],
    ['pinned', 'is-pinned'],
  ];

  const {initCgLinkGraph} = window;
  window.initCgLinkGraph = page => {
    initCgLinkGraph(page);
    const nav = d3.select('.nav');
    nav.selectAll('.legends').remove();
    const legends = nav.append('div').attr('class', 'legends');
    drawShapes(legends, new Set(page.data.nodes.map(node => node.feature_type)));
    drawColours(legends);
  };

  function drawShapes(legends, kinds) {
    const legend = legends.append('div').attr('class', 'legend');
    for (const [kind, words] of SHAPES) {
      if (!kinds.has(kind)) continue;
      const entry = legend.append('span');
      entry.append('span').attr('class', 'shape').text(utilCg.featureTypeToText(kind));
      entry.append('span').text(` ${words}`);
    }
  }

  function drawColours(legends) {
    const legend = legends
      .append('div')
      .attr('class', 'colour-legend')
      .attr('title', 'A darker link has a larger share of what its target receives');
    for (const [words, colour] of COLOURS) {
      const entry = legend.append('span');
      entry.append('span').attr('class', 'line').style('background', colour);
      entry.append('span').text(` ${words}`);
    }
    for (const [words, state] of STATES) {
      const entry = legend.append('span');
      entry.append('span').attr('class', `shape ${state}`).text('●');
      entry.append('span').text(` ${words}`);
    }
  }
})();
