"""What is measured of an artifact: latency, memory, size, quality, divergence; and of the machine: its peaks."""
