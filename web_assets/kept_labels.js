// Labels that the user gave are kept in the page's address. circuit-tracer's page keeps them in
// the browser's storage too, and writes the address from there alone: a saved address that was
// opened elsewhere would lose its labels, and a reloaded page those of the document. Loaded after
// circuit-tracer's scripts and before the page starts.
'use strict';

(() => {
  const {hClerpUpdateFn} = utilCg;
  utilCg.hClerpUpdateFn = (change, data) => {
    const {scan} = data.metadata;
    const stored = utilCg.getHClerpsFromLocalStorage(scan);
    const address = util.params.get('clerps');
    const given = new Map(JSON.parse(address || data.qParams.clerps || '[]'));
    for (const feature of data.features) {
      const label = given.get(`${feature.featureIndex}`);
      // The address is what the user opened; the document is older than what they wrote since.
      if (label && (address || !stored.has(keyOf(feature)))) stored.set(keyOf(feature), label);
    }
    utilCg.saveHClerpsToLocalStorage(stored, scan);
    hClerpUpdateFn(change, data);
  };

  // The name of a feature in the storage, as util-cg.js makes it.
  const keyOf = ({featureId}) => `🤖${featureId.split('_').slice(0, 2).join('_')}`;
})();
