// What a node is, and what it is called in words. Loaded before the scripts that ask for it.
'use strict';

(() => {
  window.isLorsa = node => node.feature_type === 'lorsa';

  // viewer/page.py has circuit-tracer's scripts ask this wherever they ask for a transcoder's.
  window.isFeature = node => node.feature_type === 'cross layer transcoder' || isLorsa(node);

  // A feature's number in its layer.
  window.indexOfFeature = node => util.cantorUnpair(node.feature)[1];

  // Layer and number of a feature; of others the layer, if they have one.
  window.nameOf = node => {
    if (isFeature(node)) return `L${+node.layer}/${indexOfFeature(node)}`;
    return Number.isFinite(+node.layer) ? `L${+node.layer}` : '';
  };
})();
