"""Settings, and the objects that are built from them."""

from eventseal.configuration.assembly import EventSeal
from eventseal.configuration.loading import load_settings
from eventseal.configuration.settings import Settings

__all__ = ["EventSeal", "Settings", "load_settings"]
