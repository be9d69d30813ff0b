"""Run a service with secrets of another folder than /run/secrets: python -m tests.deploy.leaking FOLDER SERVICE."""

import runpy
import sys
from pathlib import Path

from shared import settings

if __name__ == "__main__":
    folder, service = sys.argv[1:]
    settings.SECRETS = Path(folder)
    sys.argv = [service]
    runpy.run_module(f"services.{service}", run_name="__main__")
