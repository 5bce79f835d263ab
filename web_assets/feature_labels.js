// Labels of real models' features from this server, where the user has asked for them, and a link
// to a feature's page on Neuronpedia in its panel. Loaded after circuit-tracer's scripts and before
// the page starts.
'use strict';

(() => {
  const AT_ONCE = 50; // viewer/label_routes.py answers no more
  const MOST = 1000; // features with labels, the strongest of a graph
  const NEURONPEDIA = 'https://www.neuronpedia.org/';

  // The panel's title ends with the feature's page as a link.
  const initList = window.initFeatureExamplesList;
  window.initFeatureExamplesList = options => {
    initList(options);
    options.renderAll.feature.fns.push(() => {
      const {page} = options.visState.feature;
      if (!page?.startsWith(NEURONPEDIA)) return;
      const title = options.sel.select('.quantile-title');
      const [before, after] = title.text().split(page);
      const link = title.text(before).append('a');
      link.attr('href', page).attr('target', '_blank').attr('rel', 'noopener noreferrer');
      link.text(after === undefined ? 'See it on Neuronpedia' : page);
    });
  };

  const initDetail = window.initCgFeatureDetail;
  window.initCgFeatureDetail = async page => {
    await initDetail(page);
    await showLabels(page);
  };

  // Ask for labels, the strongest features first, and show them as they come.
  async function showLabels(page) {
    const folder = page.data.metadata.scan;
    const panel = page.cgSel.select('.feature-detail');
    const kinds = await util.getFile(`${folder}.json`);
    const asks = node => isFeature(node) && kinds[node.feature_type]?.asks;
    const strongest = d3.sort(page.data.nodes.filter(asks), node => node.influence ?? Infinity);
    const numbers = [...new Set(strongest.map(node => node.feature))].slice(0, MOST);
    for (let first = 0; first < numbers.length; first += AT_ONCE) {
      const answer = await ask(`${folder}/labels`, numbers.slice(first, first + AT_ONCE));
      while (isEditing()) await util.sleep(500);
      if (!panel.node()?.isConnected) return; // the page shows another graph by now
      label(page, answer.labels);
      if (answer.problem) return say(panel, answer.problem);
    }
  }

  async function ask(address, numbers) {
    const headers = {'Content-Type': 'application/json'};
    try {
      const answer = await fetch(address, {method: 'POST', headers, body: JSON.stringify(numbers)});
      return await answer.json();
    } catch {
      return {labels: {}, problem: 'the viewer no longer answers'};
    }
  }

  // A label of the graph's own, or of the user's, stays.
  function label({data, renderAll}, labels) {
    for (const feature of data.features) {
      if (!isFeature(feature) || !Object.hasOwn(labels, feature.featureIndex)) continue;
      const [, index] = util.cantorUnpair(feature.featureIndex);
      if (feature.clerp !== `feature ${index}`) continue;
      feature.remoteClerp = labels[feature.featureIndex];
    }
    renderAll.hClerpUpdate();
  }

  // Drawing a panel or a list again would end the writing of a name.
  const isEditing = () => document.activeElement?.matches('input:not([type])');

  function say(panel, problem) {
    panel.append('div').attr('class', 'no-labels').text(`No labels: ${problem}.`);
  }
})();
