"""Python runs this before anything else, because PYTHONPATH in config.yaml names its folder.

What the server and load() import comes into the page cache while Python still looks for the first of it.
"""

import subprocess
import sys
import threading
from pathlib import Path

# Every Python in the image runs this file, and only the server gains from it.
if sys.orig_argv[-1].endswith("main.py"):
    command = [sys.executable, "-I", "-S", str(Path(__file__).resolve().parent.parent / "faststart.py"), "read"]
    threading.Thread(target=subprocess.run, args=(command,), daemon=True).start()
