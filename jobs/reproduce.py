"""`east-ray reproduce` for `ray job submit`: a column of the paper's tables. Arguments: CONFIG [--set section.key=value ...]."""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
