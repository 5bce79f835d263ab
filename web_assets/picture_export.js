// The picture of a graph as a file: the link graph and the subgraph as they are drawn, as an SVG
// that needs no other file, or as a PNG. Every text in it is text. Loaded after circuit-tracer's
// scripts and before the page starts.
'use strict';

(() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const DRAWN = 'path, rect, circle, line, text'; // of the page's SVG
  const GEOMETRY = ['d', 'x', 'y', 'width', 'height', 'r', 'cx', 'cy', 'dx', 'dy', 'textLength'];
  const STYLES = [
    ...['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-opacity', 'stroke-dasharray'],
    ...['stroke-linecap', 'opacity'],
  ];
  const TEXT_STYLES = [
    ...['font-family', 'font-size', 'font-weight', 'text-anchor', 'dominant-baseline'],
  ];
  const MARGIN = 12;
  const PNG_SCALE = 2;
  // What XML 1.0 has no way to write.
  const NOT_IN_XML = /[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu;
  const escaped = character => {
    const code = character.codePointAt(0);
    return code < 256 ? `\\x${d3.format('02x')(code)}` : `\\u${d3.format('04x')(code)}`;
  };
  const inXml = text => text.replace(NOT_IN_XML, escaped);

  // Add an element with these attributes, and with this text if it has any.
  function add(parent, name, attributes, text) {
    const element = parent.appendChild(document.createElementNS(SVG, name));
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = inXml(text);
    return element;
  }

  // The lines that a canvas shows (viewer/page.py has circuit-tracer's script remember them).
  function addLines(picture, canvas) {
    const {links, strokeWidthOffset, colorOverride} = canvas.drawn ?? {links: []};
    if (!links.length) return;
    const {e, f} = canvas.parentNode.querySelector('svg > g').getScreenCTM();
    const group = add(picture, 'g', {transform: `translate(${e},${f})`, fill: 'none'});
    for (const link of d3.sort(links, ({strokeWidth}) => strokeWidth)) {
      const [from, to] = [link.sourceNode.pos, link.targetNode.pos];
      const width = link.strokeWidth + strokeWidthOffset;
      const stroke = colorOverride || link.color;
      add(group, 'path', {d: `M${from}L${to}`, stroke, 'stroke-width': width});
    }
  }

  // A shape or a text of the page's own SVG, with its place and its styles written out.
  function addShape(picture, shape) {
    // Its own text: a title in it is shown on hovering only.
    const own = [...shape.childNodes].filter(child => child.nodeType === Node.TEXT_NODE);
    const text = own.map(child => child.data).join('');
    const isText = shape.localName === 'text';
    if (isText && !text) return;
    const {a, b, c, d, e, f} = shape.getScreenCTM();
    const attributes = {transform: `matrix(${[a, b, c, d, e, f]})`};
    for (const name of [...GEOMETRY, 'lengthAdjust'])
      if (shape.hasAttribute(name)) attributes[name] = shape.getAttribute(name);
    const style = getComputedStyle(shape);
    for (const name of isText ? [...STYLES, ...TEXT_STYLES] : STYLES)
      attributes[name] = style.getPropertyValue(name);
    add(picture, shape.localName, attributes, isText ? text : undefined);
  }

  // A box of the subgraph: a group's frame, or a node in it.
  function addBox(picture, box) {
    const {x, y, width, height} = box.getBoundingClientRect();
    const style = getComputedStyle(box);
    const fill = style.backgroundColor;
    const edge = {stroke: style.borderTopColor, 'stroke-width': parseFloat(style.borderTopWidth)};
    if (style.clipPath !== 'none') {
      const d = `M${x + width / 2},${y}L${x + width},${y + height}H${x}Z`;
      const stroke = getComputedStyle(box, '::before').backgroundColor;
      return add(picture, 'path', {d, fill, stroke, 'stroke-width': 1.1});
    }
    const radius = style.borderTopLeftRadius;
    const rx = radius.endsWith('%') ? (width * parseFloat(radius)) / 100 : parseFloat(radius);
    if (style.outlineStyle !== 'none') {
      const line = parseFloat(style.outlineWidth);
      const dashes = style.outlineStyle === 'dotted' ? {'stroke-dasharray': line} : {};
      const around = {x: x - line / 2, y: y - line / 2, width: width + line, height: height + line};
      const stroke = {stroke: style.outlineColor, 'stroke-width': line, fill: 'none'};
      add(picture, 'rect', {...around, ...stroke, ...dashes, rx: rx + line / 2});
    }
    return add(picture, 'rect', {x, y, width, height, rx, fill, ...edge});
  }

  // The lines in which the browser shows a text of the subgraph, as far as it shows them.
  function addName(picture, name) {
    const style = getComputedStyle(name);
    const size = parseFloat(style.fontSize);
    const {bottom} = name.getBoundingClientRect();
    const lines = [];
    const range = document.createRange();
    for (const text of name.childNodes)
      for (const {0: word, index} of (text.data ?? '').matchAll(/\S+/g)) {
        range.setStart(text, index);
        range.setEnd(text, index + word.length);
        const box = range.getBoundingClientRect();
        const line = lines.at(-1);
        if (line && Math.abs(line.top - box.top) < size / 2) {
          line.words.push(word);
          line.right = box.right;
        } else lines.push({words: [word], left: box.left, right: box.right, top: box.top, box});
      }
    const shown = lines.filter(line => line.top + size / 2 < bottom);
    if (shown.length < lines.length) shown.at(-1)?.words.push('…');
    for (const line of shown) {
      const place = {x: (line.left + line.right) / 2, y: line.box.bottom - 0.22 * size};
      const halo = {stroke: '#fff', 'stroke-width': 2.5, 'paint-order': 'stroke'};
      const font = {'font-size': size, 'font-family': style.fontFamily, 'text-anchor': 'middle'};
      add(picture, 'text', {...place, ...halo, ...font, fill: style.color}, line.words.join(' '));
    }
  }

  // What an intervention left of a group's activation.
  function addShare(picture, share) {
    const {x, y, width, height} = share.getBoundingClientRect();
    const {opacity, fontSize, fontFamily} = getComputedStyle(share);
    const group = add(picture, 'g', {opacity});
    add(group, 'rect', {x, y, width, height, rx: 3, fill: '#fff', stroke: '#000'});
    const place = {x: x + width / 2, y: y + height / 2, 'dominant-baseline': 'central'};
    const font = {'font-size': fontSize, 'font-family': fontFamily, 'text-anchor': 'middle'};
    add(group, 'text', {...place, ...font}, share.textContent);
  }

  // What is drawn, as an SVG document.
  function draw() {
    const picture = document.createElementNS(SVG, 'svg');
    add(picture, 'title', {}, document.title);
    const ground = add(picture, 'rect', {fill: '#fff'});
    const boxes = [];
    for (const element of document.querySelectorAll('.link-graph *, .subgraph *')) {
      if (!isShown(element)) continue;
      if (element.localName === 'canvas') addLines(picture, element);
      else if (element.matches(`svg :is(${DRAWN})`)) addShape(picture, element);
      else if (element.matches('.member-circles, .member-circle')) addBox(picture, element);
      else if (element.matches('.node-text-container > span')) addName(picture, element);
      else if (element.matches('.worker-share')) addShare(picture, element);
      else continue;
      boxes.push(element.getBoundingClientRect());
    }
    const left = d3.min(boxes, box => box.left) - MARGIN;
    const top = d3.min(boxes, box => box.top) - MARGIN;
    const width = Math.ceil(d3.max(boxes, box => box.right) - left + MARGIN);
    const height = Math.ceil(d3.max(boxes, box => box.bottom) - top + MARGIN);
    const size = {width, height};
    for (const [name, value] of Object.entries({x: left, y: top, ...size}))
      ground.setAttribute(name, value);
    picture.setAttribute('viewBox', [left, top, width, height]);
    for (const [name, value] of Object.entries(size)) picture.setAttribute(name, value);
    return {...size, text: `<?xml version="1.0" encoding="UTF-8"?>\n${serialised(picture)}\n`};
  }

  const serialised = picture => new XMLSerializer().serializeToString(picture);

  function isShown(element) {
    const subgraph = element.closest('.subgraph');
    if (subgraph && !subgraph.querySelector('.supernode-container')) return false;
    // Chromium calls an SVG's text visible even where it isn't drawn, and gives it no box.
    const isDrawn = element.getClientRects().length > 0;
    return isDrawn && element.checkVisibility({opacityProperty: true, visibilityProperty: true});
  }

  function save(blob, ending) {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    link.download = `${util.params.get('slug')}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser has read it by then
  }

  const SAVE = {
    SVG: () => save(new Blob([draw().text], {type: 'image/svg+xml'}), 'svg'),
    PNG: async () => {
      const {text, width, height} = draw();
      const image = new Image(width, height);
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
      await image.decode();
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [width * PNG_SCALE, height * PNG_SCALE];
      const context = canvas.getContext('2d');
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(blob => save(blob, 'png'), 'image/png');
    },
  };

  const {initCg} = window;
  window.initCg = async (...options) => {
    const controls = d3.select('.controls-container');
    const removeButtons = () => controls.selectAll('.picture-export').remove();
    removeButtons();
    await initCg(...options);
    if (d3.select('.link-graph').empty()) return;
    removeButtons(); // another graph may have been chosen meanwhile
    const buttons = controls.append('span').attr('class', 'picture-export').text('Picture: ');
    for (const [form, saveIt] of Object.entries(SAVE))
      buttons.append('button').text(form).on('click', saveIt);
    if (util.params.get('picture') === 'svg') setTimeout(leavePicture, 3_000);
  };

  // For viewer/picture.py, which reads the document from a browser that nobody sees.
  function leavePicture() {
    const place = d3.select('body').append('pre').attr('id', 'picture').style('display', 'none');
    place.text(draw().text);
  }
})();
