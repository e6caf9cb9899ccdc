"""The compressed model as a folder: built, keyed, saved, loaded, exported."""
