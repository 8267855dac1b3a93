"""gr_compile."""
