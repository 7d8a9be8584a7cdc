"""Lock of the functions of OpenVINO that read, compile and write models.

They change the locale of the process for their time (setlocale(3)). Two at once may leave it changed for good, and
Python then reads and writes files in ASCII.
"""

import threading

OPENVINO_LOCK = threading.RLock()
