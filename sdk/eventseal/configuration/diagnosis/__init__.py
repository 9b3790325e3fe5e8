"""Diagnosis: what is wrong between the settings, the databases, the KMS and the keys. Nothing is changed."""

from eventseal.configuration.diagnosis.all_checks import diagnose
from eventseal.configuration.diagnosis.findings import Finding, Severity

__all__ = ["Finding", "Severity", "diagnose"]
