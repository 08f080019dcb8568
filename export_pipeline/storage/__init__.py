"""Where bytes are kept: staging between the steps, and the store from which recipients download.

What the bytes mean is decided in ``formats`` and ``stages``.
"""
