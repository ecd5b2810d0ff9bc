"""One iteration: the gradients of one or several batches, then one optimizer step."""

from collections.abc import Iterator

from torch import Tensor

from basicsr.models.base_model import BaseModel, NonFiniteLoss
from basicsr.utils.seeding import derived_seed, seed_all


def optimizer_step(model: BaseModel, batches: Iterator[dict], iteration: int) -> dict[str, Tensor]:
    """Let `model` learn from gradient_accumulation_steps batches; returns the means of its losses over them.

    What the step draws at random follows from (manual_seed, iteration, batch of the step, process) alone.
    Raises NonFiniteLoss when the step was given up; then its gradients are forgotten.
    """
    accelerator, means = model.accelerator, {}
    count = accelerator.gradient_accumulation_steps
    accelerator.step = 0  # a step that was given up halfway must not shorten this one
    for micro in range(count):
        batch = next(batches)
        seed_all(derived_seed(model.opt.manual_seed, iteration, micro, accelerator.process_index))
        try:
            with accelerator.accumulate(*model.trained):
                model.before_step(iteration)
                losses = model.training_step(batch)
        except NonFiniteLoss:
            model.discard()
            raise
        for name, loss in losses.items():
            means[name] = means.get(name, 0) + loss.detach() / count
    if accelerator.optimizer_step_was_skipped:  # fp16: the loss scale was too large and is now halved
        raise NonFiniteLoss('fp16 overflowed')
    return means
