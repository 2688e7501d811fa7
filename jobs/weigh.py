"""`east-ray weigh` for `ray job submit`: one stage, weighing. Arguments: CONFIG [--set section.key=value ...]."""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["weigh", *sys.argv[1:]]))
