"""`handler.py` with a model each of whose runs takes a fifth of a second more."""

import time

import handler
import model_loader
from settings import get_settings

if __name__ == "__main__":
    model = model_loader.get_model(get_settings()).model
    model.blocks[0].register_forward_pre_hook(lambda *_: time.sleep(0.2))
    handler.main()
