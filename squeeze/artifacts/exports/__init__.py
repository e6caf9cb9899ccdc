"""An artifact in the formats that other libraries read."""
