"""The parts of an option file that the framework owns: every key with its type, default and range."""

from typing import Annotated, Any, Literal

import pydantic

from basicsr.utils.color_fix import ColorFix


def whole(value: Any) -> Any:
    """5e3 is written for a count in many published files."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, pydantic.BeforeValidator(whole)]
Path_ = str


class Section(pydantic.BaseModel):
    """A part of an option file that the framework owns: known keys, exact types, frozen."""

    model_config = pydantic.ConfigDict(extra='forbid', strict=True, frozen=True, protected_namespaces=())


class DatasetOptions(Section):
    """One entry of `datasets:`; `options` go to the constructor of the registered data set `options['type']`."""

    name: str
    num_worker_per_gpu: Annotated[Count, pydantic.Field(ge=0)] = 0
    batch_size_per_gpu: Annotated[Count, pydantic.Field(ge=1)] = 1
    dataset_enlarge_ratio: Annotated[float, pydantic.Field(gt=0)] = 1
    pin_memory: bool = True
    timeout: float = 0  # seconds to wait for a worker before the run fails; 0 waits for ever
    options: dict


class PretrainedOptions(Section):
    """Where the first weights of a network come from."""

    path: Path_
    param_key: str | None = 'params'
    strict: bool = True


class PathOptions(Section):
    """`path:`; pretrain_network_g and its relatives are gathered in `pretrained['g']`."""

    pretrained: dict[str, PretrainedOptions] = {}
    resume_state: Path_ | None = None
    ignore_resume_networks: list[str] = []
    experiments_root: Path_ = 'experiments'
    results_root: Path_ = 'results'


class TrainOptions(Section):
    """`train:`; optim_X is `optims['X']` and X_opt is `losses['X']`. Iterations are optimizer steps."""

    total_iter: Annotated[Count, pydantic.Field(ge=1)]
    warmup_iter: Count = -1
    optims: dict[str, dict]
    scheduler: dict | None = None
    losses: dict[str, dict]
    ema_decay: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0
    grad_clip: Annotated[float, pydantic.Field(ge=0)] = 0  # largest gradient norm; 0 does not clip
    gradient_accumulation_steps: Annotated[Count, pydantic.Field(ge=1)] = 1
    mixed_precision: Literal['no', 'fp16', 'bf16'] | None = None  # None: what `accelerate launch` says
    compile: bool = False
    channels_last: bool = False
    max_nonfinite: Annotated[Count, pydantic.Field(ge=0)] = 0  # steps in a row that a non-finite loss may skip


class RestorerOptions(Section):
    """`val: restorer:`, the arguments of Restorer. Sizes in pixels of lq; tile 0 restores the whole image at once."""

    tile: Annotated[Count, pydantic.Field(ge=0)] = 0
    overlap: Annotated[Count, pydantic.Field(ge=0)] = 32
    tile_batch: Annotated[Count, pydantic.Field(ge=1)] = 1
    self_ensemble: bool = False
    color_fix: ColorFix = 'none'
    color_strength: Annotated[float, pydantic.Field(ge=0, le=1)] = 1
    dtype: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'fp32'


class ValOptions(Section):
    """`val:`, for validation while training and for test.py."""

    val_freq: Annotated[Count, pydantic.Field(ge=0)] = 0  # 0 is never
    save_img: bool = False
    suffix: str | None = None
    pbar: bool = True
    protocol: Literal['sr_y', 'sr_rgb'] | None = None  # a named set of metrics, in place of `metrics`
    metrics: dict[str, dict] = {}
    key_metric: str | None = None
    restorer: RestorerOptions = RestorerOptions()


class WandbOptions(Section):
    project: str | None = None
    resume_id: str | None = None


class LoggerOptions(Section):
    """`logger:`; frequencies in iterations, 0 is never. keep_last: how many checkpoints stay, 0 is all."""

    print_freq: Annotated[Count, pydantic.Field(ge=0)] = 100
    save_checkpoint_freq: Annotated[Count, pydantic.Field(ge=0)] = 5000
    keep_last: Annotated[Count, pydantic.Field(ge=0)] = 0
    keep_best: bool = True
    save_safetensors: bool = False  # also write the weights to use as plain .safetensors
    use_tb_logger: bool = False
    wandb: WandbOptions = WandbOptions()


class Options(Section):
    """A whole option file. `text` is the file as it was read, for the copy that a run keeps."""

    name: str
    model_type: str
    scale: Annotated[Count, pydantic.Field(ge=1)] = 1
    manual_seed: Annotated[Count, pydantic.Field(ge=0)] = 0
    device: Literal['auto', 'cpu'] = 'auto'
    find_unused_parameters: bool = False
    custom_imports: list[str] = []  # Python files or modules that register networks, data sets, losses of their own
    datasets: dict[str, DatasetOptions] = {}
    networks: dict[str, dict]
    degradation: dict | None = None  # of batches, on the device: a registered degradation and its options
    model: dict = {}
    path: PathOptions = PathOptions()
    train: TrainOptions | None = None
    val: ValOptions = ValOptions()
    logger: LoggerOptions = LoggerOptions()
    is_train: bool
    file: Path_ = ''
    text: str = ''
