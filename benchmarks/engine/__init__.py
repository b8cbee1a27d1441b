"""The embedded engine alone."""
