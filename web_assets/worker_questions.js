// Questions to the worker that is connected, through this page's own server (viewer/worker_door.py).
// Loaded before the page starts.
'use strict';

(() => {
  window.MOST_ROWS = 50; // of a question: schemas.MAX_GROUPS
  const ENDED = 'the viewer has ended; start it again and reload the page';
  let connected;

  // Its name and the token with which this page may ask, both null without a worker.
  window.connectedWorker = () =>
    (connected ??= fetch('./worker.json').then(response => response.json()));

  // Ask, call `onState` with words on how far the answer is, and give the answer. Throws an Error
  // with a sentence. Aborting the signal stops the worker's job.
  window.askWorker = async (action, question, onState, signal) => {
    const {token} = await connectedWorker();
    try {
      const response = await fetch(`./worker/${action}`, {
        method: 'POST',
        headers: {'Content-Type': 'application/json', 'x-viewer-token': token ?? ''},
        body: JSON.stringify({...question, rows: inOrder(question.rows).slice(0, MOST_ROWS)}),
        signal,
      });
      if (!response.ok) throw new Error((await response.json()).error);
      for await (const event of eventsOf(response)) {
        if (event.error) throw new Error(event.error);
        if (event.output) return event.output;
        onState(event.state);
      }
    } catch (error) {
      // What a browser throws when a connection is refused or breaks off.
      throw error instanceof TypeError ? new Error(ENDED) : error;
    }
    throw new Error(ENDED);
  };

  // Those that are changed come first, so that a limit leaves none of them out.
  window.inOrder = rows => {
    const isChanged = row => row.scale !== undefined || row.value !== undefined;
    return [...rows.filter(isChanged), ...rows.filter(row => !isChanged(row))];
  };

  async function* eventsOf(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const {value, done} = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) yield JSON.parse(line);
    }
  }
})();
