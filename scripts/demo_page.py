"""The web demo's page: what demo_controls offers and demo_work does, in gradio."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from demo_controls import CONTROLS, Control, Offer, choices_of
from demo_work import EXAMPLES, Result, Stopped, Upload, Visits, Workshop, message

from basicsr.utils.messages import LOGGER
from basicsr.utils.registry import UserError
from basicsr.utils.zoo import PROJECT

ASSETS = Path(__file__).with_name('demo_assets')
PHOTOGRAPHS = PROJECT / 'testset' / 'lq_x4'
QUEUE = 16  # requests that wait at most
KEPT = 3600  # seconds: files go after so long, even of a page that is still open
FIT, ACTUAL, DOUBLE, FOURFOLD = VIEWS = ('Fit', '1:1', '2:1', '4:1')
TITLE = 'Super-resolution'
HEAD = f'<h1>{TITLE}</h1><p>Computed on the machine that runs this page. Files go when the page is closed.</p>'


def build_page(workshop: Workshop, visits: Visits, first: str, max_mb: float) -> gr.Blocks:
    """The page.

    Args:
        visits: of its folder, where gradio keeps its files too.
        first: the model that is chosen at first.
        max_mb: as `launch` is told.
    """
    offers = workshop.offers
    limits = f'up to {max_mb:g} MB and {workshop.max_pixels:,} pixels'
    waiting = message(f'Drop an image ({limits}), or take an example, then press Restore.')
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, KEPT), fill_width=True) as page:
        gr.HTML(HEAD, elem_id='title', container=False)
        with gr.Row(elem_id='columns'):
            with gr.Column(scale=4, min_width=320, elem_id='choices'):
                picture = gr.Image(
                    label='Image',
                    type='filepath',
                    image_mode=None,
                    sources=['upload', 'clipboard'],
                    height=220,
                    elem_id='picture',
                    buttons=[],
                )
                picture.preprocess = _uploaded  # gradio's would open the file, and fail without a word on what is none
                examples = _examples(picture, visits.folder)
                model = gr.Dropdown(
                    list(offers), value=first, label='Model', elem_id='model', info=_about(offers[first])
                )
                with gr.Accordion('Settings', open=True, elem_id='settings'):
                    controls = {name: _component(one, offers[first]) for name, one in CONTROLS.items()}
                with gr.Row(elem_id='actions'):
                    start = gr.Button('Restore', variant='primary', elem_id='restore', scale=2, min_width=100)
                    cancel = gr.Button('Cancel', elem_id='cancel', interactive=False, scale=1, min_width=100)
            with gr.Column(scale=7, min_width=320, elem_id='result'):
                status = gr.HTML(waiting, elem_id='status', container=False, padding=False)
                view = gr.Radio(
                    [(FIT, FIT), ('1\u00d7', ACTUAL), ('2\u00d7', DOUBLE), ('4\u00d7', FOURFOLD)],
                    value=FIT,
                    label='Size',
                    info='1\u00d7 is pixel for pixel; drag the handle to compare; wheel or two fingers zoom further',
                    elem_id='view',
                )
                slider = gr.ImageSlider(
                    label='Enlarged input (left), restored (right)',
                    format='png',
                    interactive=False,
                    type='filepath',
                    image_mode=None,
                    max_height=640,
                    buttons=['fullscreen'],
                    elem_id='slider',
                )
                download = gr.DownloadButton('Download PNG', interactive=False, elem_id='download')

        quick = {'queue': False, 'show_progress': 'hidden', 'api_visibility': 'private'}
        model.change(_shower(offers), model, [model, *controls.values()], **quick)
        examples.click(_chosen, examples, picture, **quick)
        picture.change(_examiner(workshop, visits, waiting), picture, status, **quick)
        view.change(None, view, None, js='(name) => window.demoView(name)', **quick)
        run = start.click(
            lambda name: (message(f'{name} is at work.'), gr.update(interactive=False), gr.update(interactive=True)),
            model,
            [status, start, cancel],
            js='(name) => { window.demoStart(); return name; }',
            **quick,
        ).then(
            _restorer(workshop, visits, list(controls)),
            [picture, model, *controls.values()],
            [status, slider, download],
            concurrency_limit=1,
            concurrency_id='device',
            api_visibility='private',
            show_progress='full',
            show_progress_on=slider,
            trigger_mode='once',
        )
        run.then(_idle, None, [start, cancel], js='() => window.demoResult()', **quick)

        def stop(request: gr.Request):
            visits.cancel(request.session_hash)
            return message('Cancelled.'), *_idle()

        cancel.click(stop, None, [status, start, cancel], cancels=[run], **quick)
        page.unload(_ender(visits))
        page.load(None, None, None, js=(ASSETS / 'demo.js').read_text(encoding='utf-8'))
    return page.queue(max_size=QUEUE, default_concurrency_limit=1)


def launch(page: gr.Blocks, host: str, port: int, max_mb: float) -> str:
    """Serve the page from now on; its address."""
    # gradio's own fonts would be fetched from a server of others; its remarks on controls are too faint to read.
    theme = gr.themes.Default(primary_hue='blue', font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    theme.set(body_text_color_subdued='*neutral_600', body_text_color_subdued_dark='*neutral_300')
    theme.set(checkbox_border_color='*neutral_400', checkbox_border_color_dark='*neutral_400')
    theme.set(block_info_text_color='*neutral_600', block_info_text_color_dark='*neutral_300')
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        allowed_paths=[],
        max_file_size=int(max_mb * 2**20),
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        theme=theme,
        css=(ASSETS / 'demo.css').read_text(encoding='utf-8'),
    )
    return address


def _uploaded(payload: Any) -> Upload | None:
    """What the page sends for a file; gradio has looked that it lies in its own folder."""
    if payload is None or payload.path is None:
        return None
    path = Path(payload.path)
    return Upload(path, Path(payload.orig_name or path.name).name)


def _examples(picture: gr.Image, folder: Path) -> gr.Dataset:
    """Bundled photographs, copied to where the page may read."""
    place = folder / EXAMPLES
    place.mkdir()
    samples = [[shutil.copy(path, place)] for path in sorted(PHOTOGRAPHS.glob('*.png'))]
    return gr.Dataset(components=[picture], samples=samples, label='Examples', elem_id='examples')


def _chosen(sample: list) -> str:
    return sample[0]


def _about(offer: Offer) -> str:
    return f'{offer.known.note}; \u00d7{offer.scale}. Licence: {offer.known.licence}'


def _component(control: Control, offer: Offer) -> gr.components.Component:
    setting = offer.settings.get(control.name)
    common = {
        'label': control.label,
        'info': control.info,
        'visible': setting is not None,
        'elem_id': f'control-{control.name}',
        'value': setting.value if setting else None,
    }
    if control.kind == 'choice':
        return gr.Dropdown(choices_of(control), **common)
    if control.kind == 'text':
        return gr.Textbox(lines=2, **common)
    if control.name in ('seed', 'tile'):
        return gr.Number(precision=0, minimum=control.least, maximum=control.most, **common)
    common['value'] = control.least if setting is None else setting.value
    return gr.Slider(control.least, control.most, step=1 if control.kind == 'integer' else 0.01, **common)


def _shower(offers: dict[str, Offer]) -> Callable:
    """What a chosen model shows and hides; its settings stand at its own values."""

    def show(name: str):
        settings = offers[name].settings
        updates = [
            gr.update(visible=True, value=settings[control].value) if control in settings else gr.update(visible=False)
            for control in CONTROLS
        ]
        return gr.update(info=_about(offers[name])), *updates

    return show


def _examiner(workshop: Workshop, visits: Visits, waiting: str) -> Callable:
    """What is said of a file as soon as it is there, or `waiting` while there is none."""

    def examine(upload: Upload | None, request: gr.Request) -> str:
        if upload is None:
            return waiting
        if upload.path.parent.name != EXAMPLES:
            visits.uploaded(request.session_hash, upload.path)
        try:
            width, height = workshop.examine(upload)
        except UserError as error:
            return message(str(error), 'error')
        return message(f'{upload.label}: {width} \u00d7 {height} pixels.')

    return examine


def _restorer(workshop: Workshop, visits: Visits, names: list[str]) -> Callable:
    """The work itself; whatever goes wrong is said in words, and the log has the rest."""

    def restore(upload, model, request: gr.Request, progress=gr.Progress(), *values):  # noqa: B008 (gradio fills it)
        def failed(text: str, kind: str = 'error'):
            return message(text, kind), gr.update(value=None), gr.update(value=None, interactive=False)

        if upload is None:
            return failed('There is no image yet: drop one, or take an example.')
        stop, folder = visits.begin(request.session_hash), visits.result_folder(request.session_hash)
        progress(0, desc='Waiting for the device')

        def advance(done: int, total: int) -> None:
            progress((done, total), desc='Restoring', unit='steps')

        try:
            result = workshop.restore(model, dict(zip(names, values, strict=True)), upload, folder, stop, advance)
        except Stopped:
            return failed('Cancelled.', 'note')
        except UserError as error:
            return failed(str(error))
        except Exception as error:  # a fault of this program: the log has the trace, the person a line
            LOGGER.exception('restoring %s', upload.label)
            return failed(f'This failed, and it is no fault of yours: {type(error).__name__}. The log has more.')
        return _shown(result)

    return restore


def _shown(result: Result) -> tuple:
    done = message(result.summary, 'done', result.warnings)
    files = str(result.before), str(result.after)
    return done, gr.update(value=files), gr.update(value=str(result.after), interactive=True)


def _idle() -> tuple:
    return gr.update(interactive=True), gr.update(interactive=False)


def _ender(visits: Visits) -> Callable:
    def end(request: gr.Request) -> None:
        visits.end(request.session_hash)

    return end
