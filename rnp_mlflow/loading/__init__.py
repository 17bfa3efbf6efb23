"""Files from outside, read so that nothing in them runs and no declared size is trusted.

Torch files are read with `weights_only`, pt2 archives as raw bytes beside their JSON table, npz
archives without pickle. What a file declares is compared with what it holds before memory is asked for.
"""

from rnp_mlflow.loading.archives import GIB as GIB
from rnp_mlflow.loading.archives import check_zip as check_zip
from rnp_mlflow.loading.npz import read_npz as read_npz
from rnp_mlflow.loading.own_norm import OwnNorm as OwnNorm
from rnp_mlflow.loading.own_norm import take_own_norm as take_own_norm
from rnp_mlflow.loading.pt2 import read_pt2 as read_pt2
from rnp_mlflow.loading.stand_ins import Array as Array
from rnp_mlflow.loading.state import Checkpoint as Checkpoint
from rnp_mlflow.loading.state import plain_keys as plain_keys
from rnp_mlflow.loading.state import read_checkpoint as read_checkpoint
from rnp_mlflow.loading.state import read_weights as read_weights
from rnp_mlflow.loading.state import state_dict as state_dict
from rnp_mlflow.loading.torch_files import WAY_OUT as WAY_OUT
from rnp_mlflow.loading.torch_files import read_safetensors as read_safetensors
from rnp_mlflow.loading.torch_files import read_torch as read_torch
