"""`python -m rnp_mlflow`."""

import sys

from rnp_mlflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
