// Where the nodes of the subgraph are, with room for their names. Loaded before the page starts;
// viewer/page.py has circuit-tracer's script call this before dagre's layout, and behind it.
'use strict';

(() => {
  const SPACE = 20; // between rows, as the script asks of dagre
  const MOST_STRETCH = 2; // more would draw a chain of nodes as a slope
  const FARTHEST = 100_000; // of a place, in thousandths of the width or height
  const ROUNDS = 100; // in which nodes are moved apart; a crowd that needs more has no room

  // Whether a graph's own places, as `sg_pos` has them in its document, are those of these nodes: two
  // numbers each. With others the script would draw nodes nowhere.
  window.arePlacesOf = (nodes, places) => {
    const numbers = (places || '').split(' ');
    const isPlace = text => text !== '' && Math.abs(+text) <= FARTHEST;
    return numbers.length === 2 * nodes.length && numbers.every(isPlace);
  };

  window.makeRoom = (graph, width, height) => {
    const nodes = graph.nodes().map(id => graph.node(id));
    const size = graph.graph();
    breakWideRows(nodes, size, width);
    stretch(nodes, size, width);
    squeeze(nodes, size, height);
    moveApart(nodes, size);
  };

  // Break each row that is wider than the subgraph into rows that fit, one below the other.
  function breakWideRows(nodes, size, width) {
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
    size.height += added;
    size.width = d3.max(nodes, node => node.x + node.width / 2) ?? size.width;
  }

  // Put nodes further apart, or closer, along the width.
  function stretch(nodes, size, width) {
    const wanted = Math.min(width, size.width * MOST_STRETCH);
    for (const node of nodes) node.x = within(node.x, node.width, size.width, wanted);
    size.width = wanted;
  }

  // Put nodes closer where their rows are higher than the subgraph. None reaches out of it.
  function squeeze(nodes, size, height) {
    const wanted = Math.min(height, size.height);
    for (const node of nodes) node.y = within(node.y, node.height, size.height, wanted);
    size.height = wanted;
  }

  // The middle of a box in another space, in which the box lies as far from both ends.
  function within(middle, length, space, otherSpace) {
    const room = space - length;
    const share = room > 0 ? (middle - length / 2) / room : 0.5;
    return length / 2 + Math.max(0, Math.min(1, share)) * Math.max(0, otherSpace - length);
  }

  // Move nodes that cover one another to the sides.
  function moveApart(nodes, size) {
    const limit = (x, {width}) => Math.max(width / 2, Math.min(size.width - width / 2, x));
    for (let round = 0; round < ROUNDS; round += 1) {
      let isDone = true;
      for (const [i, one] of nodes.entries())
        for (const other of nodes.slice(i + 1)) {
          const lacking = (one.width + other.width) / 2 - Math.abs(one.x - other.x);
          if (lacking <= 0.5) continue;
          if (Math.abs(one.y - other.y) >= (one.height + other.height) / 2) continue;
          isDone = false;
          const direction = one.x < other.x ? 1 : -1;
          one.x = limit(one.x - (direction * lacking) / 2, one);
          other.x = limit(other.x + (direction * lacking) / 2, other);
        }
      if (isDone) return;
    }
  }
})();
