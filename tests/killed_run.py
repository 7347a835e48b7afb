"""Follow a recipe, and be killed in its middle: ``python killed_run.py RECIPE DATA OUT LOG [MOMENT]``.

A second thread looks at what the first is doing, every few milliseconds. MOMENT is ``TIME``, seconds since the recipe
began, or ``PHASE NUMBER``, the how manieth look that finds the run in this phase. The process then writes where it
stands to LOG and kills itself by SIGKILL. Without MOMENT it ends, and LOG counts the looks at every phase and says how
long the recipe took.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()

from transformers import Trainer

from umarvel_hf.data import MBeir
from umarvel_hf.trainer.run import train

PHASES = {
    "training": {"training_step"},
    "mining": {"mine"},
    "merging": {"merge_adapter"},
    "writing": {"_save_checkpoint", "save_model", "whole_file", "write", "save_file", "_write_history"},
}
assert hasattr(Trainer, "training_step") and hasattr(Trainer, "_save_checkpoint")


def watch(main: int, log: Path, moment: list[str], done: threading.Event) -> None:
    """Look at the thread ``main`` until it is done, or until the moment has come."""
    began, looks = time.monotonic(), Counter[str]()
    while not done.wait(0.002):
        stack = [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[main])]
        found = [phase for phase, names in PHASES.items() if names.intersection(stack)]
        looks.update(found)
        seconds = time.monotonic() - began
        if (len(moment) == 1 and seconds >= float(moment[0])) or (
            len(moment) == 2 and looks[moment[0]] >= int(moment[1]) and moment[0] in found
        ):
            log.write_text(json.dumps({"seconds": round(seconds, 3), "phases": found, "stack": stack[::-1]}))
            os.kill(os.getpid(), signal.SIGKILL)
    log.write_text(json.dumps({"seconds": time.monotonic() - began, "looks": looks}))


if __name__ == "__main__":
    recipe, data, out, log, *moment = sys.argv[1:]
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(threading.main_thread().ident, Path(log), moment, done))
    watcher.start()
    try:
        train(recipe, out, benchmark=MBeir(data))
    finally:
        done.set()
        watcher.join()
