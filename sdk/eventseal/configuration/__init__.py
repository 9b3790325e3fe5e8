"""From settings to working objects: the file, the environment, and what is assembled from them."""

from eventseal.configuration.assembly import EventSeal
from eventseal.configuration.loading import load_settings
from eventseal.configuration.settings import Settings

__all__ = ["EventSeal", "Settings", "load_settings"]
