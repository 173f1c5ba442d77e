"""Speed of the package against floors measured in the same process; not imported by it."""
