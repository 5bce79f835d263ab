// Which features two graphs of one model share, and how strong each is in each. The numbers are
// those of remote/offline/compare.py. Loaded before web_assets/compare.js.
'use strict';

(() => {
  // A feature of the same kind, layer and index is the same feature, at whatever token.
  window.featureKey = node =>
    isFeature(node) ? `${node.feature_type}:${node.layer}:${indexOfFeature(node)}` : null;

  // Each feature of either graph, those of most influence first: `key`, `name`, `label`, and
  // `sides`, which has for each graph its places, influence and activation, or null.
  window.comparedFeatures = graphs => {
    const found = graphs.map(featuresOf);
    const keys = new Set(found.flatMap(features => [...features.keys()]));
    const compared = [...keys].map(key => {
      const sides = found.map(features => features.get(key) ?? null);
      const present = sides.filter(side => side);
      return {
        key,
        sides,
        name: present[0].name,
        label: present.map(side => side.label).find(label => label) ?? '',
        influence: d3.sum(present, side => side.influence) / graphs.length,
      };
    });
    return d3.sort(compared, feature => -feature.influence);
  };

  // By key: influence is the sum over the tokens where a feature is, activation the largest.
  function featuresOf(graph) {
    const shares = sharesOf(graph.nodes);
    const features = new Map();
    for (const node of graph.nodes) {
      const key = featureKey(node);
      if (key === null) continue;
      if (!features.has(key))
        features.set(key, {
          name: nameOf(node),
          kind: node.feature_type,
          label: node.clerp,
          positions: [],
          influence: 0,
          activation: -Infinity,
        });
      const feature = features.get(key);
      feature.positions.push(node.ctx_idx);
      feature.influence += shares.get(node);
      feature.activation = Math.max(feature.activation, node.activation ?? 0);
    }
    for (const feature of features.values()) feature.positions.sort(d3.ascending);
    return features;
  }

  // A node's own share of the influence. The document's is cumulative: of it and of all that are
  // stronger, so the share is what it adds to the next stronger one.
  function sharesOf(nodes) {
    const shares = new Map(nodes.map(node => [node, 0]));
    const known = nodes.filter(node => typeof node.cumulative === 'number');
    let before = 0;
    for (const node of d3.sort(known, node => node.cumulative)) {
      shares.set(node, node.cumulative - before);
      before = node.cumulative;
    }
    return shares;
  }
})();
