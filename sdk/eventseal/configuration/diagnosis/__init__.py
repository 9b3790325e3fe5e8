"""Checks of settings, databases, KMS and keys, which change nothing."""

from eventseal.configuration.diagnosis.all_checks import diagnose
from eventseal.configuration.diagnosis.findings import Finding, Severity

__all__ = ["Finding", "Severity", "diagnose"]
