// The subgraph's own fields: above it how its nodes are placed, in words, and a button that unpins
// all; in it the names of groups.
// Loaded after circuit-tracer's scripts and before the page starts.
'use strict';

(() => {
  // circuit-tracer's names of two choices, which viewer/page.py has its script look up here.
  const CHOICES = {
    sticky: ['keep places', 'A node stays where you drag it'],
    dagrefy: ['in rows', 'Nodes stand in rows, from tokens below to predictions above'],
  };
  window.subgraphChoice = name => CHOICES[name][0];

  const {initCgSubgraph} = window;
  window.initCgSubgraph = page => {
    initCgSubgraph(page);
    const subgraph = page.cgSel.select('.subgraph');
    const {pinnedIds} = page.data.qParams;
    subgraph.classed('has-own-pins', (pinnedIds ?? []).length > 0);
    const complete = () => {
      for (const [name, [, title]] of Object.entries(CHOICES))
        subgraph.selectAll('.checkbox-container label').filter(d => d.key === name).attr('title', title);
      if (!subgraph.select('.unpin-all').empty() || !page.visState.pinnedIds.length) return;
      subgraph
        .select('.checkbox-container')
        .insert('button', ':first-child')
        .attr('class', 'unpin-all')
        .attr('title', 'Empty the subgraph. A reload brings back what the graph’s file pins')
        .text('Unpin all')
        .on('click', () => unpinAll(page));
    };
    // The subgraph is drawn anew whenever pins, groups or their names change.
    new MutationObserver(complete).observe(subgraph.node(), {childList: true});
    complete();
  };

  // What is typed into the field of a group's name replaces the name.
  document.addEventListener('focusin', event => {
    if (event.target.matches('.temp-edit')) event.target.select();
  });

  function unpinAll({visState, renderAll}) {
    visState.pinnedIds = [];
    visState.subgraph.supernodes = [];
    util.params.set('pinnedIds', null);
    util.params.set('supernodes', null);
    renderAll.hClerpUpdate(); // the members' names begin with those of their groups
    renderAll.pinnedIds();
  }
})();
