// d3-jetpack's published script makes an empty d3 of its own unless something else loads it.
'use strict';

window.define = (names, load) => {
  delete window.define;
  load(...names.map(() => d3));
};
window.define.amd = true;
