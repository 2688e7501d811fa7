"""`east-ray run` for `ray job submit`: the whole loop. Arguments: CONFIG [--set section.key=value ...]."""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
