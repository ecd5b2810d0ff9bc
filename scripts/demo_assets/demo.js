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

  // A result has come, or an error has taken its place: the page is given a moment to show it.
  window.demoResult = (tries = 20) => {
    const column = document.querySelector('#result');
    const images = [...column.querySelectorAll('#slider img')];
    if (tries > 0 && !(images.length && images.every((image) => image.complete && image.naturalWidth))) {
      setTimeout(() => window.demoResult(tries - 1), 100);
    } else if (images.length) {
      show();
      const beside = column.getBoundingClientRect().top < window.innerHeight / 2;
      if (!beside) column.scrollIntoView({ behavior: 'smooth', block: 'start' });
    }
  };
}
