"""Run the gateway as a process of its own."""

from services.api.main import build
from shared.process import main

if __name__ == "__main__":
    main(build)
