"""Readers of untrusted files: nothing in them is executed, and no declared size is trusted.

Torch files are read by a machine of our own that calls nothing of the file's choice, pt2 archives as raw bytes and a
JSON table, npz archives without pickle. The size that a file declares is compared with its content before memory is
allocated.
"""

from rnp_mlflow.loading.archives import GIB as GIB
from rnp_mlflow.loading.archives import check_zip as check_zip
from rnp_mlflow.loading.npz import read_npz as read_npz
from rnp_mlflow.loading.own_norm import OwnNorm as OwnNorm
from rnp_mlflow.loading.own_norm import take_own_norm as take_own_norm
from rnp_mlflow.loading.pt2 import read_pt2 as read_pt2
from rnp_mlflow.loading.regular import check_regular as check_regular
from rnp_mlflow.loading.regular import files_below as files_below
from rnp_mlflow.loading.room import check_disk as check_disk
from rnp_mlflow.loading.room import check_memory as check_memory
from rnp_mlflow.loading.stand_ins import SafeNdarray as SafeNdarray
from rnp_mlflow.loading.state import Checkpoint as Checkpoint
from rnp_mlflow.loading.state import read_checkpoint as read_checkpoint
from rnp_mlflow.loading.state import read_weights as read_weights
from rnp_mlflow.loading.state import state_dict as state_dict
from rnp_mlflow.loading.state import strip_prefixes as strip_prefixes
from rnp_mlflow.loading.torch_files import SAVE_HINT as SAVE_HINT
from rnp_mlflow.loading.torch_files import read_safetensors as read_safetensors
from rnp_mlflow.loading.torch_files import read_torch as read_torch
