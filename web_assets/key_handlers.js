// Keys that are typed into a text field are the field's alone. circuit-tracer's page listens on
// the whole page: the end of a "g" draws the subgraph anew, and with it ends the renaming of a
// group; Escape lets the clicked node go. Loaded after circuit-tracer's scripts and before the
// page starts.
'use strict';

(() => {
  const NO_TEXT = /^(button|checkbox|color|file|image|radio|range|reset|submit)$/;
  const isTextField = element =>
    element.isContentEditable ||
    element.localName === 'textarea' ||
    element.localName === 'select' ||
    (element.localName === 'input' && !NO_TEXT.test(element.type));
  const typed = new Set(); // keys that went down in a text field and are not up yet

  // This runs before any other listener. The field's own listeners still get the event.
  const keepInField = event =>
    event.target.addEventListener(event.type, inner => inner.stopPropagation(), {once: true});

  window.addEventListener(
    'keydown',
    event => {
      if (!(event.target instanceof HTMLElement) || !isTextField(event.target)) return;
      // A key that was held before the field got the focus repeats here, and belongs to the page.
      if (!event.repeat) typed.add(event.code);
      keepInField(event);
    },
    true,
  );
  window.addEventListener(
    'keyup',
    event => {
      if (typed.delete(event.code)) keepInField(event);
    },
    true,
  );

  // The page keeps a graph's listeners when another graph is chosen: both would answer.
  const {initCgSubgraph} = window;
  let last = null;
  window.initCgSubgraph = page => {
    const body = d3.select('body');
    if (last !== null) body.on(`.grouping${last}`, null);
    last = page.data.metadata.slug;
    initCgSubgraph(page);
  };
})();
