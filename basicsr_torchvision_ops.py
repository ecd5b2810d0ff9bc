"""Lets a CPU build of torch import a CUDA build of torchvision (entry point in the group `torch.backends`).

Such a torchvision finds no compiled operators for this torch and dies at import with 'operator torchvision::nms does
not exist', and timm, lpips, spandrel and `accelerate launch` die with it. Declaring the two missing schemas is enough
for the import; calling the operators still fails, as it must.

A module of its own, outside the package: where another project's `basicsr` comes first on the path, a module inside
the package could not be found, and torch refuses to be imported when an entry point of this group fails.
"""

import importlib.metadata
import re

_schemas = None  # the library must outlive the declarations made through it


def declare_missing_operators() -> None:
    """Declare torchvision's nms and qnms if this torch has no CUDA and torchvision was built for it; never raises."""
    global _schemas
    try:
        import torch

        if torch.version.cuda is not None or torch.version.hip is not None or _schemas is not None:
            return
        # PyPI's torchvision for Linux is the CUDA build; CPU builds say so in their version (0.28.0+cpu).
        if re.search(r'\+cpu', importlib.metadata.version('torchvision')):
            return
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _schemas = library
    except Exception:  # whatever goes wrong here, `import torch` must succeed for everybody on this machine
        return
