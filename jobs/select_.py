"""`east-ray select` for `ray job submit`: one stage, choosing the examples. Arguments: CONFIG [--set section.key=value ...].

Called select_ because a select.py here would hide Python's own module from every script in this directory.
"""

import sys

from east_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["select", *sys.argv[1:]]))
