// What circuit-tracer's page lacks for complete graphs, in which attention has features (Lorsas)
// too: their shapes, and a list that says why a feature's attention looks where it looks. Loaded
// after circuit-tracer's scripts and feature_names.js, and before the page starts.
'use strict';

(() => {
  const SHAPES = {lorsa: '▲', 'lorsa error': '◇', bias: '+'};
  const MOST_ENTRIES = 100; // of a list; more would keep the browser busy
  const OUTSIDE = 'Not drawn: pruned away, or never collected';
  const LISTS = {
    top_q_marginal_contributors: 'Where it looks from (query)',
    top_k_marginal_contributors: 'Where it looks to (key)',
    pair_wise_contributors: 'Both together',
  };

  const {featureTypeToText, renderFeatureRow} = utilCg;
  const shapeOf = type => (Object.hasOwn(SHAPES, type) ? SHAPES[type] : featureTypeToText(type));
  utilCg.featureTypeToText = shapeOf;
  utilCg.renderFeatureRow = (rows, ...options) => {
    renderFeatureRow(rows, ...options);
    rows.select('.default-icon text').text(node => shapeOf(node.feature_type));
  };

  const initNodeConnections = window.initCgNodeConnections;
  window.initCgNodeConnections = page => {
    initNodeConnections(page);
    const draw = () => drawTracing(page);
    page.renderAll.hClerpUpdate.fns.push(draw);
    page.renderAll.clickedId.fns['qk-tracing'] = draw;
  };

  function drawTracing(page) {
    const panel = page.cgSel.select('.node-connections');
    panel.selectAll('.qk-tracing').remove();
    const clicked = page.data.nodes.find(node => node.nodeId === page.visState.clickedId);
    if (!clicked || !isFeature(clicked)) return;
    panel.select('.header-top-row text').text(nameOf(clicked));
    if (!isLorsa(clicked)) return;
    const traced = clicked.qk_tracing_results;
    if (!traced) return;
    const section = panel.insert('div', '.connections').attr('class', 'qk-tracing');
    const {prompt_tokens} = page.data.metadata;
    const tokenAt = position => `${position} “${prompt_tokens[position]}”`;
    const key = find(page.data, traced.top_k_marginal_contributors[0]?.[0]);
    const places = key ? ` from ${tokenAt(clicked.ctx_idx)} to ${tokenAt(key.ctx_idx)}` : '';
    section
      .append('div')
      .attr('class', 'section-title')
      .text(`Why it looks${places}: what adds most to the attention score`);
    const columns = section.append('div').attr('class', 'qk-lists');
    for (const [name, title] of Object.entries(LISTS)) {
      const column = columns.append('div').attr('class', 'qk-list').attr('data-list', name);
      column.append('div').attr('class', 'qk-title').text(title);
      for (const entry of traced[name].slice(0, MOST_ENTRIES))
        drawEntry(column, page, entry.at(-1), entry.slice(0, -1));
      const more = traced[name].length - MOST_ENTRIES;
      if (more > 0) column.append('div').attr('class', 'qk-more').text(`and ${more} more`);
    }
  }

  function drawEntry(column, page, value, ids) {
    const row = column.append('div').attr('class', 'qk-row');
    const nodes = row.append('div').attr('class', 'qk-nodes');
    ids.forEach(id => drawContributor(nodes, page, id));
    row.append('div').attr('class', 'weight').text(d3.format('+.2f')(value));
  }

  function drawContributor(row, page, id) {
    const {visState, renderAll, data} = page;
    const node = find(data, id);
    const words = node ? `${shapeOf(node.feature_type)} ${nameOf(node)} ${labelOf(node)}` : id;
    if (!Object.hasOwn(data.nodes.idToNode, id))
      return row.append('span').attr('class', 'qk-outside').attr('title', OUTSIDE).text(words);
    return row
      .append('button')
      .attr('title', words)
      .text(words)
      .on('click', event =>
        utilCg.clickFeature(visState, renderAll, node, event.metaKey || event.ctrlKey),
      )
      .on('mouseover', () => utilCg.hoverFeature(visState, renderAll, node))
      .on('mouseout', () => utilCg.unHoverFeature(visState, renderAll));
  }

  // A node that is drawn, or one that only traces name.
  function find(data, id) {
    if (Object.hasOwn(data.nodes.idToNode, id)) return data.nodes.idToNode[id];
    const outside = data.qk_only_nodes ?? {};
    if (Object.hasOwn(outside, id)) return outside[id];
    return data.hiddenNodes.get(id);
  }

  const labelOf = node => node.ppClerp || node.clerp || '';
})();
