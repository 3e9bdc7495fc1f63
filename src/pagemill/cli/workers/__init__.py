"""Further processes that answer HTTP over the same engine, and their supervision.

The first process owns what exists once: the engine's process, stored responses, the control
endpoints. The others (`process.py`) share its port and its engine, and forward what they do not
own (`api/forward.py`). They end with it.
"""
