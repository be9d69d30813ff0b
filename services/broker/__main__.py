from services.broker.main import build
from shared.process import main

if __name__ == "__main__":
    main(build)
