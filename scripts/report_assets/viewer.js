'use strict';
// The viewer of the report: the panels of one image beside one another, enlarged and moved together, and |difference|
// from one of them. It is built of the plain images of the page, which stay for readers without JavaScript.
(() => {
  const shots = [...document.querySelectorAll('.shot')];
  const root = document.getElementById('viewer');
  if (!shots.length || !root) return;

  const MOST = 64; // screen pixels per image pixel
  const STEP = 1.25;
  const PAN = 40; // screen pixels of an arrow key
  const view = { scale: 1, x: 0, y: 0 }; // x, y: the image's place in the middle of each panel
  let panels = []; // of the shown image: { label, scores, image, data, gap, canvases, readout }
  let size = { width: 1, height: 1 };
  let shown = -1;
  let fitted = true;
  let drawing = false;

  // ---- parts of the page

  function element(kind, properties = {}, ...children) {
    const made = Object.assign(document.createElement(kind), properties);
    made.append(...children);
    return made;
  }

  function choice(label, entries) {
    const select = element('select', {}, ...entries.map(([value, text]) => new Option(text, value)));
    select.setAttribute('aria-label', label);
    return [select, element('label', {}, label, select)];
  }

  function button(text, label, action) {
    const made = element('button', { type: 'button', textContent: text, onclick: action });
    made.setAttribute('aria-label', label);
    return made;
  }

  const [which, whichLabel] = choice('Image', shots.map((shot, n) => [n, shot.dataset.name]));
  const [reference, referenceLabel] = choice('Difference from', []);
  const [parts, partsLabel] = choice('Show', [
    ['both', 'images and differences'], ['image', 'images'], ['gap', 'differences'],
  ]);
  const gain = element('input', { type: 'range', min: 1, max: 32, step: 1, value: 8 });
  const gainText = element('output', { textContent: '×8' });
  const zoomText = element('output');
  const stage = element('div', { className: 'stage', tabIndex: 0 });
  stage.setAttribute('role', 'group');
  stage.setAttribute('aria-label', 'Images, enlarged and moved together. Plus and minus zoom, arrow keys move, '
    + '0 shows all, 1 shows pixels as they are, page up and page down change the image.');
  root.append(
    element('div', { className: 'controls' },
      whichLabel,
      element('span', {}, button('‹', 'previous image', () => select(shown - 1)),
        button('›', 'next image', () => select(shown + 1))),
      referenceLabel, partsLabel, element('label', {}, 'Gain', gain, gainText),
      element('span', {}, button('−', 'zoom out', () => zoom(1 / STEP)), button('+', 'zoom in', () => zoom(STEP)),
        button('fit', 'show the whole image', fit), button('1:1', 'show pixels as they are', () => zoomTo(1)), zoomText)),
    stage,
    element('p', { className: 'keys', textContent: 'Wheel or pinch: zoom. Drag: move. Point: the pixel\'s RGB. Keys, '
      + 'once the images have the focus: + − 0 1, arrows, page up and page down.' }));
  document.getElementById('gallery').hidden = true;
  root.hidden = false;

  // ---- what is shown

  async function select(number) {
    const chosen = (Number(number) + shots.length) % shots.length;
    if (chosen === shown) return;
    shown = chosen;
    which.value = chosen;
    const found = [...shots[chosen].querySelectorAll('img')].map((img) => {
      const image = new Image();
      image.src = img.src;
      return { label: img.alt, scores: img.parentElement.querySelector('span').textContent, image };
    });
    await Promise.all(found.map(({ image }) => image.decode()));
    if (chosen !== shown) return; // another one was chosen meanwhile
    size = { width: found[0].image.naturalWidth, height: found[0].image.naturalHeight };
    panels = found.map(panelOf);
    stage.replaceChildren(...panels.map(({ figure }) => figure));
    const before = reference.selectedOptions[0]?.text;
    reference.replaceChildren(...panels.map(({ label }, n) => new Option(label, n)));
    const kept = panels.findIndex(({ label }) => label === before);
    reference.value = kept >= 0 ? kept : panels.length - 1; // gt is the last one
    compare();
    fit();
    stage.dataset.shot = chosen;
  }

  function panelOf({ label, scores, image }) {
    const whole = element('canvas', { width: size.width, height: size.height });
    const context = whole.getContext('2d', { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const gap = element('canvas', { width: size.width, height: size.height });
    const canvases = { image: element('canvas'), gap: element('canvas') };
    for (const canvas of Object.values(canvases)) {
      canvas.style.aspectRatio = `${size.width} / ${size.height}`;
      canvas.setAttribute('role', 'img');
    }
    const readout = element('span', { textContent: scores || '\u00a0' });
    const gapLabel = element('figcaption');
    const figure = element('figure', {}, element('figcaption', {}, element('strong', { textContent: label }), readout),
      canvases.image, canvases.gap, gapLabel);
    canvases.image.setAttribute('aria-label', label);
    const data = context.getImageData(0, 0, size.width, size.height).data;
    return { label, scores, whole, data, gap, canvases, figure, readout, gapLabel };
  }

  function compare() {
    const other = panels[Number(reference.value)];
    const factor = Number(gain.value);
    gainText.textContent = `×${factor}`;
    for (const panel of panels) {
      const result = new ImageData(size.width, size.height);
      for (let place = 0; place < result.data.length; place += 4) {
        for (let channel = place; channel < place + 3; channel += 1) {
          result.data[channel] = Math.abs(panel.data[channel] - other.data[channel]) * factor; // clamped by its type
        }
        result.data[place + 3] = 255;
      }
      panel.gap.getContext('2d').putImageData(result, 0, 0);
      const words = panel === other ? 'the reference' : `|${panel.label} − ${other.label}| × ${factor}`;
      panel.gapLabel.textContent = words;
      panel.canvases.gap.setAttribute('aria-label', words);
      panel.canvases.image.hidden = parts.value === 'gap';
      panel.canvases.gap.hidden = panel.gapLabel.hidden = parts.value === 'image';
    }
    draw();
  }

  // ---- the view

  function panelSize() {
    const canvas = panels[0]?.canvases[parts.value === 'gap' ? 'gap' : 'image'];
    return { width: canvas?.clientWidth || 1, height: canvas?.clientHeight || 1 };
  }

  function fitScale() {
    const { width, height } = panelSize();
    return Math.min(width / size.width, height / size.height);
  }

  function fit() {
    fitted = true;
    draw();
  }

  function zoomTo(scale, place) {
    zoom(scale / view.scale, place);
  }

  function zoom(factor, place = { x: 0, y: 0 }) { // place: from the middle of a panel; stays where it is
    const scale = Math.min(MOST, Math.max(fitScale(), view.scale * factor));
    fitted = scale <= fitScale();
    view.x += place.x / view.scale - place.x / scale;
    view.y += place.y / view.scale - place.y / scale;
    view.scale = scale;
    draw();
  }

  function pan(x, y) {
    view.x += x / view.scale;
    view.y += y / view.scale;
    draw();
  }

  function within(place, side, visible) {
    return visible >= side ? side / 2 : Math.min(side - visible / 2, Math.max(visible / 2, place));
  }

  function draw() {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      const { width, height } = panelSize();
      if (fitted) view.scale = fitScale();
      view.x = within(view.x, size.width, width / view.scale);
      view.y = within(view.y, size.height, height / view.scale);
      for (const { whole, gap, canvases } of panels) {
        paint(canvases.image, whole);
        paint(canvases.gap, gap);
      }
      zoomText.textContent = `${Math.round(view.scale * 100)}%`;
      Object.assign(stage.dataset, { scale: view.scale, x: view.x, y: view.y });
    });
  }

  function paint(canvas, source) {
    if (canvas.hidden) return;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const scale = view.scale * ratio;
    const context = canvas.getContext('2d');
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.setTransform(scale, 0, 0, scale, width / 2 - view.x * scale, height / 2 - view.y * scale);
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = 'high';
    context.drawImage(source, 0, 0);
    canvas.style.touchAction = fitted ? 'pan-y' : 'none'; // a finger scrolls the page until there is something to move
  }

  // ---- wheel, pointers, keys

  function fromMiddle(event, canvas) {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
  }

  stage.addEventListener('wheel', (event) => {
    if (event.target.tagName !== 'CANVAS' || (fitted && event.deltaY > 0)) return; // then the page scrolls
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    zoom(Math.exp(-event.deltaY * lines * 0.0015), fromMiddle(event, event.target));
  }, { passive: false });

  const fingers = new Map();
  stage.addEventListener('pointerdown', (event) => {
    if (event.target.tagName !== 'CANVAS' || event.button !== 0) return;
    fingers.set(event.pointerId, event);
    event.target.setPointerCapture(event.pointerId);
  });
  stage.addEventListener('pointermove', (event) => {
    if (event.target.tagName === 'CANVAS') read(fromMiddle(event, event.target));
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const other = [...fingers.values()].find(({ pointerId }) => pointerId !== event.pointerId);
    if (other) {
      const distance = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) || 1;
      zoom(distance(event) / distance(before), fromMiddle(event, event.target));
    } else {
      pan(before.clientX - event.clientX, before.clientY - event.clientY);
    }
    fingers.set(event.pointerId, event);
  });
  for (const kind of ['pointerup', 'pointercancel']) {
    stage.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  }
  stage.addEventListener('pointerleave', () => read(null));

  function read(place) { // the pixel there, in each panel; without one, the scores
    const x = place ? Math.floor(view.x + place.x / view.scale) : -1;
    const y = place ? Math.floor(view.y + place.y / view.scale) : -1;
    const inside = x >= 0 && y >= 0 && x < size.width && y < size.height;
    for (const { data, scores, readout } of panels) {
      const start = 4 * (y * size.width + x);
      const pixel = `(${x}, ${y}): ${[...data.slice(start, start + 3)].join(' ')}`;
      readout.textContent = inside ? pixel : scores || '\u00a0';
    }
  }

  const KEYS = {
    '+': () => zoom(STEP), '=': () => zoom(STEP), '-': () => zoom(1 / STEP), 0: fit, 1: () => zoomTo(1),
    ArrowLeft: () => pan(-PAN, 0), ArrowRight: () => pan(PAN, 0), ArrowUp: () => pan(0, -PAN),
    ArrowDown: () => pan(0, PAN), PageUp: () => select(shown - 1), PageDown: () => select(shown + 1),
  };
  stage.addEventListener('keydown', (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  which.addEventListener('change', () => select(which.value));
  for (const control of [reference, parts]) control.addEventListener('change', compare);
  gain.addEventListener('input', compare);
  new ResizeObserver(draw).observe(stage);

  // ---- links to an image

  function follow(address) {
    const number = shots.findIndex(({ id }) => `#${id}` === address);
    if (number < 0) return false;
    select(number);
    root.scrollIntoView();
    stage.focus({ preventScroll: true });
    return true;
  }
  document.addEventListener('click', (event) => {
    const link = event.target.closest?.('a[href^="#shot-"]');
    if (link && follow(link.hash)) event.preventDefault();
  });
  if (!follow(location.hash)) select(0);
})();
