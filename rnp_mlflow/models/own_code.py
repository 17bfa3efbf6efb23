"""Models that only exist as Python code of the user's: `code/package.module:function` calls that function.

This executes code, the one place in this project that does. So it happens only if the user names the function in this
very call, by `import model_factory=…` or in the environment: a `model.json` that names one is not enough.
"""

import importlib
import logging
import os
import re

from torch import nn

from rnp_mlflow.errors import ModelError

PREFIX, VARIABLE = "code/", "RNP_MODEL_FACTORY"
FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
PERMITTED: set[str] = set()  # in this process
log = logging.getLogger(__name__)


def permit(factory: str) -> str:
    """Permit a function of the form `package.module:function`; return the architecture's name.

    Raises:
        ModelError: it has another form.
    """
    if not FORM.fullmatch(factory):
        raise ModelError(f"model_factory={factory[:80]} is not of the form package.module:function")
    PERMITTED.add(factory)
    return f"{PREFIX}{factory}"


def by_name(name: str) -> nn.Module:
    """Call the function without arguments; return the model.

    Raises:
        ModelError: it is not permitted, cannot be imported, fails, or returns no `nn.Module`.
    """
    factory = name.removeprefix(PREFIX)
    if factory not in PERMITTED and factory != os.environ.get(VARIABLE):
        raise ModelError(
            f"this model is built by Python code, {factory}, which runs only if you say so: read the code, "
            f"then set {VARIABLE}={factory}"
        )
    module, _, function = permit(factory).removeprefix(PREFIX).partition(":")
    log.warning(f"  runs your own code: {factory}()")
    try:
        model = getattr(importlib.import_module(module), function)()
    except Exception as error:  # the user's code can raise anything
        raise ModelError(f"{factory} failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory} returned {type(model).__name__}, not a torch.nn.Module")
    return model
