// What circuit-tracer's page needs besides its own scripts to work from this server.
// Loaded after them and before the page starts.
'use strict';

(() => {
  // The page was written for a fork of d3-jetpack. The published one groups by the text of a key
  // and draws axes with a function of its own.
  d3.nestBy = (items, key) =>
    d3.groups(items, key).map(([value, group]) => Object.assign(group, {key: value}));

  const conventions = d3.conventions;
  d3.conventions = options => {
    const chart = conventions(options);
    chart.drawAxis = svg => d3.drawAxis({...chart, svg});
    return chart;
  };

  const GRAPHS = './graph_data/';
  const prepared = new WeakSet(); // once: `getFile` keeps what it has read
  let drawing = null; // the last call that draws a graph
  const getFile = util.getFile;
  util.getFile = async (path, ...options) => {
    if (!path.startsWith(GRAPHS)) return getFile(path, ...options);
    const asking = drawing;
    const document = await prepare(path);
    // Another graph was chosen meanwhile: the call that asked would draw this one over it.
    if (asking !== drawing) return new Promise(() => {});
    // The page writes the user's pins and groups into these, and another visit begins anew.
    return {...document, qParams: structuredClone(document.qParams)};
  };

  async function prepare(path) {
    const name = path.slice(GRAPHS.length, -'.json'.length);
    const graph = await read(path);
    const kinds = await read(`./features_of/${name}.json`);
    if (prepared.has(graph)) return graph;
    graph.qParams ??= {};
    checkGraph(graph);
    prepared.add(graph);
    return describeFeatures(graph, name, kinds);
  }

  const unread = new Set(); // paths that the next visit asks for again, past every cache

  async function read(path) {
    try {
      const content = await getFile(path, !unread.has(path));
      unread.delete(path);
      return content;
    } catch (error) {
      unread.add(path);
      if (error instanceof TypeError) throw new Error('the viewer has ended; start it again');
      throw new Error('its file is gone, or is no JSON');
    }
  }

  // Of fields that circuit-tracer's page gives no name, for those who hear the page.
  const NAMES = {
    '.graph-prompt-select': 'graph',
    '.slider-container input': 'pruning: the share of influence that the nodes shown have',
  };

  const initCg = window.initCg;
  window.initCg = async (...options) => {
    for (const [field, name] of Object.entries(NAMES)) d3.select(field).attr('aria-label', name);
    const own = (drawing = {});
    try {
      return await initCg(...options);
    } catch (error) {
      return own === drawing && sayWhatIsWrong(error.message);
    }
  };

  // A `scan` that is a path here makes the page ask this server for examples, and no hub.
  function describeFeatures(graph, name, kinds) {
    graph.metadata.scan = `./features_of/${name}`;
    graph.metadata.slug = name; // the page makes names of events of it
    const threshold = graph.metadata.node_threshold ?? Infinity;
    for (const node of graph.nodes) {
      node.cumulative = node.influence; // as the document has it
      // The node with which a graph reaches its threshold lies beyond it, where the page hides it.
      if (node.influence > threshold) node.influence = threshold;
      // The page begins with the first of these clicked.
      node.nodeId = node.node_id;
      node.isLogit = node.feature_type === 'logit';
      // The address that the page links a node to is never the graph's own.
      node.vis_link = `?${new URLSearchParams({slug: name, clickedId: node.node_id})}`;
      describe(node, kinds);
    }
    Object.values(graph.qk_only_nodes ?? {}).forEach(node => describe(node, kinds));
    // Those that the page leaves out below a threshold are named all the same.
    graph.hiddenNodes = new Map(graph.nodes.map(node => [node.node_id, node]));
    return graph;
  }

  // viewer/feature_panels.py has the same number.
  const LORSA_LAYERS = 10_000;

  // Give a feature its label and its page, and each node a `feature` that no other kind of node of
  // its layer and position has: by it the page tells nodes apart, and asks for a feature's panel.
  function describe(node, kinds) {
    node.feature ??= node.feature_type;
    if (!Object.hasOwn(kinds, node.feature_type)) return;
    const {page, labels} = kinds[node.feature_type];
    const [layer, index] = util.cantorUnpair(node.feature);
    if (node.clerp === `F${node.feature}`) node.clerp = ''; // that names no feature
    node.clerp ||= labels[`${layer}_${index}`] ?? `feature ${index}`;
    if (page) node.vis_link = page.replace('{layer}', layer).replace('{index}', index);
    if (node.feature_type !== 'lorsa') return;
    const diagonal = LORSA_LAYERS + layer + index;
    node.feature = (diagonal * (diagonal + 1)) / 2 + index;
  }
})();
