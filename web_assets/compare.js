// The page of two graphs beside each other: what both have, and what only one has. A feature that
// is pointed at or clicked in one is marked in the other.
'use strict';

(() => {
  const SIDES = ['A', 'B'];
  const MOST_ROWS = 500; // of a list; more would keep the browser busy
  const RESIZED_MS = 200;
  const LISTS = [
    ['both', 'In both', feature => feature.sides[0] && feature.sides[1]],
    ['a', 'Only in A', feature => !feature.sides[1]],
    ['b', 'Only in B', feature => !feature.sides[0]],
  ];
  const EVENTS = ['hoveredId', 'clickedId', 'pinnedIds', 'hiddenIds', 'linkType', 'hClerpUpdate'];

  let sides = []; // of each graph: {data, visState, renderAll, cgSel, shapes: by feature's key}
  let features = [];
  let lines = new Map(); // of the list that is shown, by feature's key
  let shownList = 'both';
  let selected = null; // the clicked feature's key
  let isFollowing = false; // whether a click is only the answer to one in the other graph

  start();

  async function start() {
    const {graphs} = await util.getFile('./data/graph-metadata.json', false);
    const names = graphs.map(graph => graph.slug);
    const asked = ['a', 'b'].map(name => util.params.get(name));
    const first = names.includes(asked[0]) ? asked[0] : names[0];
    const others = names.filter(name => name !== first);
    const second = names.includes(asked[1]) ? asked[1] : (others[0] ?? first);
    drawNav(graphs, [first, second]);
    const absent = asked.find(name => name !== null && !names.includes(name));
    if (absent !== undefined)
      return say(`The address is one of “${absent}”, which is none of the graphs in the lists`);
    try {
      await show(graphs, [first, second]);
    } catch (error) {
      say(error.message ?? String(error));
    }
  }

  function say(sentence) {
    d3.select('.sides').text('').append('p').attr('class', 'no-graph').text(`${sentence}.`);
    d3.select('.compared').text('');
  }

  function drawNav(graphs, names) {
    const nav = d3.select('.nav').text('');
    names.forEach((name, side) => {
      const choice = nav.append('label').attr('class', 'choice');
      choice.append('b').text(SIDES[side]);
      const menu = choice.append('select').attr('class', 'graph-choice');
      for (const graph of graphs)
        menu.append('option').attr('value', graph.slug).text(wordsOf(graph));
      menu.property('value', name).on('change', event => {
        const [a, b] = names.map((name, i) => (i === side ? event.target.value : name));
        location.search = new URLSearchParams({a, b});
      });
      const address = `./?${new URLSearchParams({slug: name})}`;
      choice.append('a').attr('href', address).attr('title', 'this graph alone').text('open');
    });
  }

  // The server names the files of graphs that have the same words.
  function wordsOf({title_prefix, scan, prompt, file}) {
    const model = title_prefix ? `${title_prefix} ${scan}` : scan;
    return [model, prompt, file].filter(Boolean).join(' — ');
  }

  async function show(graphs, names) {
    const documents = [];
    for (const name of names) documents.push(await util.getFile(`./graph_data/${name}.json`));
    const [one, other] = names.map((name, i) => modelOf(graphs, name, documents[i]));
    if (one !== other)
      throw new Error(`A is of ${one}, B of ${other}: a feature of one is none of the other’s`);
    features = comparedFeatures(documents);
    // Each side writes into its nodes and links.
    if (names[0] === names[1]) documents[1] = structuredClone(documents[1]);
    sides = await Promise.all(documents.map((graph, i) => sideOf(graph, names[i])));
    drawSides();
    drawLists();
    let timer;
    window.addEventListener('resize', () => {
      clearTimeout(timer);
      timer = setTimeout(drawSides, RESIZED_MS);
    });
  }

  function modelOf(graphs, name, graph) {
    const {scan} = graphs.find(listed => listed.slug === name);
    const set = graph.metadata.info?.transcoder_set;
    return JSON.stringify(scan) + (typeof set === 'string' ? ` with ${JSON.stringify(set)}` : '');
  }

  // What circuit-tracer's link graph needs to draw one of the graphs.
  async function sideOf(graph, slug) {
    const visState = {
      slug,
      pinnedIds: [],
      hiddenIds: [],
      hoveredId: null,
      clickedId: null,
      linkType: 'either',
      isHideLayer: false,
      graphSchemaVersion: 0,
    };
    const labels = utilCg.getHClerpsFromLocalStorage(graph.metadata.scan);
    const data = await utilCg.formatData(graph, visState);
    for (const node of data.nodes)
      node.ppClerp = labels.get(`🤖${node.layer}_${node.feature}`) || node.clerp;
    colourLinks(data);
    return {data, visState, slug};
  }

  function drawSides() {
    const place = d3.select('.sides').text('');
    sides.forEach((side, i) => {
      side.cgSel = place.append('div').attr('class', 'cg side').attr('data-side', SIDES[i]);
      side.cgSel.append('div').attr('class', 'link-graph');
    });
    sides.forEach((side, i) => {
      side.renderAll = util.initRenderAll(EVENTS);
      side.renderAll.clickedId.fns.push(() => setClickedLinks(side));
      initCgLinkGraph(side);
      const [here, there] = [side, sides[1 - i]];
      side.renderAll.hoveredId.fns.push(() => pointAt(hoveredKey(here)));
      side.renderAll.clickedId.fns.push(() => follow(here, there));
    });
    d3.selectAll('.nav .legend').remove();
    drawLegend();
    const keys = new Map(features.map(feature => [feature.key, feature]));
    for (const side of sides) {
      const features = side.cgSel.selectAll('text.node').filter(isFeature);
      const isShared = node => keys.get(featureKey(node)).sides.every(side => side);
      features.classed('in-both', isShared).classed('in-one', node => !isShared(node));
      side.shapes = d3.group(features.nodes(), shape => featureKey(d3.select(shape).datum()));
    }
    isFollowing = true; // both stay as they are
    for (const {renderAll} of sides) {
      renderAll.clickedId();
      renderAll.hoveredId();
    }
    isFollowing = false;
    markSelected();
  }

  const hasKind = kind => sides.some(({data}) => data.nodes.some(node => kind(node.feature_type)));

  function drawLegend() {
    const legend = d3.select('.nav').append('div').attr('class', 'legend');
    const entries = [
      ['in-both', '●', 'feature in both'],
      ['in-one', '●', 'only here'],
      ['', '■', 'token, prediction'],
    ];
    if (hasKind(type => type.endsWith('error'))) entries.push(['', '◆', 'error']);
    if (hasKind(type => type === 'lorsa error')) entries.push(['', '◇', 'attention error']);
    if (hasKind(type => type === 'lorsa')) entries.push(['', '▲', 'attention feature (Lorsa)']);
    for (const [name, shape, words] of entries) {
      const entry = legend.append('span');
      entry.append('span').attr('class', `shape ${name}`).text(shape);
      entry.append('span').text(` ${words}`);
    }
  }

  // As circuit-tracer's page colours them (attribution_graph/init-cg.js).
  function colourLinks(data) {
    const width = d3.scaleSqrt().domain([0, 1]).range([0.00001, 3]);
    const part = d3.scaleLinear().domain([-0.4, 0, 0, 0.4]).range([0, 0.499, 0.501, 1]).clamp(true);
    for (const link of data.links) {
      link.strokeWidth = width(Math.abs(link.pctInput));
      link.color = link.pctInputColor = d3.interpolatePRGn(part(link.pctInput));
    }
  }

  function setClickedLinks({data, visState}) {
    for (const node of data.nodes) node.tmpClickedLink = null;
    const clicked = data.nodes.find(node => node.nodeId === visState.clickedId);
    if (!clicked) return;
    for (const link of [...clicked.sourceLinks, ...clicked.targetLinks]) {
      link.tmpColor = link.pctInputColor;
      (link.sourceNode === clicked ? link.targetNode : link.sourceNode).tmpClickedLink = link;
    }
  }

  function hoveredKey({data, visState}) {
    const node = data.nodes.find(node => node.featureId === visState.hoveredId);
    return node ? featureKey(node) : null;
  }

  // Ring a feature wherever it is in both graphs, and its line in the list.
  const pointAt = key => mark('pointed', key);

  // Give this class to a feature's shapes in both graphs and to its line, and to no others.
  function mark(name, key) {
    for (const marked of document.querySelectorAll(`text.${name}, tr.${name}`))
      marked.classList.remove(name);
    for (const {shapes} of sides)
      for (const shape of shapes.get(key) ?? []) shape.classList.add(name);
    lines.get(key)?.classList.add(name);
  }

  // A click in one graph clicks the same feature in the other, at the token that is nearest in
  // number; a feature that isn't there, or no feature, leaves nothing clicked there.
  function follow(here, there) {
    if (isFollowing || !there.renderAll) return;
    const node = here.data.nodes.find(node => node.nodeId === here.visState.clickedId);
    selected = node ? featureKey(node) : null;
    click(there, selected, node?.ctx_idx);
    markSelected();
  }

  function click(side, key, position = Infinity) {
    const {data, visState, renderAll} = side;
    const found = data.nodes.filter(node => key !== null && featureKey(node) === key);
    const distance = node => Math.abs(node.ctx_idx - Math.min(position, Number.MAX_SAFE_INTEGER));
    const nodeId = d3.least(found, distance)?.nodeId ?? null;
    if (visState.clickedId === nodeId) return;
    visState.clickedId = nodeId;
    isFollowing = true;
    try {
      renderAll.clickedId();
    } finally {
      isFollowing = false;
    }
  }

  function markSelected() {
    const feature = features.find(feature => feature.key === selected);
    const list = feature && LISTS.find(([, , isIn]) => isIn(feature))[0];
    if (list && list !== shownList) {
      shownList = list;
      drawLists();
    }
    mark('selected', selected);
    lines.get(selected)?.scrollIntoView({block: 'nearest'});
  }

  function drawLists() {
    const place = d3.select('.compared').text('');
    const tabs = place.append('div').attr('class', 'tabs').attr('role', 'tablist');
    for (const [name, words, isIn] of LISTS)
      tabs
        .append('button')
        .attr('role', 'tab')
        .attr('aria-selected', name === shownList)
        .text(`${words}: ${features.filter(isIn).length}`)
        .on('click', () => {
          shownList = name;
          drawLists();
          d3.select('.tabs [aria-selected=true]').node().focus();
        });
    const listed = features.filter(LISTS.find(([name]) => name === shownList)[2]);
    const table = place.append('div').attr('class', 'list').append('table');
    const present = [0, 1].filter(i => shownList === 'both' || shownList === 'ab'[i]);
    const head = table.append('thead').append('tr');
    const columns = present.flatMap(i =>
      ['influence', 'activation', 'at'].map(words => `${SIDES[i]} ${words}`),
    );
    for (const words of ['feature', 'what it does', ...columns])
      head.append('th').text(words).classed('places', words.endsWith(' at'));
    const body = table.append('tbody');
    lines = new Map(
      listed
        .slice(0, MOST_ROWS)
        .map(feature => [feature.key, drawLine(body, feature, present).node()]),
    );
    mark('selected', selected);
    const more = listed.length - MOST_ROWS;
    if (more > 0) place.append('p').attr('class', 'more').text(`and ${more} weaker ones`);
  }

  function drawLine(body, feature, present) {
    const line = body.append('tr').datum(feature).attr('tabindex', 0);
    line.append('td').text(feature.name + (/^lorsa/.test(feature.key) ? ' (Lorsa)' : ''));
    line.append('td').attr('class', 'label').text(feature.label).attr('title', feature.label);
    for (const i of present) {
      const side = feature.sides[i];
      line.append('td').text(d3.format('.2%')(side.influence));
      line.append('td').text(side.activation.toFixed(2));
      line.append('td').attr('class', 'places').text(placesOf(side, i));
    }
    return line
      .on('mouseenter focus', () => pointAt(feature.key))
      .on('mouseleave blur', () => pointAt(null))
      .on('click', () => select(feature))
      .on('keydown', event => {
        if (event.key === 'Enter') select(feature);
      });
  }

  function select(feature) {
    selected = selected === feature.key ? null : feature.key;
    for (const side of sides) click(side, selected);
    markSelected();
  }

  function placesOf({positions}, side) {
    const tokens = sides[side].data.metadata.prompt_tokens;
    return positions.map(position => `${position} “${tokens[position].trim()}”`).join(', ');
  }
})();
