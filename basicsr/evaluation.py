"""The evaluation sets of an option file, restored and scored by one path in training and in test.py."""

from collections.abc import Callable, Iterator
from pathlib import Path

from basicsr.data.loaders import DataError, build_eval_loaders, check_datasets, own_words
from basicsr.metrics.evaluate import build_metrics, evaluate, metric_sections
from basicsr.models.base_model import BaseModel
from basicsr.models.restorer import Restorer
from basicsr.utils.options import Options


class Evaluation:
    """Calling it yields (name of a set, rows of evaluate()), set by set; each process takes its share of the images.

    Raises DataError at once for images that cannot be used, as far as their headers tell.
    """

    def __init__(self, opt: Options, model: BaseModel, accelerator):
        self.accelerator = accelerator
        self.loaders = build_eval_loaders(opt, accelerator.process_index, accelerator.num_processes)
        check_datasets(loader.dataset.dataset for loader in self.loaders.values())
        self.restorer = Restorer(model, **opt.val.restorer.model_dump())
        self.metrics = build_metrics(metric_sections(opt.val.protocol, opt.val.metrics, opt.scale))

    def __call__(
        self, image_path: Callable[[str, str], Path] | None = None, progress: bool = False
    ) -> Iterator[tuple[str, list[dict]]]:
        """image_path(name of the set, lq path): where to save a restored image; None saves none."""
        for name, loader in self.loaders.items():

            def path_in_set(lq_path: str, name: str = name) -> Path:
                return image_path(name, lq_path)

            try:
                rows = evaluate(
                    self.restorer,
                    loader,
                    self.metrics,
                    self.accelerator,
                    image_path and path_in_set,
                    name if progress else '',
                )
            except (ValueError, OSError) as error:
                raise DataError(own_words(error)) from None
            yield name, rows
