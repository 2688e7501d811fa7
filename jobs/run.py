"""`east-ray run` for `ray job submit` and jobs/slurm.sh. Arguments: CONFIG [--set section.key=value ...].

Any other command: `ray job submit ... -- python -m east_ray weigh CONFIG`.
"""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
