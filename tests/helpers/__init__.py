"""Code that several test modules use."""
