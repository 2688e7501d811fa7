"""`east-ray sweep` for `ray job submit`: many arms on one set of samples. Arguments: CONFIG [--set section.key=value ...]."""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
