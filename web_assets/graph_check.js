// What the page needs of a graph: a graph that has something else is not drawn, and the page says
// in a sentence what is wrong. Loaded before the page starts.
'use strict';

(() => {
  // More would keep the browser busy for minutes: the page draws a line for each layer.
  const MOST_LAYERS = 10_000;
  const FEATURES = ['cross layer transcoder', 'lorsa'];

  const isText = value => typeof value === 'string';
  const isNumber = value => typeof value === 'number';
  const isObject = value => typeof value === 'object' && value !== null && !Array.isArray(value);
  const isTexts = value => Array.isArray(value) && value.every(isText);
  const isAbsent = value => value === undefined || value === null;
  const isLayer = value =>
    value === 'E' || (/^\d+$/.test(value) && Number(value) < MOST_LAYERS && !Array.isArray(value));
  const isCount = value => Number.isSafeInteger(value) && value >= 0;
  const orAbsent = check => value => isAbsent(value) || check(value);

  // Each field: what it must be, and a check. A null is as absent.
  const METADATA = Object.entries({
    prompt_tokens: ['a list of texts', isTexts],
    schema_version: ['a number', orAbsent(isNumber)],
    node_threshold: ['a number', orAbsent(isNumber)],
  });
  const Q_PARAMS = Object.entries({
    pinnedIds: ['ids', orAbsent(value => isText(value) || isTexts(value))],
    hiddenIds: ['ids', orAbsent(value => isText(value) || isTexts(value))],
    supernodes: [
      'groups of ids, each after a label',
      orAbsent(value => Array.isArray(value) && value.every(isTexts)),
    ],
    clickedId: ['an id', orAbsent(isText)],
    linkType: ['a text', orAbsent(isText)],
    sg_pos: ['a text', orAbsent(isText)],
    gridsnap: ['a text', orAbsent(isText)],
    clerps: ['pairs of a feature and a label, as JSON', orAbsent(isLabels)],
  });
  const isPart = ids => value =>
    Array.isArray(value) &&
    value.length === ids + 1 &&
    isTexts(value.slice(0, ids)) &&
    isNumber(value[ids]);
  const isParts = ids => value => Array.isArray(value) && value.every(isPart(ids));
  const TRACING = Object.entries({
    pair_wise_contributors: ['triples of two ids and a number', isParts(2)],
    top_q_marginal_contributors: ['pairs of an id and a number', isParts(1)],
    top_k_marginal_contributors: ['pairs of an id and a number', isParts(1)],
  });
  // What a node has that only traces name.
  const OUTSIDE = Object.entries({
    layer: [`E or a number below ${MOST_LAYERS}`, isLayer],
    feature_type: ['a text', isText],
    clerp: ['a text', orAbsent(isText)],
  });
  const NODE = Object.entries({
    node_id: ['a text', isText],
    layer: [`E or a number below ${MOST_LAYERS}`, isLayer],
    feature_type: ['a text', isText],
    clerp: ['a text', orAbsent(isText)],
    influence: ['a number', orAbsent(isNumber)],
    activation: ['a number', orAbsent(isNumber)],
    probe_location_idx: ['a number', orAbsent(isNumber)],
    top_logit_effects: ['a list of texts', orAbsent(isTexts)],
    bottom_logit_effects: ['a list of texts', orAbsent(isTexts)],
    top_embedding_effects: ['a list of texts', orAbsent(isTexts)],
    bottom_embedding_effects: ['a list of texts', orAbsent(isTexts)],
  });
  const LINK = Object.entries({
    source: ['a text', isText],
    target: ['a text', isText],
    weight: ['a number', isNumber],
  });

  function isLabels(value) {
    try {
      return value === '' || JSON.parse(value).every(pair => isTexts(pair) && pair.length === 2);
    } catch {
      return false;
    }
  }

  function refuse(where, wanted, value) {
    const text = JSON.stringify(value) ?? 'absent';
    const shown = text.length > 100 ? `${text.slice(0, 100)}…` : text;
    throw new Error(`${where} must be ${wanted}, and is ${shown}`);
  }

  function check(where, value, fields) {
    if (!isObject(value)) refuse(where, 'an object', value);
    for (const [name, [wanted, isRight]] of fields)
      if (!isRight(value[name])) refuse(`${where}.${name}`, wanted, value[name]);
  }

  function checkPlace(where, node, length) {
    if (!isCount(node.ctx_idx) || node.ctx_idx >= length)
      refuse(`${where}.ctx_idx`, `a position below ${length}`, node.ctx_idx);
    if (FEATURES.includes(node.feature_type) && !isCount(node.feature))
      refuse(`${where}.feature`, 'a number of layer and index', node.feature);
  }

  // Throw an Error with a sentence about the first field that the page can't draw.
  window.checkGraph = graph => {
    check('the file', graph, []);
    check('metadata', graph.metadata, METADATA);
    check('qParams', graph.qParams, Q_PARAMS);
    for (const name of ['nodes', 'links'])
      if (!Array.isArray(graph[name])) refuse(name, 'a list', graph[name]);
    const length = graph.metadata.prompt_tokens.length;
    const ids = new Set();
    graph.nodes.forEach((node, i) => {
      const where = `nodes[${i}]`;
      check(where, node, NODE);
      checkPlace(where, node, length);
      if (!isAbsent(node.qk_tracing_results))
        check(`${where}.qk_tracing_results`, node.qk_tracing_results, TRACING);
      if (node.feature_type === 'logit' && !/\(p=[^)]*\)/.test(node.clerp))
        refuse(`${where}.clerp`, 'a token and its probability, as Output "a" (p=0.5)', node.clerp);
      if (ids.has(node.node_id)) refuse(`${where}.node_id`, "no other node's", node.node_id);
      ids.add(node.node_id);
    });
    if (!graph.nodes.length) refuse('nodes', 'a list with nodes', []);
    if (!isAbsent(graph.qk_only_nodes)) check('qk_only_nodes', graph.qk_only_nodes, []);
    for (const [id, node] of Object.entries(graph.qk_only_nodes ?? {})) {
      const where = `qk_only_nodes[${JSON.stringify(id.slice(0, 100))}]`;
      check(where, node, OUTSIDE);
      checkPlace(where, node, length);
    }
    graph.links.forEach((link, i) => check(`links[${i}]`, link, LINK));
    return graph;
  };

  // Say in the page, as text, why there is no graph.
  window.sayWhatIsWrong = sentence => {
    d3.select('.cg').selectAll('*').remove();
    d3.select('.cg').append('p.no-graph').text(`This graph can't be shown: ${sentence}.`);
  };
})();
