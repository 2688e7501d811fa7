"""`east-ray verify` for `ray job submit`: one stage, grading. Arguments: CONFIG [--set section.key=value ...]."""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
