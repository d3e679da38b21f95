"""ssh-audit, whose exit code tells how bad it is: here only what it prints counts."""

import sys

from ssh_audit.ssh_audit import main

sys.argv = ["ssh-audit", "--no-colors", "--port", sys.argv[1], "127.0.0.1"]
try:
    main()
except SystemExit:
    pass
