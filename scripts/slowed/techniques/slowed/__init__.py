"""Hold the family of techniques that slow down."""
