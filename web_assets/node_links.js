// The links of a few nodes, which viewer/page.py has circuit-tracer's scripts ask for: they went
// through all links of the graph each time. Loaded before the page starts.
'use strict';

(() => {
  // Into and out of a node that is drawn; none where the id is no such node's.
  window.linksOf = ({nodes}, id) => {
    const node = Object.hasOwn(nodes.idToNode, id) ? nodes.idToNode[id] : null;
    return node ? [...node.sourceLinks, ...node.targetLinks] : [];
  };

  // Into any of these nodes, those of the largest weight last, as the scripts have all links.
  window.linksInto = nodes =>
    d3.sort(nodes.flatMap(node => node.sourceLinks), link => link.absWeight);
})();
