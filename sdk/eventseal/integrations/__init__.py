"""
EventSeal for other libraries.

These modules are imported only if you use that library.
"""
