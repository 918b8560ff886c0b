"""Reports of an audit: pure functions of its records."""
