"""Write an artifact in the formats that other libraries read."""
