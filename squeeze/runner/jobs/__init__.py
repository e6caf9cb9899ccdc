"""The processes of a run: started, kept within limits, judged by how they end."""
