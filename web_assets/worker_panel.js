// A panel beside the subgraph, in which pinned features and groups are turned off, scaled or set on
// a worker: what becomes of the prediction and of the others, or of the text. Loaded after
// worker_questions.js and before the page starts.
'use strict';

(() => {
  // What a row is set to: its name in the menu, and what it says to the worker.
  const CHOICES = {
    same: ['as it is', () => ({})],
    off: ['off', () => ({scale: 0})],
    double: ['× 2', () => ({scale: 2})],
    scale: ['× …', number => ({scale: number})],
    value: ['set to …', number => ({value: number})],
  };
  const HAS_NUMBER = new Set(['scale', 'value']);
  const BUTTONS = {
    intervene: ['Intervene', 'the next token, without generating'],
    steer: ['Steer', 'the text that follows'],
  };
  const MOST_TOKENS = 1000; // to generate; viewer/worker_jobs.py has the same number
  const TOKENS_SHOWN = 8;
  const HOW_TO_CONNECT = [
    'To change what is pinned, start the viewer with a worker that has the graph’s model:',
    'client.py view FILE --worker',
    'asks start.py on this machine; --url URL or --endpoint ID name another worker.',
  ];

  // They last while the page does, whatever is drawn anew.
  const chosen = new Map(); // by row: {choice, number}
  let isOpen = false;
  const outcomes = new Map(); // of the last question about each graph: {action, shares: by row, draw}
  let running = null; // the question that is at work: {slug, words, controller}
  let shown = null; // the graph that is on the page: {slug, draw}
  let nTokens = 10;

  const initSubgraph = window.initCgSubgraph;
  window.initCgSubgraph = page => {
    initSubgraph(page);
    const item = name => d3.select(page.cgSel.select(name).node().parentNode);
    const open = item('.subgraph').append('button').attr('class', 'worker-open');
    const panel = item('.feature-detail').append('div').attr('class', 'worker-panel');
    const toggle = () => {
      isOpen = !isOpen;
      draw();
      if (!isOpen) open.node().focus();
    };
    const draw = () => {
      open.attr('aria-expanded', isOpen);
      panel.classed('is-open', isOpen);
      writeShares(page);
      if (isOpen) drawPanel(panel, page, draw, toggle);
    };
    shown = {slug: page.visState.slug, draw};
    open.text('Intervene and steer').on('click', toggle);
    // The subgraph is drawn anew whenever pins, groups or their names change.
    new MutationObserver(draw).observe(page.cgSel.select('.subgraph').node(), {childList: true});
    draw();
  };

  // A row for each pinned node and each group that has features, as the subgraph shows them.
  function rowsOf({cgSel, data, visState}) {
    const isComplete = data.nodes.some(node => /^lorsa/.test(node.feature_type));
    const canChange = node => isFeature(node) && (isComplete || node.ctx_idx > 0);
    const drawn = cgSel.selectAll('.subgraph .supernode-container').data();
    return d3
      .sort(drawn, ({node}) => -node.streamIdx)
      .map(({node}) => ({
        key: keyOf(visState.slug, node),
        label: node.ppClerp || '',
        isGroup: Boolean(node.isSuperNode),
        features: node.memberNodes.filter(canChange),
        atStart: node.memberNodes.filter(member => isFeature(member) && !canChange(member)).length,
        others: node.memberNodes.filter(member => !isFeature(member)).length,
      }));
  }

  const keyOf = (slug, node) =>
    JSON.stringify([slug, ...d3.sort(node.memberNodes.map(member => member.nodeId))]);

  const asFeature = node => ({
    layer: +node.layer,
    index: indexOfFeature(node),
    position: node.ctx_idx,
    kind: isLorsa(node) ? 'lorsa' : 'transcoder',
    activation: node.activation ?? null,
  });

  function changeOf(row) {
    const {choice, number} = chosen.get(row.key) ?? {choice: 'same'};
    return HAS_NUMBER.has(choice) && !Number.isFinite(number) ? {} : CHOICES[choice][1](number);
  }

  function drawPanel(panel, page, redraw, close) {
    const state = stateOf(panel);
    panel.text('');
    const title = panel.append('div').attr('class', 'section-title').text('Intervene and steer');
    title.append('button').attr('class', 'worker-close').text('Close').on('click', close);
    const rows = rowsOf(page);
    const body = panel.append('div').attr('class', 'worker-body');
    const outcome = outcomes.get(page.visState.slug);
    connectedWorker().then(
      ({name}) => {
        if (name === null) return drawHowToConnect(body);
        drawRows(body, page, rows, redraw);
        drawButtons(body, page, rows, name);
        if (outcome) {
          const place = body.append('div').attr('class', 'worker-outcome');
          outcome.draw(place.classed('is-stale', Boolean(outcome.isStale)));
        }
        restore(panel, state, outcome);
      },
      () => body.append('p').text('The viewer has ended. Start it again and reload the page.'),
    );
  }

  // Where the user is in a panel that is drawn anew: how far its rows are scrolled, and the name of
  // the field or button that has the focus.
  function stateOf(panel) {
    const {activeElement} = document;
    const focused = panel.node().contains(activeElement) && nameOfField(activeElement);
    return {scrolled: panel.select('.worker-rows').node()?.scrollTop ?? 0, focused};
  }

  // A button that asked is off while its question is at work: then the focus is on Cancel, which is
  // gone at the end.
  function restore(panel, {scrolled, focused}, outcome) {
    panel.select('.worker-rows').property('scrollTop', scrolled);
    if (!focused) return;
    const fields = panel.selectAll('button, select, input').filter(':enabled').nodes();
    const named = name => fields.find(field => nameOfField(field) === name);
    const next = named(focused) ?? named('Cancel') ?? named(BUTTONS[outcome?.action]?.[0]);
    next?.focus({preventScroll: true});
  }

  const nameOfField = field => field.getAttribute('aria-label') ?? field.textContent;

  function drawHowToConnect(body) {
    const [before, command, after] = HOW_TO_CONNECT;
    body.append('p').text(before);
    body.append('p').append('code').text(command);
    body.append('p').text(after);
  }

  function drawRows(body, page, rows, redraw) {
    const offered = rows.filter(row => row.features.length);
    const table = body.append('div').attr('class', 'worker-rows');
    for (const row of offered) {
      const line = table.append('div').attr('class', 'worker-row');
      const name = line.append('div').attr('class', 'worker-name');
      name.append('span').text(row.label).attr('title', row.label);
      name.append('span').attr('class', 'worker-place').text(` ${placeOf(row, page.data)}`);
      drawChoice(line, row, page.visState.slug, redraw);
      const share = outcomes.get(page.visState.slug)?.shares?.get(row.key);
      line.append('div').attr('class', 'worker-share-cell').text(inPercent(share));
    }
    const notes = [];
    if (!offered.length) notes.push('Pin features first: Ctrl-click them in the graph above.');
    const others = d3.sum(rows, row => row.others);
    if (others) notes.push(`Tokens, predictions and errors can’t be changed: ${others} pinned.`);
    const atStart = d3.sum(rows, row => row.atStart);
    if (atStart)
      notes.push(`Features at the leading token (position 0) can’t be changed: ${atStart} pinned.`);
    if (offered.length > MOST_ROWS)
      notes.push(`A question has ${MOST_ROWS} rows at most; those that are changed come first.`);
    notes.forEach(note => body.append('p').attr('class', 'worker-note').text(note));
  }

  function placeOf(row, data) {
    if (row.isGroup) return row.features.length === 1 ? '1 feature' : `${row.features.length} features`;
    const [node] = row.features;
    return `${nameOf(node)} at “${data.metadata.prompt_tokens[node.ctx_idx]}”`;
  }

  function drawChoice(line, row, slug, redraw) {
    const now = chosen.get(row.key) ?? {choice: 'same', number: undefined};
    const change = next => {
      chosen.set(row.key, {...now, ...next});
      if (outcomes.has(slug)) outcomes.get(slug).isStale = true;
      redraw();
    };
    const menu = line.append('select').attr('aria-label', `set ${row.label}`);
    for (const [choice, [words]] of Object.entries(CHOICES))
      menu.append('option').attr('value', choice).text(words);
    menu.property('value', now.choice).on('change', event => change({choice: event.target.value}));
    line
      .append('input')
      .attr('type', 'number')
      .attr('step', 'any')
      .attr('aria-label', `number for ${row.label}`)
      .property('value', now.number ?? '')
      .style('visibility', HAS_NUMBER.has(now.choice) ? '' : 'hidden')
      .on('change', event => change({number: event.target.valueAsNumber}))
      .on('keydown keyup', event => event.stopPropagation()); // the page has keys of its own
  }

  function drawButtons(body, page, rows, name) {
    const offered = rows.filter(row => row.features.length);
    const isChanged = offered.some(row => Object.keys(changeOf(row)).length);
    const bar = body.append('div').attr('class', 'worker-buttons');
    const state = body.append('div').attr('class', 'worker-state').attr('role', 'status');
    for (const [action, [words, title]] of Object.entries(BUTTONS))
      bar
        .append('button')
        .text(words)
        .attr('title', title)
        .property('disabled', Boolean(running) || !isChanged)
        .on('click', () => ask(action, page, offered));
    bar
      .append('input')
      .attr('type', 'number')
      .attr('min', 1)
      .attr('max', MOST_TOKENS)
      .attr('aria-label', 'tokens to generate')
      .property('value', nTokens)
      .on('change', ({target}) => {
        nTokens = d3.clamp(1, Math.round(target.valueAsNumber) || 10, MOST_TOKENS);
        target.value = nTokens;
      })
      .on('keydown keyup', event => event.stopPropagation());
    bar.append('span').text('tokens');
    if (running) bar.append('button').text('Cancel').on('click', () => running?.controller.abort());
    const idle = isChanged ? `Worker: ${name}` : `Worker: ${name}. Choose what to change above.`;
    state.text(running ? wordsOfRunning() : idle);
  }

  function wordsOfRunning() {
    return running.slug === shown.slug ? running.words : `about another graph: ${running.words}`;
  }

  async function ask(action, page, rows) {
    if (running) return;
    const slug = page.visState.slug;
    const asked = inOrder(rows.map(row => ({...row, ...changeOf(row)})));
    const question = {
      graph: slug,
      n_tokens: nTokens,
      rows: asked.map(({label, features, scale, value}) => ({
        label: label.toWellFormed?.() ?? label,
        features: features.map(asFeature),
        scale,
        value,
      })),
    };
    const controller = new AbortController();
    running = {slug, words: 'asking …', controller};
    outcomes.delete(slug);
    shown.draw();
    const onState = words => {
      running.words = words;
      d3.selectAll('.worker-state').text(wordsOfRunning());
    };
    try {
      const answer = await askWorker(action, question, onState, controller.signal);
      const shares = new Map((answer.shares ?? []).map((share, i) => [asked[i].key, share]));
      const draw = {intervene: drawPredictions, steer: drawTexts}[action];
      outcomes.set(slug, {action, shares, draw: place => draw(place, answer)});
    } catch (error) {
      const words = error.name === 'AbortError' ? 'Stopped.' : error.message;
      const draw = place => place.append('p').attr('class', 'worker-error').text(words);
      outcomes.set(slug, {action, draw});
    }
    running = null;
    shown.draw(); // by now another graph may be on the page
  }

  // The likeliest next tokens as the model is, and changed.
  function drawPredictions(place, {baseline, changed}) {
    const columns = [baseline, changed].map(
      tokens => new Map(tokens.map(token => [token.token_id, token])),
    );
    const most = id => d3.max(columns, column => column.get(id)?.probability ?? 0);
    const ids = d3.sort(new Set(columns.flatMap(column => [...column.keys()])), id => -most(id));
    const table = place.append('table').attr('class', 'worker-predictions');
    const head = table.append('tr');
    for (const words of ['next token', 'as it is', 'changed']) head.append('th').text(words);
    for (const id of ids.slice(0, TOKENS_SHOWN)) {
      const line = table.append('tr');
      line.append('td').text(columns.find(column => column.has(id)).get(id).token);
      for (const column of columns) line.append('td').text(probabilityOf(column, id));
    }
    place
      .append('p')
      .attr('class', 'worker-note')
      .text('In the rows and in the subgraph: activation, in per cent of what it is unchanged.');
  }

  // A token that isn't among the likeliest has less than the last of those.
  function probabilityOf(column, id) {
    const last = d3.min(column.values(), token => token.probability) ?? 1;
    const probability = column.get(id)?.probability ?? last;
    if (probability < 0.0005) return '< 0.1%';
    return `${column.has(id) ? '' : '< '}${d3.format('.1%')(probability)}`;
  }

  function drawTexts(place, answer) {
    const columns = place.append('div').attr('class', 'worker-texts');
    for (const [title, text] of [['as it is', answer.default], ['steered', answer.steered]]) {
      const column = columns.append('div');
      column.append('div').attr('class', 'worker-title').text(title);
      const words = column.append('div').attr('class', 'worker-text');
      words.append('span').attr('class', 'worker-prompt').text(answer.prompt);
      words.append('span').text(text);
    }
    if (answer.ignored)
      place
        .append('p')
        .attr('class', 'worker-note')
        .text(`At the leading special token nothing can be changed: ${answer.ignored} left alone.`);
  }

  // Null where there was no activation to begin with.
  function inPercent(share) {
    if (share === undefined) return '';
    return share === null ? 'was 0' : `${Math.round(share * 100)}%`;
  }

  // Onto the subgraph's nodes, what is left of their activation.
  function writeShares({cgSel, visState}) {
    cgSel.selectAll('.subgraph .worker-share').remove();
    const outcome = outcomes.get(visState.slug);
    if (!outcome?.shares?.size) return;
    cgSel.selectAll('.subgraph .supernode-container').each(function ({node}) {
      const share = outcome.shares.get(keyOf(visState.slug, node));
      if (share === undefined) return;
      const badge = d3.select(this).select('.member-circles').append('div');
      badge.attr('class', 'worker-share').attr('title', 'activation, of what it is unchanged');
      badge.text(inPercent(share)).classed('is-stale', Boolean(outcome.isStale));
    });
  }
})();
