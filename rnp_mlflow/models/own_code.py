"""Models that only exist as Python code of the user's: `code/package.module:function@DIGEST` calls that function.

This executes code, the one place in this project that does. So it happens only if the user names the function in this
very call, by `import model_factory=…` or in the environment: a `model.json` that names one is not enough. The digest is
that of the module's file, so that a model is not built by other code than it was imported with.
"""

import hashlib
import importlib
import importlib.util
import logging
import os
import re
from pathlib import Path

from torch import nn

from rnp_mlflow.errors import ModelError

PREFIX, VARIABLE = "code/", "RNP_MODEL_FACTORY"
FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
PERMITTED: set[str] = set()  # in this process
log = logging.getLogger(__name__)


def permit(factory: str) -> None:
    """Permit a function of the form `package.module:function` in this process.

    Raises:
        ModelError: it has another form.
    """
    if not FORM.fullmatch(factory):
        raise ModelError(f"model_factory={factory[:80]} is not of the form package.module:function")
    PERMITTED.add(factory)


def architecture_of(factory: str) -> str:
    """Return the architecture's name: the function, and the digest of its module's file as it is now.

    Raises:
        ModelError: it is not permitted, or there is no such module.
    """
    if factory not in PERMITTED and factory != os.environ.get(VARIABLE):
        raise ModelError(
            f"this model is built by Python code, {factory}, which runs only if you say so: read the code, "
            f"then set {VARIABLE}={factory}"
        )
    permit(factory)
    module = factory.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)  # imports the packages that contain it
    except Exception as error:  # the user's code can raise anything
        raise _failure(factory, error) from None
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise ModelError(f"{factory} failed: there is no file of module {module} on Python's path")
    return f"{PREFIX}{factory}@{hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]}"


def by_name(name: str) -> nn.Module:
    """Call the function without arguments; return the model.

    Raises:
        ModelError: it is not permitted, was changed, cannot be imported, fails, or returns no `nn.Module`.
    """
    factory = name.removeprefix(PREFIX).partition("@")[0]
    if architecture_of(factory) != name:
        raise ModelError(f"the file of {factory} is not the one that this model was imported with: give "
                         f"`import model_factory={factory}` for the present one")  # fmt: skip
    module, _, function = factory.partition(":")
    log.warning(f"  runs your own code: {factory}()")
    try:
        model = getattr(importlib.import_module(module), function)()
    except Exception as error:  # the user's code can raise anything
        raise _failure(factory, error) from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _failure(factory: str, error: Exception) -> ModelError:
    return ModelError(f"{factory} failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
