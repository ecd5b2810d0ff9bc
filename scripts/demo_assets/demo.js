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
    const view = frame.closest('.image-container');
    view.scrollLeft = (view.scrollWidth - view.clientWidth) / 2; // the handle stands in the middle
    view.scrollTop = (view.scrollHeight - view.clientHeight) / 2;
    window.dispatchEvent(new Event('resize')); // the slider asks again where its image lies
  };

  window.demoView = (name) => {
    size = name;
    show();
  };

  // What cannot be shown is said in words; the browser's sign for it says nothing.
  for (const [event, visibility] of [['error', 'hidden'], ['load', '']]) {
    document.addEventListener(event, ({ target }) => {
      if (target.matches?.('#picture img')) target.style.visibility = visibility;
    }, true);
  }

  // Where the result is below the settings, not beside them, the page goes there.
  window.demoStart = () => {
    const [settings, result] = ['#choices', '#result'].map((name) => document.querySelector(name));
    const beside = settings.getBoundingClientRect().right <= result.getBoundingClientRect().left;
    if (!beside) result.scrollIntoView({ behavior: 'smooth', block: 'start' });
  };

  // A result has come, or an error has taken its place: the page is given a moment to show it.
  window.demoResult = (tries = 20) => {
    const images = [...document.querySelectorAll('#slider img')];
    const failed = document.querySelector('#status .message.error');
    const here = images.length && images.every((image) => image.complete && image.naturalWidth);
    if (tries > 0 && !failed && !here) {
      setTimeout(() => window.demoResult(tries - 1), 100);
    } else {
      show();
      window.demoStart();
    }
  };
}
