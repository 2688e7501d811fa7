"""`east-ray sample` for `ray job submit`: one stage, sampling. Arguments: CONFIG [--set section.key=value ...]."""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
