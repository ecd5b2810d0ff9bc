() => {
  // 'Fit', or how many pixels of the screen a pixel of the result gets, as '2:1'.
  let size = 'Fit';

  const show = () => {
    const frame = document.querySelector('#slider .slider-wrap');
    const image = frame?.querySelector('img');
    if (!image) return;
    const factor = parseInt(size, 10) || 0;
    frame.classList.toggle('sized', factor > 0);
    frame.classList.toggle('enlarged', factor > 1);
    frame.style.width = factor ? `${image.naturalWidth * factor}px` : '';
    frame.style.height = factor ? `${image.naturalHeight * factor}px` : '';
    window.dispatchEvent(new Event('resize')); // the slider asks again where its image lies
  };

  window.demoView = (name) => {
    size = name;
    show();
  };

  window.demoResult = () => {
    const column = document.querySelector('#result');
    for (const image of column.querySelectorAll('#slider img')) {
      if (!image.complete) image.addEventListener('load', show, { once: true });
    }
    show();
    const beside = column.getBoundingClientRect().top < window.innerHeight / 2;
    if (column.querySelector('#slider img') && !beside) column.scrollIntoView({ behavior: 'smooth', block: 'start' });
  };
}
