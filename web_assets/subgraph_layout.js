// Room for the names in the subgraph. Loaded before the page starts; viewer/page.py has
// circuit-tracer's script call this between dagre's layout and the drawing.
'use strict';

(() => {
  const SPACE = 20; // between rows, as the script asks of dagre

  // Break each row that is wider than the subgraph into rows that fit, one below the other.
  window.breakWideRows = (graph, width) => {
    const nodes = graph.nodes().map(id => graph.node(id));
    const rows = d3.sort(d3.groups(nodes, node => Math.round(node.y)), ([y]) => y);
    let added = 0; // to the height, so far
    for (const [, row] of rows) {
      const sorted = d3.sort(row, node => node.x);
      const wanted = d3.sum(row, node => node.width + SPACE);
      const count = Math.min(row.length, Math.ceil(wanted / Math.max(width, 1)));
      const height = d3.max(row, node => node.height) + SPACE;
      // A row begins a little to the right of the one above, so that links pass between names.
      const column = width / (Math.ceil(row.length / count) + 0.5);
      sorted.forEach((node, i) => {
        node.y += added + (i % count) * height;
        if (count > 1) node.x = (Math.floor(i / count) + 0.5 + (i % count) / count / 2) * column;
      });
      added += (count - 1) * height;
    }
    const size = graph.graph();
    size.height += added;
    size.width = d3.max(nodes, node => node.x + node.width / 2) ?? size.width;
  };
})();
