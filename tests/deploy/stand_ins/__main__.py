"""Prints the image to take for one of others'."""

import sys

from tests.deploy.stand_ins import image, written

if __name__ == "__main__":
    try:
        sys.stdout.write(f"{image(written(sys.argv[1]))}\n")
    except RuntimeError as error:
        sys.exit(str(error))
