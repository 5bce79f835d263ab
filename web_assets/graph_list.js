// The list of graphs: sorted by its words, no two graphs with the same ones, and each with pins and
// groups of its own. Loaded before the page starts.
'use strict';

(() => {
  const OF_ONE_GRAPH = ['pinnedIds', 'hiddenIds', 'supernodes', 'clerps', 'pruningThreshold'];
  const LISTING = './data/graph-metadata.json';
  const words = graph => [graph.title_prefix, graph.scan, graph.prompt, graph.file].join(' ');

  const {getFile} = util;
  util.getFile = async (path, ...options) => {
    const listing = await getFile(path, ...options);
    if (path !== LISTING) return listing;
    const {graphs} = listing;
    // The page begins with the first file. Its name in the address keeps it the pins' own graph,
    // whichever files are looked at together the next time.
    const slug = util.params.get('slug');
    if (!slug) util.params.set('slug', graphs[0].slug);
    else if (!graphs.some(graph => graph.slug === slug)) sayItIsAbsent(slug);
    const order = new Intl.Collator(undefined, {numeric: true});
    // The server names the files of graphs that have the same words.
    for (const graph of graphs) if (graph.file) graph.prompt += ` — ${graph.file}`;
    return {...listing, graphs: d3.sort(graphs, (a, b) => order.compare(words(a), words(b)))};
  };

  // A saved address may be opened while other graphs are looked at. Its pins are none of theirs.
  function sayItIsAbsent(slug) {
    sayWhatIsWrong(`the address is one of “${slug}”, which is none of the graphs in the list`);
    // Once the list is there. The first of it would look chosen, and could not be chosen.
    setTimeout(() => d3.select('.graph-prompt-select').property('selectedIndex', -1));
  }

  // What the address says of the graphs that were left, by their names. The page would take it
  // over to the graph that is chosen, over the pins and groups of that graph's document.
  const left = new Map();
  const takeOver = event => {
    if (!event.target.matches?.('.graph-prompt-select')) return;
    left.set(util.params.get('slug'), OF_ONE_GRAPH.map(util.params.get));
    const kept = left.get(event.target.value) ?? [];
    OF_ONE_GRAPH.forEach((name, i) => util.params.set(name, kept[i] ?? null));
  };
  document.addEventListener('change', takeOver, true); // before the page's own listener
})();
