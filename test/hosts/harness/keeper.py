"""`python3 -m test.hosts.harness.keeper NAME`: the process that a host hangs on. It boots the host again when that
reboots, and takes it away when the host's owner is dead.
"""

import sys

from test.hosts.harness.host import keep

if __name__ == "__main__":
    keep(sys.argv[1])
