"""Models: how one system learns and restores. `build_model(opt)` makes the one that an option file names."""


def build_model(opt):
    """The registered model `opt.model_type` with its networks and their first weights, on the CPU."""
    from basicsr.utils.registry import MODEL_REGISTRY

    return MODEL_REGISTRY.build({'type': opt.model_type, **opt.model}, opt=opt)
