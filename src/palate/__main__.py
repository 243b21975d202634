"""`python -m palate` is the command `palate`."""

from palate.cli.main import main

raise SystemExit(main())
