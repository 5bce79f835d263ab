// The names at the axes of the link graph, apart from one another: tokens below, predictions
// above. circuit-tracer's page writes each beside its column, however near the next one is.
// Loaded after circuit-tracer's scripts and before the page starts.
'use strict';

(() => {
  const GAP = 17; // between names of the largest size, along the axis
  const LEAST_GAP = 12; // names that are nearer can't be read: every second is shown, or third …
  const FONT_SIZE = 12;
  const PER_GAP = FONT_SIZE / GAP; // a name stands at 45°
  const LEADER = 8; // the height in which a line leads from a column to its name
  const LONGEST_TOKEN = 116; // in pixels; longer ones would reach the subgraph
  const LONGEST_PREDICTION = 14; // in characters; longer ones would reach the list of graphs

  // Places as near to the wanted ones as a gap allows, and not beyond the last of them.
  function spread(wanted, gap) {
    const places = [];
    wanted.forEach((x, i) => places.push(i ? Math.max(x, places[i - 1] + gap) : x));
    let limit = wanted.at(-1);
    for (let i = places.length - 1; i >= 0; i -= 1) {
      places[i] = Math.min(places[i], limit);
      limit = places[i] - gap;
    }
    return places;
  }

  // Move names along their axis: `xs` are their columns, and `width` is what they may take.
  function place(names, xs, width, moveName) {
    if (!xs.length) return;
    const gap = Math.min(GAP, width / xs.length);
    const places = spread(xs, gap);
    const every = Math.ceil(LEAST_GAP / gap);
    const size = Math.min(FONT_SIZE, gap * every * PER_GAP);
    names.each(function (datum, i) {
      const name = d3.select(this);
      name.select('text').attr('font-size', size);
      name.classed('crowded-out', i % every !== 0);
      moveName(name, places[i] - xs[i]);
    });
  }

  // Make names no longer than they may be. All are measured before any is written: the browser lays
  // the whole graph out again for the first measurement after something was written.
  function shorten(texts, longest) {
    const lengths = texts.nodes().map(text => text.getComputedTextLength());
    texts
      .filter((_, i) => lengths[i] > longest)
      .attr('textLength', longest)
      .attr('lengthAdjust', 'spacingAndGlyphs');
  }

  function placeTokens(graph, page, width) {
    const tokens = graph.selectAll('.prompt-token').filter(token => token.hasEmbed);
    const xs = tokens.nodes().map(token => token.transform.baseVal[0].matrix.e);
    place(tokens, xs, width, (token, shift) => {
      const line = token.select('path:nth-of-type(2)');
      line.attr('fill', 'none').attr('d', `${line.attr('d')}l${shift},${LEADER}`);
      token.select('g').attr('transform', `translate(${shift - 12},${8 + LEADER})`);
      token.append('title').text(datum => datum.token);
    });
    shorten(tokens.select('text'), LONGEST_TOKEN);
    page.renderAll.hoveredId.fns['axis-labels'] = () =>
      tokens.classed('is-hovered', token => token.ctx_idx === page.visState.hoveredCtxIdx);
  }

  function placePredictions(graph, width) {
    const predictions = graph
      .selectAll('.axis > g')
      .filter(node => node?.feature_type === 'logit')
      .sort((a, b) => a.pos[0] - b.pos[0]);
    const xs = predictions.data().map(node => node.pos[0]);
    place(predictions, xs, width, (prediction, shift) => {
      const line = prediction.select('path');
      line.attr('fill', 'none').attr('d', `${line.attr('d')}l${shift},${-LEADER}`);
      const name = prediction.select('g');
      const {e, f} = name.node().transform.baseVal[0].matrix;
      name.attr('transform', `translate(${e + shift},${f - LEADER})`);
      const text = name.select('text');
      const words = [...text.text()];
      if (words.length <= LONGEST_PREDICTION) return;
      text.text(`${words.slice(0, LONGEST_PREDICTION - 1).join('')}…`);
      text.append('title').text(words.join(''));
    });
  }

  const {initCgLinkGraph} = window;
  window.initCgLinkGraph = page => {
    initCgLinkGraph(page);
    const graph = page.cgSel.select('.link-graph');
    const width = graph.select('rect').attr('width');
    placeTokens(graph, page, width);
    placePredictions(graph, width);
  };
})();
