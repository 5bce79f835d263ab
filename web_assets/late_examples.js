// The examples of one feature are never seen under the name of another: while a feature's own are
// not there yet, the panel says so. Loaded after circuit-tracer's scripts and before the page starts.
'use strict';

(() => {
  const {initFeatureExamples} = window;
  window.initFeatureExamples = options => {
    const examples = initFeatureExamples(options);
    const say = state => options.containerSel.attr('data-examples', state);
    let drawn; // the feature whose examples are in the panel
    let wanted;
    let missing; // the feature whose examples didn't come

    async function renderFeature(scan, feature) {
      wanted = feature;
      say(drawn === wanted ? null : missing === wanted ? 'missing' : 'late');
      try {
        // Nothing, where this feature is asked for already, and then the first call goes on.
        const found = await examples.renderFeature(scan, feature);
        if (found?.featureIndex !== wanted) return;
        drawn = wanted;
        say(null);
      } catch {
        missing = feature;
        if (feature === wanted) say('missing');
      }
    }

    return {...examples, renderFeature};
  };
})();
