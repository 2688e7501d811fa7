"""`python -m east_ray COMMAND` is `east-ray COMMAND`, for `ray job submit` and machines without the script."""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
